package podpolicy

import "strings"

// Expand replaces $(NAME) in s by what lookup has for NAME, and $$ by a dollar
// sign. A reference that lookup does not know stays as it is written, and so
// does every other dollar sign. What is put in is not looked at again. These
// are the rules of Kubernetes (API reference, Container, args and env).
func Expand(s string, lookup func(name string) (value string, ok bool)) string {
	if strings.IndexByte(s, '$') < 0 {
		return s
	}
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 || i+1 == len(s) {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		s = s[i:]
		switch end := strings.IndexByte(s, ')'); {
		case s[1] == '$':
			b.WriteByte('$')
			s = s[2:]
		case s[1] == '(' && end > 0:
			if value, ok := lookup(s[2:end]); ok {
				b.WriteString(value)
			} else {
				b.WriteString(s[:end+1])
			}
			s = s[end+1:]
		default:
			b.WriteByte('$')
			s = s[1:]
		}
	}
}
