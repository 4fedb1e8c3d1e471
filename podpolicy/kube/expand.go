package kube

import "strings"

// part of a text: literal, or what a variable will be that only the guest or the
// host knows.
type part struct {
	text string
	// ref is a variable's name; its text is empty.
	ref string
}

// expand replaces $(NAME) in s by what lookup has for NAME, as the kubelet does:
// $$ is a dollar sign, what lookup does not know stays as it is written, and
// what is put in is not looked at again.
func expand(s string, lookup func(name string) ([]part, bool)) []part {
	var out []part
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i+1 == len(s) {
			return join(out, part{text: s})
		}
		out = join(out, part{text: s[:i]})
		s = s[i:]
		switch end := strings.IndexByte(s, ')'); {
		case s[1] == '$':
			out, s = join(out, part{text: "$"}), s[2:]
		case s[1] == '(' && end > 0:
			known, ok := lookup(s[2:end])
			if !ok {
				known = []part{{text: s[:end+1]}}
			}
			for _, p := range known {
				out = join(out, p)
			}
			s = s[end+1:]
		default:
			out, s = join(out, part{text: "$"}), s[1:]
		}
	}
}

// join appends a part, texts in one.
func join(parts []part, p part) []part {
	n := len(parts)
	switch {
	case p.ref == "" && p.text == "":
		return parts
	case p.ref == "" && n > 0 && parts[n-1].ref == "":
		parts[n-1].text += p.text
		return parts
	}
	return append(parts, p)
}

// literal is the text of parts that have no reference.
func literal(parts []part) (string, bool) {
	switch {
	case len(parts) == 0:
		return "", true
	case len(parts) == 1 && parts[0].ref == "":
		return parts[0].text, true
	}
	return "", false
}

// written is parts in the form that the guest expands.
func written(parts []part) string {
	var b strings.Builder
	for _, p := range parts {
		if p.ref != "" {
			b.WriteString("$(" + p.ref + ")")
			continue
		}
		for i := range len(p.text) {
			// A dollar sign that the guest would take for the start of something.
			if p.text[i] == '$' && (i+1 == len(p.text) || p.text[i+1] == '$' || p.text[i+1] == '(') {
				b.WriteByte('$')
			}
			b.WriteByte(p.text[i])
		}
	}
	return b.String()
}
