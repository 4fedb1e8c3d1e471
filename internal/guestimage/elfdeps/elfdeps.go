// Package elfdeps reads what an ELF program needs at run time: its loader and
// the shared libraries it names, directly or through another library. It reads
// files as data and runs nothing, so the building machine's own libraries and
// loader configuration have no influence.
package elfdeps

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"slices"
)

// Needs is what one ELF file names.
type Needs struct {
	// Loader is the absolute path of the program interpreter; empty for a
	// static program and for a library.
	Loader string
	// Libraries are the DT_NEEDED names, in the file's order.
	Libraries []string
}

// Read returns what an x86-64 ELF file needs.
func Read(data []byte) (Needs, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return Needs{}, fmt.Errorf("not an ELF file: %w", err)
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 {
		return Needs{}, fmt.Errorf("expected a 64-bit x86-64 ELF file, got %v %v", f.Class, f.Machine)
	}
	libs, err := f.ImportedLibraries()
	if err != nil {
		return Needs{}, fmt.Errorf("dynamic section: %w", err)
	}
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		path, err := f.DynString(tag)
		if err != nil {
			return Needs{}, fmt.Errorf("dynamic section: %w", err)
		}
		if len(path) > 0 {
			// The closure would miss what the path leads to.
			return Needs{}, fmt.Errorf("has its own library search path %q, which is not supported", path)
		}
	}
	needs := Needs{Libraries: libs}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		const longest = 4096
		if p.Filesz > longest {
			return Needs{}, errors.New("interpreter name too long")
		}
		name := make([]byte, p.Filesz)
		if _, err := p.ReadAt(name, 0); err != nil {
			return Needs{}, fmt.Errorf("interpreter name: %w", err)
		}
		needs.Loader = string(bytes.TrimRight(name, "\x00"))
	}
	return needs, nil
}

// Closure returns the loader of program and the names of all libraries it
// needs, sorted. lookup returns a library's content by its DT_NEEDED name.
func Closure(program []byte, lookup func(name string) ([]byte, error)) (loader string, libraries []string, err error) {
	first, err := Read(program)
	if err != nil {
		return "", nil, err
	}
	seen := map[string]bool{}
	queue := first.Libraries
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		libraries = append(libraries, name)
		data, err := lookup(name)
		if err != nil {
			return "", nil, err
		}
		needs, err := Read(data)
		if err != nil {
			return "", nil, fmt.Errorf("library %s: %w", name, err)
		}
		queue = append(queue, needs.Libraries...)
	}
	slices.Sort(libraries)
	return first.Loader, libraries, nil
}
