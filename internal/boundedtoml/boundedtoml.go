// Package boundedtoml decodes small TOML documents from strangers, and writes
// the strings of such documents. The TOML library recurses once per bracket
// and keeps every prefix of a dotted key, so that a document of one mebibyte
// could take all memory; a pass over the text refuses such documents first.
package boundedtoml

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// Limits beyond which a document is refused.
const (
	// maxDepth bounds open brackets and braces.
	maxDepth = 16
	// maxDots bounds the dots outside strings in one line, and so the parts
	// of a key.
	maxDots = 16
	// maxTables bounds table headers.
	maxTables = 1024
	// maxItems bounds keys and elements of arrays, by their equals signs and
	// commas.
	maxItems = 4096
	// maxMessage bounds the library's message in bytes: it quotes the
	// document.
	maxMessage = 256
)

// Decode decodes a document of at most maxBytes bytes into maps, slices and
// scalars as BurntSushi/toml does.
func Decode(raw []byte, maxBytes int) (map[string]any, error) {
	if len(raw) > maxBytes {
		return nil, fmt.Errorf("document has %d bytes, the limit is %d", len(raw), maxBytes)
	}
	if !utf8.Valid(raw) {
		return nil, errors.New("document is not valid UTF-8")
	}
	if bytes.HasPrefix(raw, []byte("\ufeff")) {
		return nil, errors.New("document begins with a byte order mark: save it as UTF-8 without one")
	}
	text := string(raw)
	if err := check(text); err != nil {
		return nil, err
	}
	doc := map[string]any{}
	if _, err := toml.Decode(text, &doc); err != nil {
		if pe, ok := errors.AsType[toml.ParseError](err); ok {
			msg := pe.Message
			if len(msg) > maxMessage {
				msg = strings.ToValidUTF8(msg[:maxMessage], "") + "…"
			}
			return nil, fmt.Errorf("line %d: %s", pe.Position.Line, msg)
		}
		return nil, err
	}
	return doc, nil
}

// check bounds the structure of a document. It follows strings and comments
// as TOML defines them and is stricter where that is simpler: after a string
// only what can follow a string may come.
func check(s string) error {
	depth, dots, tables, items, line := 0, 0, 0, 0, 1
	newline := true
	for i := 0; i < len(s); {
		switch c := s[i]; c {
		case '\n':
			line, dots, newline = line+1, 0, true
			i++
			continue
		case '#':
			if n := strings.IndexByte(s[i:], '\n'); n >= 0 {
				i += n
			} else {
				i = len(s)
			}
			continue
		case ' ', '\t', '\r':
			i++
			continue
		case '"', '\'':
			n := stringLen(s[i:])
			if n < 0 {
				return fmt.Errorf("line %d: string does not end", line)
			}
			line += strings.Count(s[i:i+n], "\n")
			i += n
			if i < len(s) && strings.IndexByte(" \t\r\n,]}.=#", s[i]) < 0 {
				return fmt.Errorf("line %d: unexpected character after a string", line)
			}
		case '[', '{':
			if newline && c == '[' && depth == 0 {
				if tables++; tables > maxTables {
					return fmt.Errorf("line %d: more than %d tables", line, maxTables)
				}
			}
			if depth++; depth > maxDepth {
				return fmt.Errorf("line %d: nested more than %d deep", line, maxDepth)
			}
			i++
		case '=', ',':
			if items++; items > maxItems {
				return fmt.Errorf("line %d: more than %d keys and elements", line, maxItems)
			}
			i++
		case ']', '}':
			depth = max(depth-1, 0)
			i++
		case '.':
			if dots++; dots > maxDots {
				return fmt.Errorf("line %d: more than %d dots", line, maxDots)
			}
			i++
		default:
			i++
		}
		newline = false
	}
	return nil
}

// stringLen is the length of the string literal that s begins with, quotes
// included, or -1 if it does not end.
func stringLen(s string) int {
	q := s[0]
	escapes := q == '"'
	multi := len(s) >= 3 && s[1] == q && s[2] == q
	i := 1
	if multi {
		i = 3
	}
	for i < len(s) {
		switch c := s[i]; {
		case escapes && c == '\\':
			i += 2
			continue
		case c == '\n' && !multi:
			return -1
		case c == q && !multi:
			return i + 1
		case c == q && strings.HasPrefix(s[i:], s[:3]):
			i += 3
			// Up to two more quotes belong to the content before the end.
			for range 2 {
				if i < len(s) && s[i] == q {
					i++
				}
			}
			return i
		}
		i++
	}
	return -1
}
