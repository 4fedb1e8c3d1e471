package cpio_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/guestimage/cpio"
)

// TestBytes pins the archive's bytes: a change to them changes the measurement of
// every guest.
func TestBytes(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	for _, e := range []cpio.Entry{
		{Name: "d", Mode: cpio.TypeDir | 0o755},
		{Name: "d/f", Mode: cpio.TypeRegular | 0o4711, Data: []byte("12345")},
		{Name: "d/l", Mode: cpio.TypeLink | 0o777, Data: []byte("f")},
		{Name: "null", Mode: cpio.TypeChar | 0o666, Major: 1, Minor: 3},
	} {
		if err := w.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	zero := "00000000"
	//                 ino        mode       uid    gid    nlink      mtime  size       dev           rmajor     rminor     namesize   check
	want := "070701" + "00000001" + "000041ED" + zero + zero + "00000002" + zero + zero + zero + zero + zero + zero + "00000002" + zero + "d\x00" +
		"070701" + "00000002" + "000089C9" + zero + zero + "00000001" + zero + "00000005" + zero + zero + zero + zero + "00000004" + zero + "d/f\x00\x00\x00" + "12345\x00\x00\x00" +
		"070701" + "00000003" + "0000A1FF" + zero + zero + "00000001" + zero + "00000001" + zero + zero + zero + zero + "00000004" + zero + "d/l\x00\x00\x00" + "f\x00\x00\x00" +
		"070701" + "00000004" + "000021B6" + zero + zero + "00000001" + zero + zero + zero + zero + "00000001" + "00000003" + "00000005" + zero + "null\x00\x00" +
		"070701" + zero + zero + zero + zero + "00000001" + zero + zero + zero + zero + zero + zero + "0000000B" + zero + "TRAILER!!!\x00\x00\x00\x00"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
	if err := w.Add(cpio.Entry{Name: "late", Mode: cpio.TypeDir | 0o755}); err == nil {
		t.Error("an entry after the end was taken")
	}
}

func TestAddRefuses(t *testing.T) {
	t.Parallel()
	regular := uint32(cpio.TypeRegular | 0o644)
	for name, e := range map[string]cpio.Entry{
		"no usable name":           {Mode: regular},
		"no usable":                {Name: "TRAILER!!!", Mode: regular},
		"names are relative":       {Name: "/etc", Mode: regular},
		"names are relative and":   {Name: "a\x00b", Mode: regular},
		`the part ".."`:            {Name: "../x", Mode: regular},
		`the part "."`:             {Name: "./x", Mode: regular},
		`the part ""`:              {Name: "x/", Mode: regular},
		"has not been added":       {Name: "nodir/x", Mode: regular},
		"has not been added befor": {Name: "file/x", Mode: regular},
		"occurs twice":             {Name: "file", Mode: regular},
		"of no supported type":     {Name: "fifo", Mode: 0o010644},
		"bits that mean nothing":   {Name: "odd", Mode: 1 << 20},
		"have data":                {Name: "dir", Mode: cpio.TypeDir | 0o755, Data: []byte("x")},
		"a link's target":          {Name: "link", Mode: cpio.TypeLink | 0o777},
	} {
		w := cpio.NewWriter(&bytes.Buffer{})
		if err := w.Add(cpio.Entry{Name: "file", Mode: regular}); err != nil {
			t.Fatal(err)
		}
		err := w.Add(e)
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: expected %q, got %v", e.Name, name, err)
		}
		if again := w.Close(); !errors.Is(again, err) {
			t.Errorf("%q: a failed archive was closed with %v", e.Name, again)
		}
	}
}

// An archive begins at a multiple of four, behind at least four zero bytes.
func TestJoin(t *testing.T) {
	t.Parallel()
	for n := range 9 {
		first, second := bytes.Repeat([]byte("a"), n), []byte("b")
		got := cpio.Join(first, second)
		at := bytes.IndexByte(got, 'b')
		if !bytes.HasPrefix(got, first) || at%4 != 0 || at < n+4 || at > n+7 || bytes.ContainsFunc(got[n:at], func(r rune) bool { return r != 0 }) {
			t.Errorf("%d: %q", n, got)
		}
	}
	if got := cpio.Join([]byte("a")); string(got) != "a" {
		t.Errorf("one archive: %q", got)
	}
}
