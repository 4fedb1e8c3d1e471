package console

import (
	"fmt"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestTailKeepsWhatALogNeeds(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, in string
		want     []string
	}{
		{"lines", "one\ntwo\r\n", []string{"one", "two"}},
		{"unfinished line", "one\nProbing EDD... ", []string{"one", "Probing EDD... "}},
		{"only the last", "1\n2\n3\n4\n5\n", []string{"2", "3", "4", "5"}},
		{"ring and unfinished", "1\n2\n3\n4\n5\n6", []string{"2", "3", "4", "5", "6"}},
		{"empty lines dropped", "a\n\n  \n\r\nb\n", []string{"a", "b"}},
		{"colours", "\x1b[1;31mred\x1b[0m\n", []string{"red"}},
		{"title", "\x1b]0;owned\x07x\x1b]2;again\x1b\\y\n", []string{"xy"}},
		{"two-byte escape", "\x1bcreset\n", []string{"reset"}},
		{"unfinished escape ends with its line", "\x1b]0;never ended\nnext\n", []string{"next"}},
		{"C1 controls", "a\xc2\x9b31mb\n", []string{"a31mb"}},
		{"not UTF-8", "a\xff\xfeb\n", []string{"a\uFFFDb"}},
		{"controls", "a\x00\x08b\tc\n", []string{"ab c"}},
		{"long", strings.Repeat("x", 5000) + "\nnext\n", []string{strings.Repeat("x", maxLineBytes) + "…", "next"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tail := NewTail(4, nil)
			for i := range len(tc.in) { // one byte at a time: state must survive any split
				_, _ = fmt.Fprint(tail, tc.in[i:i+1])
			}
			if d := cmp.Diff(tc.want, tail.Lines()); d != "" {
				t.Errorf("lines (-want +got):\n%s", d)
			}
		})
	}
}

func TestTailCallsBackInOrder(t *testing.T) {
	t.Parallel()
	var got []string
	tail := NewTail(1, func(line string) { got = append(got, line) })
	_, _ = fmt.Fprint(tail, "a\nb\nc")
	if d := cmp.Diff([]string{"a", "b"}, got); d != "" {
		t.Errorf("callback (-want +got):\n%s", d)
	}
	if got := tail.String(); got != "b\nc" {
		t.Errorf("String() = %q", got)
	}
}

func TestExcerpt(t *testing.T) {
	t.Parallel()
	reason := "[    2.5] Kernel panic - not syncing: Attempted to kill init!"
	for _, tc := range []struct {
		name     string
		in, want []string
	}{
		{"none", nil, nil},
		{"few", []string{"a"}, []string{"a"}},
		{"last", []string{"a", "b", "c"}, []string{"b", "c"}},
		{"panic", []string{"a", "agent: no memory", reason, "CPU: 0", "RIP", "Offset"}, []string{"agent: no memory", reason}},
	} {
		if d := cmp.Diff(tc.want, Excerpt(tc.in, 2)); d != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, d)
		}
	}
}

func FuzzTail(f *testing.F) {
	f.Add([]byte("hello\n\x1b[31mred\x1b]0;t\x07\xff\xc2\x9b"))
	f.Add([]byte(strings.Repeat("\x1b[", 2000)))
	f.Fuzz(func(t *testing.T, in []byte) {
		tail := NewTail(3, nil)
		if n, err := tail.Write(in); n != len(in) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
		lines := tail.Lines()
		if len(lines) > 4 {
			t.Fatalf("%d lines", len(lines))
		}
		for _, l := range lines {
			if !utf8.ValidString(l) || strings.ContainsFunc(l, unicode.IsControl) {
				t.Fatalf("line %q", l)
			}
			if len(l) > 3*maxLineBytes+8 {
				t.Fatalf("line of %d bytes", len(l))
			}
		}
	})
}
