package jsonscan_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/jsonscan"
)

func TestPlain(t *testing.T) {
	t.Parallel()
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	tests := []struct {
		in   string
		want bool
	}{
		{`{"a":[1,-2,0.5,1e9,2E+7],"b":{"c":true,"d":false,"e":null},"f":"x\n\"","g":[],"h":{}}`, true},
		{" [ 1 , 2 ] \n", true}, {`[0,10,255,999]`, true}, {`[0,10,1000,-1]`, true}, {`[00]`, false}, {`[1,,2]`, false}, {`[1,2`, false}, {`[1,2,]`, false}, {`[,]`, false},
		{`"ä"`, true}, {`0`, true}, {`-0`, true},
		{deep(8), true}, {deep(9), false},
		{`{"a":1,"a":2}`, false}, {`{"x":{"a":1,"b":2,"a":3}}`, false},
		{`{"\u0061":1}`, false}, {`"\u0061"`, false}, {`"\x"`, false}, // the long way
		{``, false}, {` `, false}, {`{}{}`, false}, {`{} x`, false},
		{`01`, false}, {`-`, false}, {`1.`, false}, {`1e`, false}, {`+1`, false}, {`.5`, false}, {`1x`, false}, {`NaN`, false},
		{`tru`, false}, {`truex`, false}, {`nul`, false},
		{`[1,]`, false}, {`[,1]`, false}, {`[1 2]`, false}, {`[`, false}, {`]`, false},
		{`{"a"}`, false}, {`{"a":}`, false}, {`{"a":1,}`, false}, {`{a:1}`, false}, {`{`, false},
		{"\"a\nb\"", false}, {`"a`, false}, {`"a\`, false}, {"\"\xff\"", false}, {"\ufeff1", false},
	}
	for _, tt := range tests {
		if got := jsonscan.Plain([]byte(tt.in), 8); got != tt.want {
			t.Errorf("%q: got %v, want %v", tt.in, got, tt.want)
		}
	}
}

func TestMembers(t *testing.T) {
	t.Parallel()
	got := map[string]string{}
	ok := jsonscan.Members([]byte(` { "a" : [1,{"b":"]\""}] , "c":"}", "d":-1.5 ,"e":{"x":[{}]},"f":null}`), func(name string, value []byte) { got[name] = string(value) })
	want := map[string]string{"a": `[1,{"b":"]\""}]`, "c": `"}"`, "d": "-1.5", "e": `{"x":[{}]}`, "f": "null"}
	if diff := cmp.Diff(want, got); diff != "" || !ok {
		t.Errorf("%v (-want +got):\n%s", ok, diff)
	}
	for _, in := range []string{`[]`, `{"\u0061":1}`, ``} {
		if jsonscan.Members([]byte(in), func(string, []byte) {}) {
			t.Errorf("%s: not given up", in)
		}
	}
}

func TestReader(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]bool{`255`: true, `256`: false, `0`: true, `00`: false, `-1`: false, `1.0`: false, `1e1`: false, ``: false, `"1"`: false, ` 7 `: true} {
		r := jsonscan.NewReader([]byte(in))
		if _, ok := r.Uint(255); ok && r.End() != want || !ok && want {
			t.Errorf("Uint of %q: got %v", in, ok)
		}
	}
	if n, ok := jsonscan.NewReader([]byte("18446744073709551615")).Uint(1<<64 - 1); !ok || n != 1<<64-1 {
		t.Error("the greatest number", n, ok)
	}
	if _, ok := jsonscan.NewReader([]byte("18446744073709551616")).Uint(1<<64 - 1); ok {
		t.Error("beyond the greatest number")
	}
	for in, want := range map[string]bool{
		`[]`: true, `[0,1, 255 ,7]`: true, `[256]`: false, `[01]`: false, `[-1]`: false, `[1.0]`: false, `[1,]`: false, `[1`: false, `[1,2,3,4,5]`: false, `[1 2]`: false, `[0255]`: false, `[1e0]`: false,
	} {
		r := jsonscan.NewReader([]byte(in))
		if _, ok := r.Bytes(nil, 4); ok && !r.End() || ok != want {
			t.Errorf("Bytes of %q: got %v", in, ok)
		}
	}
}

// FuzzPlain: what is accepted, encoding/json accepts, and Members sees what it
// sees.
func FuzzPlain(f *testing.F) {
	for _, s := range []string{`{"a":[1,-2,0.5,1e9],"b":{"c":true},"f":"x\n"}`, ` [ ] `, `"ä"`, `{"a":1,"a":2}`, `{"a":"\\\"","b":[[]]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		if !jsonscan.Plain(doc, 16) {
			return
		}
		if !json.Valid(doc) {
			t.Fatalf("accepted %q", doc)
		}
		var want map[string]json.RawMessage
		if json.Unmarshal(doc, &want) != nil || want == nil {
			return
		}
		got := map[string]json.RawMessage{}
		if !jsonscan.Members(doc, func(name string, value []byte) { got[name] = bytes.Clone(value) }) {
			t.Fatalf("gave up on %q", doc)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", doc, diff)
		}
	})
}
