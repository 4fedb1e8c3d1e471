package registry

import "strings"

// maxChallenges is how many challenges of a response are looked at.
const maxChallenges = 16

// challenge is how a registry wants to be asked.
type challenge struct {
	scheme         string // in lower case
	realm, service string
}

// parseChallenges reads WWW-Authenticate headers (RFC 9110, 11.6.1), each of
// which may hold several challenges. What is malformed ends its header.
func parseChallenges(headers []string) []challenge {
	var out []challenge
	for _, h := range headers {
		p := &headerParser{rest: h}
		for len(out) < maxChallenges && p.next() {
			out = append(out, p.current)
		}
	}
	return out
}

// headerParser reads one header.
type headerParser struct {
	rest    string
	current challenge
}

// next reads a challenge: a scheme and its parameters.
func (p *headerParser) next() bool {
	p.rest = strings.TrimLeft(p.rest, " \t,")
	scheme := p.token()
	if scheme == "" {
		return false
	}
	p.current = challenge{scheme: strings.ToLower(scheme)}
	for {
		p.rest = strings.TrimLeft(p.rest, " \t,")
		before := p.rest
		name := strings.ToLower(p.token())
		p.skipSpace()
		if name == "" || !strings.HasPrefix(p.rest, "=") {
			p.rest = before // the next scheme, or the end
			return true
		}
		p.rest = p.rest[1:]
		p.skipSpace()
		value, ok := p.value()
		if !ok {
			p.rest = ""
			return true
		}
		switch name {
		case "realm":
			p.current.realm = value
		case "service":
			p.current.service = value
		}
	}
}

func (p *headerParser) skipSpace() { p.rest = strings.TrimLeft(p.rest, " \t") }

// token reads a token (RFC 9110, 5.6.2).
func (p *headerParser) token() string {
	n := 0
	for n < len(p.rest) && tokenChar(p.rest[n]) {
		n++
	}
	token := p.rest[:n]
	p.rest = p.rest[n:]
	return token
}

func tokenChar(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// value reads a token or a quoted string (RFC 9110, 5.6.4).
func (p *headerParser) value() (string, bool) {
	if !strings.HasPrefix(p.rest, `"`) {
		v := p.token()
		return v, v != ""
	}
	var b strings.Builder
	for i := 1; i < len(p.rest); i++ {
		switch c := p.rest[i]; c {
		case '"':
			p.rest = p.rest[i+1:]
			return b.String(), true
		case '\\':
			if i++; i < len(p.rest) {
				b.WriteByte(p.rest[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}
