// Package jsonscan reads JSON that has the form machines write, at a fraction
// of the cost of encoding/json: evidence spells certificates as thousands of
// numbers, which go through several checks each.
//
// Everything here may give up. A caller then takes the long way, whose verdict
// and error count; what is accepted here, the long way accepts too, with the
// same result. Names with escapes, for one, are always left to it.
package jsonscan

import (
	"bytes"
	"unicode/utf8"
)

// maxNames bounds the members of an object whose names are compared pairwise.
const maxNames = 64

// Plain reports whether doc is exactly one JSON value (RFC 8259) in UTF-8,
// nested at most maxDepth deep, with no name twice in an object. False may
// also mean that it would take a closer look.
func Plain(doc []byte, maxDepth int) bool {
	if !utf8.Valid(doc) {
		return false
	}
	r := Reader{doc: doc}
	return r.check(maxDepth) && r.End()
}

// Members calls f with each member of an object that is known to be valid
// JSON: its name, and its value as a part of doc. It returns false, perhaps
// after some calls, where it gives up.
func Members(doc []byte, f func(name string, value []byte)) bool {
	r := Reader{doc: doc}
	return r.Object(func(name []byte) bool {
		r.space()
		start := r.at
		if !r.skip() {
			return false
		}
		f(string(name), doc[start:r.at:r.at])
		return true
	}) && r.End()
}

// Reader goes through a document. After a method has returned false the
// reader's place is undefined.
type Reader struct {
	doc []byte
	at  int
}

// NewReader returns a reader of doc, which does not change meanwhile.
func NewReader(doc []byte) *Reader { return &Reader{doc: doc} }

// End reports whether nothing but white space is left.
func (r *Reader) End() bool {
	r.space()
	return r.at == len(r.doc)
}

func (r *Reader) space() {
	for r.at < len(r.doc) {
		switch r.doc[r.at] {
		case ' ', '\t', '\n', '\r':
			r.at++
		default:
			return
		}
	}
}

// next is the byte after white space, 0 at the end.
func (r *Reader) next() byte {
	if r.at < len(r.doc) && r.doc[r.at] > ' ' {
		return r.doc[r.at]
	}
	r.space()
	if r.at < len(r.doc) {
		return r.doc[r.at]
	}
	return 0
}

// take takes a byte after white space.
func (r *Reader) take(c byte) bool {
	if r.next() != c {
		return false
	}
	r.at++
	return true
}

// Null takes a null.
func (r *Reader) Null() bool { return r.next() == 'n' && r.word("null") }

// AtObject reports whether an object begins here. It takes nothing.
func (r *Reader) AtObject() bool { return r.next() == '{' }

func (r *Reader) word(s string) bool {
	if !bytes.HasPrefix(r.doc[r.at:], []byte(s)) {
		return false
	}
	r.at += len(s)
	return true
}

// Object reads an object: member has to read the value. Names are without
// escapes and different from each other.
func (r *Reader) Object(member func(name []byte) bool) bool {
	if !r.take('{') {
		return false
	}
	if r.take('}') {
		return true
	}
	var room [16][]byte
	names := room[:0]
	for {
		if r.next() != '"' {
			return false
		}
		name, plain := r.Text()
		if !plain || len(names) == maxNames {
			return false
		}
		for _, n := range names {
			if bytes.Equal(n, name) {
				return false
			}
		}
		names = append(names, name)
		if !r.take(':') || !member(name) {
			return false
		}
		if !r.take(',') {
			return r.take('}')
		}
	}
}

// Array reads an array: element has to read an element.
func (r *Reader) Array(element func() bool) bool {
	if !r.take('[') {
		return false
	}
	if r.take(']') {
		return true
	}
	for {
		if !element() {
			return false
		}
		if !r.take(',') {
			return r.take(']')
		}
	}
}

// Text reads a string without escapes. It does not look at its UTF-8.
func (r *Reader) Text() ([]byte, bool) {
	if !r.take('"') {
		return nil, false
	}
	start := r.at
	for i, c := range r.doc[start:] {
		switch {
		case c == '"':
			r.at = start + i + 1
			return r.doc[start : start+i], true
		case c == '\\' || c < ' ':
			return nil, false
		}
	}
	return nil, false
}

// Uint reads a whole number of at most limit, without sign, fraction or
// exponent.
func (r *Reader) Uint(limit uint64) (uint64, bool) {
	r.next()
	start, n := r.at, uint64(0)
	for r.at < len(r.doc) && r.doc[r.at] >= '0' && r.doc[r.at] <= '9' {
		d := uint64(r.doc[r.at] - '0')
		if n > (limit-d)/10 || d > limit {
			return 0, false
		}
		n = n*10 + d
		r.at++
	}
	digits := r.at - start
	if digits == 0 || digits > 1 && r.doc[start] == '0' {
		return 0, false
	}
	return n, r.number()
}

