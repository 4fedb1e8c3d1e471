// Package elfstub makes shared libraries that do nothing, for libraries that a
// program names but does not use in the guest: a loader must find them, with
// every function that the program imports. Each of the functions fails with
// ENOSYS.
//
// What is made depends on the programs' bytes alone. The format is that of the
// System V ABI, with the GNU extension of symbol versions (Linux Standard Base,
// "Symbol Versioning").
package elfstub

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"
)

// maxSymbols bounds what a program may import from one library.
const maxSymbols = 4096

// code is what every function does on x86-64:
//
//	endbr64; mov $-ENOSYS, %rax; ret
var code = [...]byte{0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0xc7, 0xc0, 0xda, 0xff, 0xff, 0xff, 0xc3}

const (
	headerSize  = 64
	programSize = 56
	symbolSize  = 24
	pageSize    = 4096
	segments    = 4
	// firstVersion is the index of the first version in a symbol's entry: 1 is
	// that of the library itself, which symbols without a version have.
	firstVersion = 2
)

// Library returns a library of that name for the x86-64 programs, which must
// import something from it, and nothing but functions.
func Library(soname string, programs ...[]byte) ([]byte, error) {
	symbols, err := imports(soname, programs)
	if err != nil {
		return nil, fmt.Errorf("stub of %s: %w", soname, err)
	}
	l := &layout{soname: soname, symbols: symbols, strings: []byte{0}}
	for _, s := range symbols {
		l.names = append(l.names, l.name(s.Name))
	}
	return l.file(), nil
}

// imports returns what the programs import from the library, sorted.
func imports(soname string, programs [][]byte) ([]elf.Symbol, error) {
	var all []elf.Symbol
	for _, data := range programs {
		f, err := elf.NewFile(bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		symbols, err := f.DynamicSymbols()
		if err != nil {
			return nil, err
		}
		for _, s := range symbols {
			switch {
			case s.Section != elf.SHN_UNDEF || s.Library != soname:
			case elf.ST_TYPE(s.Info) != elf.STT_FUNC && elf.ST_TYPE(s.Info) != elf.STT_NOTYPE:
				return nil, fmt.Errorf("%s is no function but %s", s.Name, elf.ST_TYPE(s.Info))
			default:
				all = append(all, elf.Symbol{Name: s.Name, Version: s.Version})
			}
		}
	}
	slices.SortFunc(all, func(a, b elf.Symbol) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version))
	})
	all = slices.Compact(all)
	if len(all) == 0 {
		return nil, fmt.Errorf("nothing imports functions of it")
	}
	if len(all) > maxSymbols {
		return nil, fmt.Errorf("%d functions, expected at most %d", len(all), maxSymbols)
	}
	return all, nil
}

// layout puts the file together.
type layout struct {
	soname   string
	symbols  []elf.Symbol
	names    []uint32 // of the symbols, in strings
	strings  []byte
	versions []string
}

// name returns a string's place in the string table.
func (l *layout) name(s string) uint32 {
	at := len(l.strings)
	l.strings = append(append(l.strings, s...), 0)
	return uint32(at)
}

