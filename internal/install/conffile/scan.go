package conffile

import "bytes"

// span is the array that is the value of imports, in bytes of the file.
type span struct {
	// open is behind the opening bracket, last behind the last element or comma
	// (open if there is none), end at the closing bracket.
	open, last, end int
}

// find looks for imports among the keys before the first table. The text is
// TOML that a real parser has read.
func find(text []byte) (span, bool) {
	for i := 0; i < len(text); {
		switch text[i] {
		case '[':
			return span{}, false // tables from here on
		case '#':
			_, i = line(text, i)
		case ' ', '\t', '\r', '\n':
			i++
		default:
			equals := key(text, i)
			if equals < 0 {
				return span{}, false
			}
			name := bytes.Trim(bytes.TrimSpace(text[i:equals]), `"'`)
			v := equals + 1
			for v < len(text) && (text[v] == ' ' || text[v] == '\t') {
				v++
			}
			if v < len(text) && string(name) == "imports" {
				if text[v] != '[' {
					return span{}, false
				}
				s := span{open: v + 1, last: v + 1}
				s.end = value(text, v, &s.last)
				return s, s.end < len(text)
			}
			if i = value(text, v, nil); i < len(text) {
				_, i = line(text, i)
			}
		}
	}
	return span{}, false
}

// key returns the position of the equals sign behind the key at i, or -1.
func key(text []byte, i int) int {
	for i < len(text) {
		switch c := text[i]; c {
		case '=':
			return i
		case '"', '\'':
			i = literal(text, i)
		case '\n':
			return -1
		default:
			i++
		}
	}
	return -1
}

// value returns where the value at i ends: the last byte of an array or a
// table, else behind it. last, if not nil, is set behind the last element or
// comma of the outermost array.
func value(text []byte, i int, last *int) int {
	depth := 0
	for i < len(text) {
		switch c := text[i]; c {
		case '"', '\'':
			i = literal(text, i)
		case '#':
			if _, i = line(text, i); depth == 0 {
				return i - 1
			}
			continue
		case '[', '{':
			depth++
			i++
			if depth == 1 {
				continue
			}
		case ']', '}':
			if depth--; depth <= 0 {
				return i
			}
			i++
		case '\n':
			if depth == 0 {
				return i
			}
			i++
			continue
		case ' ', '\t', '\r':
			i++
			continue
		default:
			i++
		}
		if last != nil && depth > 0 {
			*last = i
		}
		if depth == 0 && i < len(text) && text[i] == '\n' {
			return i
		}
	}
	return i
}

// literal returns where the string literal at i ends.
func literal(text []byte, i int) int {
	q := text[i]
	if bytes.HasPrefix(text[i:], []byte{q, q, q}) {
		for j := i + 3; j < len(text); j++ {
			switch {
			case text[j] == '\\' && q == '"':
				j++
			case bytes.HasPrefix(text[j:], []byte{q, q, q}):
				for j += 3; j < len(text) && text[j] == q; j++ { // up to two quotes more belong to it
				}
				return j
			}
		}
		return len(text)
	}
	for j := i + 1; j < len(text); j++ {
		switch {
		case text[j] == '\\' && q == '"':
			j++
		case text[j] == q:
			return j + 1
		case text[j] == '\n':
			return j
		}
	}
	return len(text)
}
