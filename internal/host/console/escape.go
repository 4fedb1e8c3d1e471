package console

// escapeState follows the terminal escape sequences of ECMA-48 far enough to
// leave them out: ESC, then either one character, or "[" up to a final byte
// 0x40–0x7e (CSI), or a string that BEL or ESC \ ends (OSC, DCS, …).
type escapeState uint8

const (
	plain escapeState = iota
	// done is the last byte of a sequence: swallowed, the next is plain.
	done
	escaped
	csi
	str
	strEscaped
)

const (
	esc = 0x1b
	bel = 0x07
)

// next returns the state that byte c leads to. In state plain c is text.
func (s escapeState) next(c byte) escapeState {
	// A newline ends any sequence: an unfinished one must not hide a line.
	if c == '\n' {
		return plain
	}
	switch s {
	case escaped, strEscaped:
		switch {
		case c == esc:
			return escaped
		case s == strEscaped && c != '\\':
			return str
		case c == '[':
			return csi
		case c == ']' || c == 'P' || c == 'X' || c == '^' || c == '_':
			return str
		}
		return done
	case csi:
		switch {
		case c == esc:
			return escaped
		case c >= 0x40 && c <= 0x7e:
			return done
		}
		return csi
	case str:
		switch c {
		case bel:
			return done
		case esc:
			return strEscaped
		}
		return str
	default:
		if c == esc {
			return escaped
		}
		return plain
	}
}
