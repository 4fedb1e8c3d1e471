// Package refvalues holds reference values: what an appraisal policy compares
// claims with. A reference is a list of values or one scalar; each value has
// its own description and expiry, and an expired value does not count.
package refvalues

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of one reference.
const (
	MaxName        = 256
	MaxEntries     = 4096
	MaxValue       = 4 << 10
	MaxDescription = 1 << 10
	MaxInputs      = 64 << 10
	MaxSource      = 1 << 10
)

// Version is the only version of RVPS messages and stored values.
const Version = "0.1.0"

// Entry is one value of a reference.
type Entry struct {
	// Value is any JSON value, compact.
	Value json.RawMessage `json:"value"`
	// Description is for people; denials print it beside the value.
	Description string `json:"description,omitempty"`
	// Inputs say what the value was computed from (tee/measure inputs), as JSON.
	Inputs json.RawMessage `json:"inputs,omitempty"`
	// Source says where the value came from, for example a signer and a
	// document: provenance that was verified, not a description by whoever
	// registered it.
	Source string `json:"source,omitempty"`
	// Expires is the first moment at which the value no longer counts. Zero: never.
	Expires time.Time `json:"expires,omitzero"`
	Created time.Time `json:"created,omitzero"`
}

// Valid reports whether the entry counts at the given time.
func (e Entry) Valid(now time.Time) bool { return e.Expires.IsZero() || now.Before(e.Expires) }

// Reference is a named list of values, or one scalar.
type Reference struct {
	Name string `json:"name"`
	// Scalar: policies see the value itself (for ==), not a list of it (for in).
	Scalar  bool    `json:"scalar,omitempty"`
	Entries []Entry `json:"entries"`
}

// Validate checks names, sizes and JSON; it compacts the values in place.
func (r *Reference) Validate() error {
	if err := CheckName(r.Name); err != nil {
		return err
	}
	if n := len(r.Entries); n > MaxEntries || n == 0 {
		return fmt.Errorf("reference value %q: expected 1 to %d values, got %d", r.Name, MaxEntries, n)
	}
	if r.Scalar && len(r.Entries) != 1 {
		return fmt.Errorf("reference value %q: a scalar has one value, got %d", r.Name, len(r.Entries))
	}
	for i := range r.Entries {
		e := &r.Entries[i]
		v, err := compact(e.Value, MaxValue)
		if err != nil {
			return fmt.Errorf("reference value %q: value %d: %w", r.Name, i, err)
		}
		e.Value = v
		if len(e.Description) > MaxDescription || !utf8.ValidString(e.Description) {
			return fmt.Errorf("reference value %q: value %d: description: expected at most %d bytes of UTF-8", r.Name, i, MaxDescription)
		}
		if len(e.Source) > MaxSource || !utf8.ValidString(e.Source) {
			return fmt.Errorf("reference value %q: value %d: source: expected at most %d bytes of UTF-8", r.Name, i, MaxSource)
		}
		if len(e.Inputs) == 0 || string(e.Inputs) == "null" {
			e.Inputs = nil
			continue
		}
		if e.Inputs, err = compact(e.Inputs, MaxInputs); err != nil {
			return fmt.Errorf("reference value %q: value %d: inputs: %w", r.Name, i, err)
		}
		if e.Inputs[0] != '{' {
			return fmt.Errorf("reference value %q: value %d: inputs: expected a JSON object", r.Name, i)
		}
	}
	return nil
}

// CheckName refuses names that are empty, too long, or hold anything but
// printable ASCII.
func CheckName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("reference value name: expected 1 to %d bytes, got %d", MaxName, len(name))
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return fmt.Errorf("reference value name: byte %d is %q, expected printable ASCII without spaces", i, name[i])
		}
	}
	return nil
}

func compact(v json.RawMessage, limit int) (json.RawMessage, error) {
	if len(v) == 0 {
		return nil, fmt.Errorf("is missing")
	}
	if len(v) > limit {
		return nil, fmt.Errorf("expected at most %d bytes, got %d", limit, len(v))
	}
	var b bytes.Buffer
	if err := json.Compact(&b, v); err != nil {
		return nil, fmt.Errorf("is no JSON: %w", err)
	}
	return b.Bytes(), nil
}

// Current is what a policy sees at the given time: the list of unexpired
// values, the scalar, or null when nothing is left.
func (r Reference) Current(now time.Time) json.RawMessage {
	var live []json.RawMessage
	for _, e := range r.Entries {
		if e.Valid(now) {
			live = append(live, e.Value)
		}
	}
	switch {
	case len(live) == 0:
		return json.RawMessage("null")
	case r.Scalar:
		return live[0]
	}
	out := []byte{'['}
	for i, v := range live {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, v...)
	}
	return append(out, ']')
}

// describeMax is how many values a description lists.
const describeMax = 8

// Describe is one line for people: every unexpired value with its
// description, at most a few, and what has expired.
func (r Reference) Describe(now time.Time) string {
	var live, expired []string
	for _, e := range r.Entries {
		text := plain(e.Value)
		switch {
		case !e.Valid(now):
			text += " (expired " + e.Expires.UTC().Format(time.RFC3339) + ")"
			expired = append(expired, text)
			continue
		case e.Description != "":
			text += " (" + e.Description + ")"
		}
		live = append(live, text)
	}
	if len(live) == 0 {
		if len(expired) == 0 {
			return "nothing: no value is registered"
		}
		return "nothing: every registered value has expired: " + list(expired)
	}
	return list(live)
}

func list(s []string) string {
	if more := len(s) - describeMax; more > 0 {
		s = append(slices.Clip(s[:describeMax]), fmt.Sprintf("and %d more", more))
	}
	return "[" + strings.Join(s, ", ") + "]"
}

// plain prints strings without quotes and everything else as JSON.
func plain(v json.RawMessage) string {
	var s string
	if json.Unmarshal(v, &s) == nil {
		return s
	}
	return string(v)
}

// FromJSON makes a reference of a JSON value: an array is a list, anything
// else but null a scalar.
func FromJSON(name string, v json.RawMessage) (Reference, error) {
	r := Reference{Name: name}
	v = bytes.TrimSpace(v)
	switch {
	case len(v) > 0 && v[0] == '[':
		var values []json.RawMessage
		if err := json.Unmarshal(v, &values); err != nil {
			return Reference{}, fmt.Errorf("reference value %q: %w", name, err)
		}
		for _, x := range values {
			r.Entries = append(r.Entries, Entry{Value: x})
		}
	case string(v) == "null":
		return Reference{}, fmt.Errorf("reference value %q: is null", name)
	default:
		r.Scalar, r.Entries = true, []Entry{{Value: v}}
	}
	return r, r.Validate()
}
