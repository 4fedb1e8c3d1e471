package keyprovider

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
)

// The protocol's JSON, which travels as bytes inside of the gRPC messages
// (ocicrypt, keywrap/keyprovider). It is not ours, and its writers disagree:
// Go's has bytes in base64 and names of fields that begin with a capital
// letter, Rust's has bytes as arrays of numbers, and optsdata as a string that
// is the content itself. All of that is read; what is written are arrays of
// numbers, the only form that both of them read.
type (
	input struct {
		Operation string        `json:"op"`
		Wrap      *wrapParams   `json:"keywrapparams"`
		Unwrap    *unwrapParams `json:"keyunwrapparams"`
	}
	wrapParams struct {
		EC       *encryptConfig `json:"ec"`
		OptsData looseBytes     `json:"optsdata"`
	}
	encryptConfig struct {
		Parameters map[string][]looseBytes `json:"parameters"`
	}
	unwrapParams struct {
		Annotation looseBytes `json:"annotation"`
	}
	output struct {
		Wrap   *wrapResults  `json:"keywrapresults,omitempty"`
		Unwrap unwrapResults `json:"keyunwrapresults"`
	}
	wrapResults struct {
		Annotation numbers `json:"annotation"`
	}
	unwrapResults struct {
		OptsData numbers `json:"optsdata"`
	}
)

const (
	opWrap   = "keywrap"
	opUnwrap = "keyunwrap"
)

// maxMessage bounds a message, in bytes. A layer's private options have some
// hundreds.
const maxMessage = 64 << 10

// parseInput decodes a message for one of the operations. Unknown names are
// ignored: the readers of this protocol do, and its writers rely on it.
func parseInput(data []byte, op string) (*input, error) {
	if len(data) > maxMessage {
		return nil, fmt.Errorf("message: expected at most %d bytes, got %d", maxMessage, len(data))
	}
	in := &input{}
	if err := json.Unmarshal(data, in); err != nil {
		// What it says could be about a secret.
		return nil, errors.New("message: not the JSON of the key provider protocol")
	}
	if in.Operation != op {
		return nil, fmt.Errorf("op: expected %q, got %.32q", op, in.Operation)
	}
	return in, nil
}

// looseBytes is a byte string in any of the protocol's forms.
type looseBytes []byte

// UnmarshalJSON implements json.Unmarshaler.
func (b *looseBytes) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '[' {
		var list []uint16
		if err := json.Unmarshal(data, &list); err != nil {
			return err
		}
		*b = make([]byte, len(list))
		for i, n := range list {
			if n > 255 {
				return errors.New("expected numbers up to 255")
			}
			(*b)[i] = byte(n)
		}
		return nil
	}
	var text *string
	if err := json.Unmarshal(data, &text); err != nil || text == nil {
		*b = nil
		return err
	}
	if len(*text) > 0 && (*text)[0] == '{' { // no letter of base64
		*b = []byte(*text)
		return nil
	}
	raw, err := base64.StdEncoding.DecodeString(*text)
	*b = raw
	return err
}

// numbers is a byte string that is written as an array of numbers; nil as null.
type numbers []byte

// MarshalJSON implements json.Marshaler.
func (b numbers) MarshalJSON() ([]byte, error) {
	if b == nil {
		return []byte("null"), nil
	}
	list := make([]uint16, len(b))
	for i, n := range b {
		list[i] = uint16(n)
	}
	return json.Marshal(list)
}
