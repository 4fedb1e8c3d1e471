// Package kmod orders Linux kernel modules so that each is loaded after those it
// depends on, from what the modules say about themselves.
package kmod

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"strings"
)

// Info is what a module says about itself in its .modinfo section.
type Info struct {
	// Name with underscores, as the kernel writes it.
	Name string
	// Depends are the modules whose symbols it uses.
	Depends []string
	// Vermagic must be the kernel's; it begins with the kernel's release.
	Vermagic string
}

// Read parses an uncompressed module (.ko).
func Read(data []byte) (Info, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return Info{}, fmt.Errorf("not a kernel module: %w", err)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return Info{}, fmt.Errorf("not a kernel module: no section .modinfo")
	}
	raw, err := section.Data()
	if err != nil {
		return Info{}, fmt.Errorf("section .modinfo: %w", err)
	}
	var info Info
	for field := range strings.SplitSeq(string(raw), "\x00") {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "name":
			info.Name = value
		case "vermagic":
			info.Vermagic = value
		case "depends":
			for dep := range strings.SplitSeq(value, ",") {
				if dep != "" {
					info.Depends = append(info.Depends, Canonical(dep))
				}
			}
		}
	}
	if info.Name == "" {
		return Info{}, fmt.Errorf("not a kernel module: .modinfo has no name")
	}
	return info, nil
}

// Layout of an appended signature (struct module_signature in the kernel's
// include/linux/module_signature.h): signature, 12 bytes that end with the signature's
// length (big endian), marker.
const (
	signatureMarker = "~Module signature appended~\n"
	signatureInfo   = 12
)

// StripSignature returns a module without the signature appended to it, or data
// itself if there is none.
func StripSignature(data []byte) ([]byte, error) {
	rest, ok := bytes.CutSuffix(data, []byte(signatureMarker))
	if !ok {
		return data, nil
	}
	if len(rest) < signatureInfo {
		return nil, fmt.Errorf("module signature: expected %d bytes before the marker, got %d", signatureInfo, len(rest))
	}
	size := uint64(binary.BigEndian.Uint32(rest[len(rest)-4:]))
	rest = rest[:len(rest)-signatureInfo]
	if size > uint64(len(rest)) {
		return nil, fmt.Errorf("module signature: its length is %d, the file has %d bytes before it", size, len(rest))
	}
	return rest[:uint64(len(rest))-size], nil
}

// Canonical is a module's name as the kernel compares it: - and _ are the same.
func Canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// Order returns the modules in wanted and everything they depend on, each after
// its dependencies, in the order of wanted where that leaves a choice. depends
// returns a module's dependencies by canonical name; ok is false for a module
// that is built into the kernel.
func Order(wanted []string, depends func(name string) (deps []string, ok bool, err error)) ([]string, error) {
	var order []string
	const visiting, done = 1, 2
	state := map[string]int{}
	var visit func(name string) error
	visit = func(name string) error {
		switch state[name] {
		case done:
			return nil
		case visiting:
			return fmt.Errorf("module %s depends on itself", name)
		}
		state[name] = visiting
		deps, ok, err := depends(name)
		if err != nil {
			return err
		}
		for _, dep := range deps {
			if err := visit(dep); err != nil {
				return fmt.Errorf("module %s: %w", name, err)
			}
		}
		state[name] = done
		if ok {
			order = append(order, name)
		}
		return nil
	}
	for _, name := range wanted {
		if err := visit(Canonical(name)); err != nil {
			return nil, err
		}
	}
	return order, nil
}
