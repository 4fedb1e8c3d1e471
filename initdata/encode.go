package initdata

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// Encode writes the document as TOML. Equal documents give equal bytes: keys
// are sorted, and texts are written as multi-line literals where their
// content allows it, so that people can read them.
func (d *Document) Encode() ([]byte, error) {
	if errs := d.problems(); len(errs) > 0 {
		sortErrors(errs)
		return nil, errors.Join(errs...)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "version = %s\nalgorithm = %s\n\n[data]\n", basic(d.Version), basic(d.Algorithm))
	for _, k := range slices.Sorted(maps.Keys(d.Data)) {
		v := d.Data[k]
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return nil, fmt.Errorf("initdata: data: entry %q is not valid UTF-8", k)
		}
		b.WriteString(basic(k) + " = ")
		if literal(v) {
			b.WriteString("'''\n" + v + "'''\n")
		} else {
			b.WriteString(basic(v) + "\n")
		}
	}
	if b.Len() > MaxBytes {
		return nil, fmt.Errorf("initdata: document has %d bytes, the limit is %d", b.Len(), MaxBytes)
	}
	return []byte(b.String()), nil
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

// basic writes a TOML basic string.
func basic(s string) string {
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
