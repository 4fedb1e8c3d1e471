package elfstub

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const source = `
#include <errno.h>
#include <stdio.h>
long first(void), second(int);
int main(void)
{
	printf("%d %d\n", first() == -ENOSYS, second(7) == -ENOSYS);
	return 0;
}
`

const real = `
long first(void) { return 1; }
long second(int n) { return n; }
`

// build makes a program and the library that it is linked with.
func build(t *testing.T) (program, library string) {
	t.Helper()
	dir := t.TempDir()
	library, program = filepath.Join(dir, "libreal.so.3"), filepath.Join(dir, "program")
	script := filepath.Join(dir, "versions")
	for name, text := range map[string]string{
		script: "REAL_1 { global: first; };\nREAL_2.5 { global: second; } REAL_1;\n", filepath.Join(dir, "real.c"): real, filepath.Join(dir, "program.c"): source,
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"-shared", "-fPIC", "-Wl,-soname,libreal.so.3", "-Wl,--version-script=" + script, "-o", library, filepath.Join(dir, "real.c")},
		{"-o", program, filepath.Join(dir, "program.c"), library, "-Wl,-z,now"},
	} {
		if out, err := exec.CommandContext(t.Context(), "gcc", args...).CombinedOutput(); err != nil {
			if _, missing := exec.LookPath("gcc"); missing != nil {
				t.Skipf("not supported here: %v (Debian packages gcc and libc6-dev)", missing)
			}
			t.Fatalf("gcc: %v: %s", err, out)
		}
	}
	return program, library
}

// TestLoaded: the machine's loader takes the stub for the library.
func TestLoaded(t *testing.T) {
	t.Parallel()
	program, library := build(t)
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	run := func() string {
		cmd := exec.CommandContext(t.Context(), program)
		cmd.Env = []string{"LD_LIBRARY_PATH=" + filepath.Dir(library), "LD_BIND_NOW=1"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if got := run(); got != "0 0\n" {
		t.Fatalf("with the real library: %q", got)
	}
	stub, err := Library("libreal.so.3", data)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(library, stub, 0o600); err != nil {
		t.Fatal(err)
	}
	// A loader that misses a version says so on standard error.
	if got := run(); got != "1 1\n" {
		t.Errorf("with the stub: %q", got)
	}
	again, err := Library("libreal.so.3", data, data)
	if err != nil || !bytes.Equal(stub, again) {
		t.Errorf("not the same bytes again: %v", err)
	}
	f, err := elf.NewFile(bytes.NewReader(stub))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range f.Progs {
		if p.Flags&(elf.PF_W|elf.PF_X) == elf.PF_W|elf.PF_X {
			t.Errorf("a segment is writable and executable: %v", p)
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	program, _ := build(t)
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, soname, want string
		program            []byte
	}{
		{"not named", "libother.so.1", "stub of libother.so.1: nothing imports functions of it", data},
		{"no ELF", "libreal.so.3", "bad magic", []byte("#!/bin/sh and so on")},
		{"cut short", "libreal.so.3", "stub of libreal.so.3: ", data[:len(data)/2]},
	} {
		if _, err := Library(tc.soname, tc.program); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, expected %q", tc.name, err, tc.want)
		}
	}
}

// FuzzLibrary: programs come from packages whose digest is known; still nothing
// they hold may bring the builder down.
func FuzzLibrary(f *testing.F) {
	f.Add([]byte("\x7fELF"), "libc.so.6")
	if data, err := os.ReadFile("/bin/true"); err == nil {
		f.Add(data, "libc.so.6")
	}
	f.Fuzz(func(t *testing.T, program []byte, soname string) {
		stub, err := Library(soname, program)
		if err != nil {
			return
		}
		if _, err := elf.NewFile(bytes.NewReader(stub)); err != nil {
			t.Error(err)
		}
	})
}
