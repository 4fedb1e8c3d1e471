package kbs

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// FuzzNewStatusError: whatever a broker answers, its error is short text that
// a terminal can take.
func FuzzNewStatusError(f *testing.F) {
	f.Add([]byte(`{"type":"t","detail":"d","reason":{"rule":"r","got":"\u001b[31m"}}`))
	f.Add([]byte("<html>\x1b]0;x\x07\u202e"))
	f.Add([]byte(strings.Repeat("\xff", 2000)))
	f.Fuzz(func(t *testing.T, body []byte) {
		s := NewStatusError("GET /x", 403, body).Error()
		if !utf8.ValidString(s) || len(s) > 8<<10 || strings.ContainsFunc(s, unicode.IsControl) {
			t.Fatalf("%d bytes: %q", len(s), s)
		}
	})
}

// FuzzParseRoots: a list of roots is wholly understood or refused.
func FuzzParseRoots(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if pool, err := ParseRoots(text); (pool == nil) == (err == nil) {
			t.Fatalf("got %v, %v", pool, err)
		}
	})
}
