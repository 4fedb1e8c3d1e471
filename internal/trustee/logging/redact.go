package logging

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/coffer-project/coffer/secret"
)

// sensitiveKey reports whether what stands under a key is a credential. Keys
// are read word by word, so that "mapping" has no "pin" in it.
func sensitiveKey(key string) bool {
	words := split(key)
	for i, w := range words {
		switch w {
		case "authorization", "authorisation", "bearer", "cookie", "cookies", "token", "tokens", "jwt", "jws", "jwe",
			"password", "passwd", "passphrase", "secret", "secrets", "pin", "kek", "dek", "private", "priv",
			"credential", "credentials", "apikey", "plaintext", "signature", "seed":
			return true
		case "key":
			if i > 0 && (words[i-1] == "api" || words[i-1] == "hmac" || words[i-1] == "data" || words[i-1] == "wrapping") {
				return true
			}
		}
	}
	return false
}

// split cuts a key into lower-case words: at anything that is no letter or
// digit, and before a capital that follows a small letter.
func split(key string) []string {
	if len(key) > 256 {
		key = key[:256]
	}
	var words []string
	var w strings.Builder
	flush := func() {
		if w.Len() > 0 {
			words = append(words, w.String())
			w.Reset()
		}
	}
	small := false
	for _, r := range key {
		switch {
		case !unicode.IsLetter(r) && !unicode.IsDigit(r):
			flush()
			small = false
			continue
		case unicode.IsUpper(r) && small:
			flush()
		}
		small = unicode.IsLower(r) || unicode.IsDigit(r)
		w.WriteRune(unicode.ToLower(r))
	}
	flush()
	return words
}

// maxScanned is how much of a text is looked at for secrets; the rest is cut.
const maxScanned = 64 << 10

// shape is what a kind of secret looks like. A text that was cut in the middle
// of one must still match, so ends are optional.
type shape struct {
	// hints are texts of which one must occur: looking for them costs less than
	// the expression. With fold they are found in any letter case.
	hints []string
	fold  bool
	re    *regexp.Regexp
	// with replaces it, [secret.Redacted] where empty.
	with string
}

// Redact replaces what looks like a secret in a text, and cuts it to [MaxText]
// bytes.
func Redact(s string) string {
	total := len(s)
	if total > maxScanned {
		s = s[:maxScanned]
	}
	lower := lowered(s)
	for _, sh := range shapes {
		in := s
		if sh.fold {
			in = lower
		}
		if !slices.ContainsFunc(sh.hints, func(h string) bool { return strings.Contains(in, h) }) {
			continue
		}
		with := sh.with
		if with == "" {
			with = redacted
		}
		s = sh.re.ReplaceAllString(s, with)
		lower = lowered(s)
	}
	if total > maxScanned && len(s) <= MaxText {
		return s + more(total-maxScanned)
	}
	return clip(s)
}

// lowered is s in small letters, as far as they are ASCII: the hints are.
func lowered(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}

func clip(s string) string {
	if len(s) <= MaxText {
		return s
	}
	cut := MaxText
	for cut > MaxText-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + more(len(s)-cut)
}

func more(n int) string { return "… (" + strconv.Itoa(n) + " more bytes)" }

// shapes in the order in which they are looked for. It is never changed.
var shapes = []shape{
	// PEM (RFC 7468): any private key, and OpenPGP's.
	{hints: []string{"PRIVATE KEY"}, re: regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----(?s:.*?)(?:-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----|$)`)},
	// JWS and JWE, compact (RFC 7515 §7.1, RFC 7516 §7.1): the header is an
	// object, whose base64url begins with eyJ or ewo.
	{hints: []string{"ey"}, re: regexp.MustCompile(`\bey[A-Za-z0-9_-]{9,}\.[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*){0,3}`)},
	{hints: []string{"ew"}, re: regexp.MustCompile(`\bew[A-Za-z0-9_-]{9,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*){0,3}`)},
	// HTTP credentials (RFC 9110 §11.4) and cookies (RFC 6265).
	{hints: []string{"bearer"}, fold: true, re: regexp.MustCompile(`(?i)\b(bearer)[ =:]+[A-Za-z0-9._~+/=-]{6,}`), with: "$1 " + redacted},
	{hints: []string{"basic"}, fold: true, re: regexp.MustCompile(`\b([Bb]asic) [A-Za-z0-9+/]{8,}={0,2}`), with: "$1 " + redacted},
	{hints: []string{"kbs-session-id"}, fold: true, re: regexp.MustCompile(`(?i)\b(kbs-session-id)=[^;\s"]+`), with: "$1=" + redacted},
	{hints: []string{"cookie"}, fold: true, re: regexp.MustCompile(`(?i)\b((?:set-)?cookie): ?[^\n]+`), with: "$1: " + redacted},
	// A password in a URL (RFC 3986 §3.2.1), such as a database's.
	{hints: []string{"://"}, re: regexp.MustCompile(`(://[^/\s:@]*):[^/\s@]+@`), with: "$1:" + redacted + "@"},
	// key=value and "key": "value" in messages of libraries.
	{hints: []string{"pass", "secret", "token", "pin", "key"}, fold: true, re: regexp.MustCompile(`(?i)\b((?:[a-z]+[_-])?(?:password|passwd|passphrase|secret|token|pin|pin-value|api[_-]?key))("?\s*[=:]\s*)("(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s"'&,;]+)`), with: "$1$2" + redacted},
	// Tokens of Vault and OpenBao, secret keys of age.
	{hints: []string{"s."}, re: regexp.MustCompile(`\b(?:hvs|hvb|hvr|sbs|s)\.[A-Za-z0-9_-]{20,}`)},
	{hints: []string{"AGE-SECRET-KEY-"}, re: regexp.MustCompile(`AGE-SECRET-KEY-[A-Z0-9]+`)},
	// The private members of a JSON Web Key that was printed as text.
	{hints: []string{`"kty"`}, re: regexp.MustCompile(`"(d|p|q|dp|dq|qi|k|priv)"\s*:\s*"[^"]*"?`), with: `"$1":"` + redacted + `"`},
}

const redacted = secret.Redacted
