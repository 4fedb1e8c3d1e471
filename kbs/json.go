package kbs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/coffer-project/coffer/internal/jsonscan"
)

// object is a decoded JSON object, by exact member name.
type object struct {
	what    string
	members map[string]json.RawMessage
}

// parseObject checks a whole document (see checkJSON) and returns its top
// level object. what names the document in errors.
func parseObject(what string, data []byte, maxBytes int) (object, error) {
	if err := checkJSON(data, maxBytes); err != nil {
		return object{}, fmt.Errorf("kbs: %s: %w", what, err)
	}
	return subObject(what, data)
}

// subObject reads an object out of a document that checkJSON has passed. Its
// members are parts of that document.
func subObject(what string, data []byte) (object, error) {
	o := object{what: what}
	if k := kind(data); k != "object" {
		return o, fmt.Errorf("kbs: %s: expected a JSON object, got %s", what, k)
	}
	o.members = make(map[string]json.RawMessage)
	if jsonscan.Members(data, func(name string, value []byte) { o.members[name] = value }) {
		return o, nil
	}
	o.members = nil
	if err := json.Unmarshal(data, &o.members); err != nil {
		return o, fmt.Errorf("kbs: %s: %w", what, err)
	}
	return o, nil
}

// get returns a member. A member that differs from name only in case is an
// error: another implementation could take it for this one.
func (o object) get(name string) (json.RawMessage, bool, error) {
	for k := range o.members {
		if k != name && strings.EqualFold(k, name) {
			return nil, false, fmt.Errorf("kbs: %s: member %q must be spelled %q", o.what, k, name)
		}
	}
	raw, ok := o.members[name]
	return raw, ok, nil
}

// must returns a required member.
func (o object) must(name string) (json.RawMessage, error) {
	raw, ok, err := o.get(name)
	if err != nil {
		return nil, err
	}
	if !ok || kind(raw) == "null" {
		return nil, fmt.Errorf("kbs: %s: member %q is missing", o.what, name)
	}
	return raw, nil
}

// str returns a required string.
func (o object) str(name string) (string, error) {
	raw, err := o.must(name)
	if err != nil {
		return "", err
	}
	return o.asString(name, raw)
}

// optStr returns an optional string, "" when it is absent or null.
func (o object) optStr(name string) (string, error) {
	raw, ok, err := o.get(name)
	if err != nil || !ok || kind(raw) == "null" {
		return "", err
	}
	return o.asString(name, raw)
}

func (o object) asString(name string, raw json.RawMessage) (string, error) {
	if k := kind(raw); k != "string" {
		return "", fmt.Errorf("kbs: %s: member %q: expected a string, got %s", o.what, name, k)
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", fmt.Errorf("kbs: %s: member %q: %w", o.what, name, err)
	}
	return s, nil
}

// sub returns a required member that is an object.
func (o object) sub(name string) (object, error) {
	raw, err := o.must(name)
	if err != nil {
		return object{}, err
	}
	return subObject(o.what+": "+name, raw)
}

// kind names the type of a JSON value by its first byte.
func kind(raw []byte) string {
	raw = bytes.TrimLeft(raw, " \t\r\n")
	if len(raw) == 0 {
		return "nothing"
	}
	switch raw[0] {
	case '{':
		return "object"
	case '[':
		return "array"
	case '"':
		return "string"
	case 't', 'f':
		return "boolean"
	case 'n':
		return "null"
	}
	return "number"
}

// checkJSON accepts exactly one JSON value of at most maxBytes bytes in valid
// UTF-8, nested at most maxDepth deep, with no member name twice in an
// object. It exists because encoding/json keeps the last of two equal members
// where other implementations keep the first.
func checkJSON(data []byte, maxBytes int) error {
	if len(data) > maxBytes {
		return fmt.Errorf("document has %d bytes, the limit is %d", len(data), maxBytes)
	}
	if jsonscan.Plain(data, maxDepth) {
		return nil // nearly always; what follows finds out what is wrong
	}
	if !utf8.Valid(data) {
		return errors.New("document is not valid UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	// One entry per open container; nil stands for an array.
	var open []map[string]struct{}
	atName := false
	for first := true; first || len(open) > 0; first = false {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return errors.New("document is empty or ends early")
		}
		if err != nil {
			return err
		}
		switch t := tok.(type) {
		case json.Delim:
			switch t {
			case '{':
				open = append(open, map[string]struct{}{})
			case '[':
				open = append(open, nil)
			default:
				open = open[:len(open)-1]
			}
			if len(open) > maxDepth {
				return fmt.Errorf("document is nested more than %d deep", maxDepth)
			}
			atName = len(open) > 0 && open[len(open)-1] != nil
			continue
		case string:
			if atName {
				names := open[len(open)-1]
				if _, dup := names[t]; dup {
					return fmt.Errorf("member %q occurs twice", clip(t, 64))
				}
				names[t] = struct{}{}
				atName = false
				continue
			}
		}
		atName = len(open) > 0 && open[len(open)-1] != nil
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("document is followed by more data")
	}
	return nil
}

// marshal is json.Marshal without HTML escapes, which other implementations
// do not write and byte-exact headers must not have.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// clip shortens s to at most n bytes for a message and replaces what is not
// printable, so that the other side cannot write control characters into our
// logs.
func clip(s string, n int) string {
	cut := len(s) > n
	if cut {
		s = s[:n]
	}
	s = strings.Map(func(r rune) rune {
		switch {
		case r == utf8.RuneError, r < 0x20, r >= 0x7f && r < 0xa0:
			return ' '
		case r >= 0x200b && r <= 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
			return ' '
		}
		return r
	}, s)
	if cut {
		s += "…"
	}
	return s
}