// number reports whether a number ends here.
func (r *Reader) number() bool {
	if r.at == len(r.doc) {
		return true
	}
	switch r.doc[r.at] {
	case ',', ']', '}', ' ', '\t', '\n', '\r':
		return true
	}
	return false
}

// Bytes reads an array of numbers from 0 to 255 and appends them to out, at
// most limit of them.
func (r *Reader) Bytes(out []byte, limit int) ([]byte, bool) {
	if !r.take('[') {
		return nil, false
	}
	if r.take(']') {
		return out, true
	}
	for range limit {
		r.next()
		start, n := r.at, 0
		for r.at < len(r.doc) && r.doc[r.at]-'0' <= 9 {
			if r.at-start == 3 {
				return nil, false
			}
			n = n*10 + int(r.doc[r.at]-'0')
			r.at++
		}
		if digits := r.at - start; digits == 0 || n > 0xFF || digits > 1 && r.doc[start] == '0' {
			return nil, false
		}
		out = append(out, byte(n))
		if r.at < len(r.doc) && r.doc[r.at] == ',' {
			r.at++
			continue
		}
		if !r.take(',') {
			return out, r.take(']')
		}
	}
	return nil, false
}

// check reads any value, for [Plain].
func (r *Reader) check(depth int) bool {
	switch r.next() {
	case '{':
		return depth > 0 && r.Object(func([]byte) bool { return r.check(depth - 1) })
	case '[':
		return depth > 0 && (r.smallNumbers() || r.Array(func() bool { return r.check(depth - 1) }))
	case '"':
		return r.checkText()
	case 't':
		return r.word("true")
	case 'f':
		return r.word("false")
	case 'n':
		return r.word("null")
	}
	return r.checkNumber()
}

// smallNumbers passes an array of one or more whole numbers of up to three
// digits without white space, or else stays where it is.
func (r *Reader) smallNumbers() bool {
	digits := 0
	for i, c := range r.doc[r.at+1:] {
		switch {
		case c-'0' <= 9:
			if digits++; digits > 3 {
				return false
			}
			continue
		case digits == 0 || digits > 1 && r.doc[r.at+1+i-digits] == '0':
			return false
		case c == ',':
			digits = 0
			continue
		case c == ']':
			r.at += 1 + i + 1
			return true
		}
		return false
	}
	return false
}

func (r *Reader) checkNumber() bool {
	if r.at < len(r.doc) && r.doc[r.at] == '-' {
		r.at++
	}
	start := r.at
	if digits := r.digits(); digits == 0 || digits > 1 && r.doc[start] == '0' {
		return false
	}
	if r.at < len(r.doc) && r.doc[r.at] == '.' {
		r.at++
		if r.digits() == 0 {
			return false
		}
	}
	if r.at < len(r.doc) && (r.doc[r.at] == 'e' || r.doc[r.at] == 'E') {
		r.at++
		if r.at < len(r.doc) && (r.doc[r.at] == '+' || r.doc[r.at] == '-') {
			r.at++
		}
		if r.digits() == 0 {
			return false
		}
	}
	return r.number()
}

func (r *Reader) digits() int {
	start := r.at
	for r.at < len(r.doc) && r.doc[r.at]-'0' <= 9 {
		r.at++
	}
	return r.at - start
}

// checkText reads a string with or without escapes. A surrogate escape of
// either kind is left to the long way.
func (r *Reader) checkText() bool {
	for r.at++; r.at < len(r.doc); r.at++ {
		switch c := r.doc[r.at]; {
		case c == '"':
			r.at++
			return true
		case c < ' ':
			return false
		case c == '\\':
			r.at++
			if r.at == len(r.doc) || bytes.IndexByte([]byte(`"\/bfnrt`), r.doc[r.at]) < 0 {
				return false
			}
		}
	}
	return false
}

// skip passes a value of a document that is known to be valid.
func (r *Reader) skip() bool {
	switch r.next() {
	case 0:
		return false
	case '"':
		return r.skipText()
	case '{', '[':
	default:
		for r.at < len(r.doc) && !r.number() {
			r.at++
		}
		return true
	}
	for depth := 0; r.at < len(r.doc); {
		switch r.doc[r.at] {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				r.at++
				return true
			}
		case '"':
			if !r.skipText() {
				return false
			}
			continue
		}
		r.at++
	}
	return false
}

func (r *Reader) skipText() bool {
	for r.at++; r.at < len(r.doc); r.at++ {
		switch r.doc[r.at] {
		case '"':
			r.at++
			return true
		case '\\':
			r.at++
		}
	}
	return false
}
