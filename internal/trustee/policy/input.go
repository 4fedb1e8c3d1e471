package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Input is a document prepared for evaluation. It may be used for several
// evaluations.
type Input struct{ value ast.Value }

// NewInput prepares a JSON document. It makes Rego values of the text without
// Go values in between, which takes half the time of OPA's own functions: an
// evaluation takes about as long as reading its input, so this counts.
func NewInput(doc json.RawMessage) (Input, error) {
	if !json.Valid(doc) {
		return Input{}, errors.New("policy input: is no JSON")
	}
	r := reader{rest: doc}
	v, err := r.value()
	if err != nil {
		return Input{}, fmt.Errorf("policy input: %w", err)
	}
	return InputOf(v)
}

// reader reads JSON that is known to be well-formed.
type reader struct{ rest []byte }

// next skips white space and returns the byte after it without taking it.
func (r *reader) next() byte {
	for i, c := range r.rest {
		if c != ' ' && c != '\n' && c != '\t' && c != '\r' {
			r.rest = r.rest[i:]
			return c
		}
	}
	return 0
}

func (r *reader) value() (ast.Value, error) {
	switch r.next() {
	case '{':
		return r.object()
	case '[':
		return r.array()
	case '"':
		s, err := r.text()
		return ast.String(s), err
	case 't':
		r.rest = r.rest[len("true"):]
		return ast.Boolean(true), nil
	case 'f':
		r.rest = r.rest[len("false"):]
		return ast.Boolean(false), nil
	case 'n':
		r.rest = r.rest[len("null"):]
		return ast.Null{}, nil
	}
	end := bytes.IndexAny(r.rest, ",]} \n\t\r")
	if end < 0 {
		end = len(r.rest)
	}
	// Refuses exponents with which comparing panics and adding never ends: the
	// token may be another attestation service's, and the number a guest's.
	n, err := ast.NumberChecked(string(r.rest[:end]))
	r.rest = r.rest[end:]
	return n, err
}

// object takes the last of members that repeat, as encoding/json does.
func (r *reader) object() (ast.Value, error) {
	out := ast.NewObject()
	r.rest = r.rest[1:]
	for r.next() != '}' {
		name, err := r.text()
		if err != nil {
			return nil, err
		}
		r.next()
		r.rest = r.rest[1:] // the colon
		v, err := r.value()
		if err != nil {
			return nil, err
		}
		out.Insert(ast.StringTerm(name), ast.NewTerm(v))
		if r.next() == ',' {
			r.rest = r.rest[1:]
		}
	}
	r.rest = r.rest[1:]
	return out, nil
}

func (r *reader) array() (ast.Value, error) {
	var out []*ast.Term
	r.rest = r.rest[1:]
	for r.next() != ']' {
		v, err := r.value()
		if err != nil {
			return nil, err
		}
		out = append(out, ast.NewTerm(v))
		if r.next() == ',' {
			r.rest = r.rest[1:]
		}
	}
	r.rest = r.rest[1:]
	return ast.NewArray(out...), nil
}

// text reads a string. One with escapes or broken UTF-8 is left to
// encoding/json.
func (r *reader) text() (string, error) {
	r.next()
	for i := 1; i < len(r.rest); i++ {
		switch r.rest[i] {
		case '\\':
			i++
		case '"':
			quoted := r.rest[:i+1]
			r.rest = r.rest[i+1:]
			if plain := quoted[1:i]; bytes.IndexByte(plain, '\\') < 0 && utf8.Valid(plain) {
				return string(plain), nil
			}
			var s string
			err := json.Unmarshal(quoted, &s)
			return s, err
		}
	}
	return "", errors.New("a string does not end")
}