// file is one read-only segment with tables and code, and one with the dynamic
// section, into which loaders write.
func (l *layout) file() []byte {
	const start = headerSize + segments*programSize
	hash, versions := l.hash(), l.versionIndices()
	defined := l.definitions()
	soname := l.name(l.soname)
	symbolsAt := uint64(start)
	hashAt := symbolsAt + uint64(len(l.symbols)+1)*symbolSize
	definedAt := align(hashAt+uint64(len(hash)), 8)
	versionsAt := definedAt + uint64(len(defined))
	stringsAt := versionsAt + uint64(len(versions))
	codeAt := align(stringsAt+uint64(len(l.strings)), 16)
	end := codeAt + uint64(len(code))
	dynamicAt := align(end, pageSize)
	dynamic := encode([][2]uint64{
		{uint64(elf.DT_SONAME), uint64(soname)}, {uint64(elf.DT_HASH), hashAt},
		{uint64(elf.DT_STRTAB), stringsAt}, {uint64(elf.DT_STRSZ), uint64(len(l.strings))},
		{uint64(elf.DT_SYMTAB), symbolsAt}, {uint64(elf.DT_SYMENT), symbolSize},
		{uint64(elf.DT_VERSYM), versionsAt}, {uint64(elf.DT_VERDEF), definedAt}, {uint64(elf.DT_VERDEFNUM), uint64(len(l.versions) + 1)},
		{uint64(elf.DT_NULL), 0},
	})
	size := dynamicAt + uint64(len(dynamic))
	out := make([]byte, size)
	segment := func(kind elf.ProgType, flags elf.ProgFlag, at, size, align uint64) elf.Prog64 {
		return elf.Prog64{Type: uint32(kind), Flags: uint32(flags), Off: at, Vaddr: at, Paddr: at, Filesz: size, Memsz: size, Align: align}
	}
	for at, part := range map[uint64][]byte{
		0: encode(elf.Header64{
			Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:  uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
			Phoff: headerSize, Ehsize: headerSize, Phentsize: programSize, Phnum: segments,
		}),
		headerSize: encode([segments]elf.Prog64{
			segment(elf.PT_LOAD, elf.PF_R|elf.PF_X, 0, end, pageSize),
			segment(elf.PT_LOAD, elf.PF_R|elf.PF_W, dynamicAt, uint64(len(dynamic)), pageSize),
			segment(elf.PT_DYNAMIC, elf.PF_R|elf.PF_W, dynamicAt, uint64(len(dynamic)), 8),
			segment(elf.PT_GNU_STACK, elf.PF_R|elf.PF_W, 0, 0, 16),
		}),
		symbolsAt: l.table(codeAt), hashAt: hash, definedAt: defined, versionsAt: versions, stringsAt: l.strings, codeAt: code[:], dynamicAt: dynamic,
	} {
		copy(out[at:], part)
	}
	return out
}

// table is the symbol table: behind an empty one, all symbols are the same code.
func (l *layout) table(codeAt uint64) []byte {
	table := []elf.Sym64{{}}
	for _, name := range l.names {
		// Any section's number says that the symbol is defined.
		table = append(table, elf.Sym64{Name: name, Info: elf.ST_INFO(elf.STB_GLOBAL, elf.STT_FUNC), Shndx: 1, Value: codeAt, Size: uint64(len(code))})
	}
	return encode(table)
}

// hash is a hash table with one bucket, in which every symbol is.
func (l *layout) hash() []byte {
	n := uint32(len(l.symbols))
	table := []uint32{1, n + 1, 1, 0}
	for i := uint32(1); i <= n; i++ {
		table = append(table, (i+1)%(n+1))
	}
	return encode(table)
}

// versionIndices has the version of each symbol, and gathers the versions.
func (l *layout) versionIndices() []byte {
	indices := []uint16{0}
	for _, s := range l.symbols {
		if s.Version == "" {
			indices = append(indices, 1)
			continue
		}
		at := slices.Index(l.versions, s.Version)
		if at < 0 {
			at = len(l.versions)
			l.versions = append(l.versions, s.Version)
		}
		indices = append(indices, uint16(firstVersion+at))
	}
	return encode(indices)
}

// definition is Elf64_Verdef with its one Elf64_Verdaux.
type definition struct {
	Version, Flags, Index, Count uint16
	Hash, Aux, Next              uint32
	Name, NextName               uint32
}

func (l *layout) definitions() []byte {
	const size, aux, base = 28, 20, 1 // VER_FLG_BASE
	all := []definition{{Version: 1, Flags: base, Index: 1, Count: 1, Hash: nameHash(l.soname), Aux: aux, Name: l.name(l.soname)}}
	for i, v := range l.versions {
		all[i].Next = size
		all = append(all, definition{Version: 1, Index: uint16(firstVersion + i), Count: 1, Hash: nameHash(v), Aux: aux, Name: l.name(v)})
	}
	return encode(all)
}

// nameHash is the System V ABI's hash of a name.
func nameHash(name string) uint32 {
	var h uint32
	for _, c := range []byte(name) {
		h = h<<4 + uint32(c)
		high := h & 0xf0000000
		h ^= high >> 24
		h &^= high
	}
	return h
}

func align(n, to uint64) uint64 { return (n + to - 1) / to * to }

// encode returns fixed-size data in the file's byte order.
func encode(data any) []byte {
	out, err := binary.Append(nil, binary.LittleEndian, data)
	if err != nil {
		return nil // only for data of no fixed size, which there is none of here
	}
	return out
}
