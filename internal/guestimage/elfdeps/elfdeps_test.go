package elfdeps_test

import (
	"debug/elf"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/guestimage/elfdeps"
	"github.com/coffer-project/coffer/internal/guestimage/elftest"
)

const loader = "/lib64/ld-linux-x86-64.so.2"

func TestClosure(t *testing.T) {
	t.Parallel()
	libs := map[string]elftest.Object{
		"libb.so.1": {Needed: []string{"liba.so.2", "libc.so.6"}},
		"liba.so.2": {Needed: []string{"libc.so.6", "libb.so.1"}},
		"libc.so.6": {Needed: []string{"ld-linux-x86-64.so.2"}},

		"ld-linux-x86-64.so.2": {},
	}
	lookup := func(name string) ([]byte, error) {
		o, ok := libs[name]
		if !ok {
			return nil, errors.New("no " + name)
		}
		return o.Bytes(), nil
	}
	program := elftest.Object{Interp: loader, Needed: []string{"libb.so.1", "libc.so.6"}}
	gotLoader, got, err := elfdeps.Closure(program.Bytes(), lookup)
	if err != nil {
		t.Fatal(err)
	}
	if gotLoader != loader {
		t.Errorf("loader: got %q", gotLoader)
	}
	want := []string{"ld-linux-x86-64.so.2", "liba.so.2", "libb.so.1", "libc.so.6"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	program.Needed = append(program.Needed, "libmissing.so")
	if _, _, err := elfdeps.Closure(program.Bytes(), lookup); err == nil || err.Error() != "no libmissing.so" {
		t.Errorf("missing library: got %v", err)
	}
}

func TestReadRefuses(t *testing.T) {
	t.Parallel()
	for want, data := range map[string][]byte{
		"not an ELF file":             []byte("#!/bin/sh\n"),
		"expected a 64-bit x86-64":    elftest.Object{Machine: elf.EM_AARCH64}.Bytes(),
		"own library search path":     elftest.Object{Runpath: "$ORIGIN"}.Bytes(),
		"interpreter name too long":   elftest.Object{Interp: strings.Repeat("x", 5000)}.Bytes(),
		"not an ELF file: unexpected": elftest.Object{}.Bytes()[:70],
	} {
		if _, err := elfdeps.Read(data); err == nil || !strings.Contains(err.Error(), strings.TrimSuffix(want, ": unexpected")) {
			t.Errorf("expected %q, got %v", want, err)
		}
	}
}
