// Package elftest makes small ELF files for tests: programs and libraries with
// the dependencies a test wants, and kernel modules.
package elftest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strings"
)

// Object says what an ELF file names.
type Object struct {
	// Interp is the loader; empty for none.
	Interp string
	// Needed and Runpath fill the dynamic section, which is left out when both are
	// empty.
	Needed  []string
	Runpath string
	// Modinfo is the fields of a kernel module, key=value.
	Modinfo []string
	// Machine is x86-64 unless set.
	Machine elf.Machine
}

type section struct {
	name string
	kind elf.SectionType
	link uint32
	data []byte
}

const (
	headerSize  = 64
	progSize    = 56
	sectionSize = 64
)

// Bytes returns the file: header, program headers, sections, section headers.
func (o Object) Bytes() []byte {
	sections := []section{{}, {name: ".modinfo", kind: elf.SHT_PROGBITS, data: []byte(strings.Join(o.Modinfo, "\x00") + "\x00")}}
	if len(o.Modinfo) == 0 {
		sections = sections[:1]
	}
	if len(o.Needed) > 0 || o.Runpath != "" {
		names := []byte{0}
		var dynamic bytes.Buffer
		add := func(tag elf.DynTag, value string) {
			_ = binary.Write(&dynamic, binary.LittleEndian, [2]uint64{uint64(tag), uint64(len(names))})
			names = append(append(names, value...), 0)
		}
		for _, lib := range o.Needed {
			add(elf.DT_NEEDED, lib)
		}
		if o.Runpath != "" {
			add(elf.DT_RUNPATH, o.Runpath)
		}
		dynamic.Write(make([]byte, 16))
		sections = append(sections,
			section{name: ".dynstr", kind: elf.SHT_STRTAB, data: names},
			section{name: ".dynamic", kind: elf.SHT_DYNAMIC, link: uint32(len(sections)), data: dynamic.Bytes()})
	}
	shstr := section{name: ".shstrtab", kind: elf.SHT_STRTAB}
	nameAt := []uint32{}
	for _, s := range append(sections, shstr) {
		nameAt = append(nameAt, uint32(len(shstr.data)))
		shstr.data = append(append(shstr.data, s.name...), 0)
	}
	sections = append(sections, shstr)

	progs := 0
	body := []byte{}
	if o.Interp != "" {
		progs = 1
		body = append([]byte(o.Interp), 0)
	}
	start := headerSize + progs*progSize
	offsets := make([]uint64, len(sections))
	for i, s := range sections {
		offsets[i] = uint64(start + len(body))
		body = append(body, s.data...)
	}

	machine := o.Machine
	if machine == 0 {
		machine = elf.EM_X86_64
	}
	header := elf.Header64{
		Type: uint16(elf.ET_DYN), Machine: uint16(machine), Version: 1,
		Phoff: headerSize, Shoff: uint64(start + len(body)), Ehsize: headerSize,
		Phentsize: progSize, Phnum: uint16(progs), Shentsize: sectionSize,
		Shnum: uint16(len(sections)), Shstrndx: uint16(len(sections) - 1),
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	header.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	header.Ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)

	var out bytes.Buffer
	write := func(v any) { _ = binary.Write(&out, binary.LittleEndian, v) }
	write(header)
	if progs > 0 {
		size := uint64(len(o.Interp) + 1)
		write(elf.Prog64{Type: uint32(elf.PT_INTERP), Off: uint64(start), Filesz: size, Memsz: size})
	}
	out.Write(body)
	for i, s := range sections {
		write(elf.Section64{Name: nameAt[i], Type: uint32(s.kind), Link: s.link, Off: offsets[i], Size: uint64(len(s.data))})
	}
	return out.Bytes()
}

// Module returns a kernel module that depends on others.
func Module(name, release string, depends ...string) []byte {
	return Object{Modinfo: []string{
		"license=GPL", "depends=" + strings.Join(depends, ","), "name=" + name, "vermagic=" + release + " SMP preempt",
	}}.Bytes()
}
