// Package numbers reads and writes bytes as the evidence of Rust programs holds
// them: a JSON array with one number for each byte. Arrays have thousands of
// entries, so they are handled without reflection.
package numbers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
)

// Bytes is a field of a JSON document that holds such an array. How long it may
// be is for whoever decodes to check; the document's limits bound it.
type Bytes []byte

// UnmarshalJSON implements json.Unmarshaler.
func (b *Bytes) UnmarshalJSON(data []byte) error {
	out, err := Parse(data, len(data))
	if err == nil {
		*b = out
	}
	return err
}

// MarshalJSON implements json.Marshaler.
func (b Bytes) MarshalJSON() ([]byte, error) { return Append(nil, b), nil }

// Append writes data as a JSON array of numbers behind out.
func Append(out, data []byte) []byte {
	out = append(out, '[')
	for i, b := range data {
		if i > 0 {
			out = append(out, ',')
		}
		out = strconv.AppendUint(out, uint64(b), 10)
	}
	return append(out, ']')
}

// Parse reads an array of at most limit numbers from 0 to 255. The array is
// known to be one valid JSON value. The error says at which entry reading
// stopped, and is to be prefixed with the field's name.
func Parse(array json.RawMessage, limit int) ([]byte, error) {
	inner, opened := bytes.CutPrefix(bytes.TrimSpace(array), []byte("["))
	inner, closed := bytes.CutSuffix(inner, []byte("]"))
	if !opened || !closed {
		return nil, fmt.Errorf("expected an array of numbers, got %.20q", array)
	}
	if len(bytes.TrimSpace(inner)) == 0 {
		return []byte{}, nil
	}
	count := bytes.Count(inner, []byte(",")) + 1
	if count > limit {
		return nil, fmt.Errorf("expected at most %d bytes, got %d", limit, count)
	}
	out := make([]byte, 0, count)
	for item := range bytes.SplitSeq(inner, []byte(",")) {
		n, ok := number(bytes.TrimSpace(item))
		if !ok {
			return nil, fmt.Errorf("[%d]: expected a number from 0 to 255, got %.20q", len(out), item)
		}
		out = append(out, n)
	}
	return out, nil
}

// number reads one to three digits without a leading zero.
func number(item []byte) (byte, bool) {
	if len(item) == 0 || len(item) > 3 || len(item) > 1 && item[0] == '0' {
		return 0, false
	}
	n := 0
	for _, c := range item {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return byte(n), n <= 0xFF
}
