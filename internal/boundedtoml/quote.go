package boundedtoml

import (
	"fmt"
	"strings"
)

// Text writes a text as a multi-line literal string where its content allows
// it, so that people can read it, else as [Quote] does.
func Text(s string) string {
	if literal(s) {
		return "'''\n" + s + "'''"
	}
	return Quote(s)
}

// literal tells whether a text can stand between triple apostrophes: it has
// no apostrophe that could be taken for their part, no carriage return (a
// reader may drop it) and no control character. One-line texts stay basic.
func literal(s string) bool {
	if !strings.Contains(s, "\n") || strings.Contains(s, "'''") || strings.HasSuffix(s, "'") {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r != '\n' && r != '\t' && (r < 0x20 || r == 0x7f) })
}

// Quote writes a basic string. s must be valid UTF-8.
func Quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch r {
		case '"', '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case '\n':
			b.WriteString(`\n`)
		case '\t':
			b.WriteString(`\t`)
		case '\r':
			b.WriteString(`\r`)
		default:
			if r < 0x20 || r == 0x7f {
				fmt.Fprintf(&b, `\u%04X`, r)
			} else {
				b.WriteRune(r)
			}
		}
	}
	b.WriteByte('"')
	return b.String()
}
