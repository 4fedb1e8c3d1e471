package attestationservice

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/coffer-project/coffer/internal/strictjson"
)

// maxRuntime bounds structured runtime data, which can hold the evidence of
// many devices.
const maxRuntime = 8 << 20

// canonicalize writes a JSON object as RFC 8785 prescribes, and returns it
// decoded beside.
func canonicalize(doc []byte) ([]byte, map[string]any, error) {
	var v any
	if err := strictjson.Decode(doc, &v, strictjson.Limits{Bytes: maxRuntime, Depth: maxDepth}); err != nil {
		return nil, nil, err
	}
	// The same document again, with numbers as they were written.
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	var members map[string]any
	if err := dec.Decode(&members); err != nil || members == nil {
		return nil, nil, errors.New("expected a JSON object")
	}
	out, err := appendJCS(nil, members)
	return out, members, err
}

func appendJCS(b []byte, v any) ([]byte, error) {
	var err error
	switch v := v.(type) {
	case nil:
		return append(b, "null"...), nil
	case bool:
		return strconv.AppendBool(b, v), nil
	case string:
		return appendString(b, v), nil
	case json.Number:
		return appendNumber(b, v)
	case []any:
		b = append(b, '[')
		for i, x := range v {
			if i > 0 {
				b = append(b, ',')
			}
			if b, err = appendJCS(b, x); err != nil {
				return nil, err
			}
		}
		return append(b, ']'), nil
	case map[string]any:
		b = append(b, '{')
		for i, name := range slices.SortedFunc(maps.Keys(v), byUTF16) {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(appendString(b, name), ':')
			if b, err = appendJCS(b, v[name]); err != nil {
				return nil, err
			}
		}
		return append(b, '}'), nil
	}
	return nil, fmt.Errorf("expected JSON, got %T", v)
}

// byUTF16 is the order of section 3.2.3.
func byUTF16(a, b string) int {
	return slices.Compare(utf16.Encode([]rune(a)), utf16.Encode([]rune(b)))
}

// appendString is section 3.2.2.2: the short escapes, \u00xx for other control
// characters, and everything else as it is.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c >= 0x20:
			b = append(b, c)
		case strings.IndexByte("\b\t\n\f\r", c) >= 0:
			b = append(b, '\\', "btnfr"[strings.IndexByte("\b\t\n\f\r", c)])
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return append(b, '"')
}

// exact is the greatest integer up to which every one is a double.
const exact = 1 << 53

// appendNumber is section 3.2.2.3: ECMAScript's shortest form of the double.
// Integers that no double holds are refused: implementations differ on them.
func appendNumber(b []byte, n json.Number) ([]byte, error) {
	f, err := n.Float64()
	if err != nil || math.IsInf(f, 0) {
		return nil, fmt.Errorf("number %.40s is out of range", n)
	}
	if i, err := n.Int64(); !strings.ContainsAny(string(n), ".eE") && (err != nil || i > exact || i < -exact) {
		return nil, fmt.Errorf("integer %.40s: expected at most 2^53, or a string", n)
	}
	if f == 0 {
		return append(b, '0'), nil
	}
	if f < 0 {
		b, f = append(b, '-'), -f
	}
	// d.ddde±xx: digits and the place of the point (ECMA-262, Number::toString).
	text := strconv.FormatFloat(f, 'e', -1, 64)
	mantissa, exponent, _ := strings.Cut(text, "e")
	digits := strings.Replace(mantissa, ".", "", 1)
	e, err := strconv.Atoi(exponent)
	if err != nil {
		return nil, err
	}
	k, point := len(digits), e+1
	switch {
	case k <= point && point <= 21:
		return append(append(b, digits...), strings.Repeat("0", point-k)...), nil
	case 0 < point && point <= 21:
		return append(b, digits[:point]+"."+digits[point:]...), nil
	case -6 < point && point <= 0:
		return append(b, "0."+strings.Repeat("0", -point)+digits...), nil
	}
	b = append(b, digits[0])
	if k > 1 {
		b = append(append(b, '.'), digits[1:]...)
	}
	return append(b, fmt.Sprintf("e%+d", point-1)...), nil
}
