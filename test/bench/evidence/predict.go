package main

import (
	"context"
	"crypto/sha512"
	"encoding/binary"
	"math/rand/v2"

	"github.com/coffer-project/coffer/tee/measure"
)

// Sizes of what is measured: OVMF's, a distribution's kernel and a guest's
// initrd.
const (
	firmwareSize = 4 << 20
	kernelSize   = 12 << 20
	initrdSize   = 20 << 20
)

// predict compares predictions with one SHA-384 over everything that they are
// computed from. A prediction reads firmware page by page with a header each,
// SNP hashes kernel and initrd with SHA-256, TDX with SHA-384.
func (b *bench) predict(ctx context.Context) error {
	random := rand.NewChaCha8([32]byte{1})
	content := func(size int) []byte {
		data := make([]byte, size)
		_, _ = random.Read(data) // never fails
		return data
	}
	firmware, kernel, initrd := firmwareImage(content(firmwareSize)), kernelImage(content(kernelSize)), content(initrdSize)
	const cmdline = "console=ttyS0 root=/dev/vda"
	sum := func(parts ...[]byte) func(context.Context) error {
		return func(context.Context) error {
			h := sha512.New384()
			for _, p := range parts {
				_, _ = h.Write(p) // never fails
			}
			h.Sum(nil)
			return nil
		}
	}
	snp := measure.Launch{Firmware: firmware, Kernel: kernel, Initrd: initrd, Cmdline: cmdline, VCPUs: 4, VCPUModel: "EPYC-Milan"}
	tdx := measure.TDXLaunch{
		Firmware: firmware, Kernel: kernel, Initrd: initrd, Cmdline: cmdline, Memory: 4 << 30, VCPUs: 4, Profile: measure.ProfileOVMF2024,
		RTMR0: &measure.TDXPlatform{Loader: measure.Blob{Data: content(4 << 10)}, RSDP: measure.Blob{Data: content(36)}, Tables: measure.Blob{Data: content(128 << 10)}},
	}
	alone := tdx
	alone.Kernel, alone.Initrd, alone.Cmdline = nil, nil, ""
	run := func(l measure.TDXLaunch) func(context.Context) error {
		return func(context.Context) error { _, err := measure.TDX(l); return err }
	}
	err := b.compare(ctx, "predict",
		&contender{name: "sha384", run: sum(firmware, kernel, initrd)},
		&contender{name: "snp", run: func(context.Context) error { _, err := measure.SNP(snp); return err }, target: maxPredict},
		&contender{name: "tdx", run: run(tdx), target: maxPredict},
	)
	if err != nil {
		return err
	}
	return b.compare(ctx, "predict-firmware",
		&contender{name: "sha384", run: sum(firmware)},
		&contender{name: "snp", run: func(context.Context) error { _, err := measure.FirmwareDigest(firmware); return err }},
		&contender{name: "tdx", run: run(alone)},
	)
}

// firmwareImage makes firmware of content by the metadata that edk2's OvmfPkg
// declares for SEV (OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm, the addresses
// of the AmdSev build) and TDX (IntelTdxMetadata.asm, the sections of the build
// of 4 MiB), and the table that says where (Ia16/ResetVectorVtf0.asm).
func firmwareImage(image []byte) []byte {
	le := binary.LittleEndian
	const (
		sevOffset, tdxOffset = 0x554, 0x800
		variables            = 0x84000
		code                 = firmwareSize - variables
		bottom               = 1<<32 - firmwareSize
	)
	sev := words(nil, 0x56455341, 16+12*7, 1, 7) // "ASEV", size, version, sections
	for _, s := range [][3]uint32{
		{0x800000, 0x9000, 1}, {0x80a000, 0x3000, 1}, {0x80d000, 0x1000, 2}, {0x80e000, 0x1000, 3}, {0x80f000, 0x1000, 4}, {0x810000, 0x1000, 0x10}, {0x811000, 0xf000, 1},
	} {
		sev = words(sev, s[:]...)
	}
	copy(image[len(image)-sevOffset:], sev)

	tdx := append(guid(0xe9eaf9f3, 0x168e, 0x44d5, 0xa8eb7f4d8738f6ae), words(nil, 0x46564454, 16+32*6, 1, 6)...) // "TDVF"
	for _, s := range []struct {
		offset, size uint32
		address, mem uint64
		kind, flags  uint32
	}{
		{variables, code, bottom + variables, code, 0, measure.TDVFExtend},
		{0, variables, bottom, variables, 1, 0},
		{0, 0, 0x810000, 0x10000, 3, 0},
		{0, 0, 0x80b000, 0x2000, 3, 0},
		{0, 0, 0x809000, 0x2000, 2, 0},
		{0, 0, 0x800000, 0x6000, 3, 0},
	} {
		tdx = words(tdx, s.offset, s.size)
		tdx = le.AppendUint64(le.AppendUint64(tdx, s.address), s.mem)
		tdx = words(tdx, s.kind, s.flags)
	}
	copy(image[len(image)-tdxOffset-16:], tdx)

	var table []byte
	entry := func(id []byte, data ...uint32) {
		length := len(table) // the footer's is that of all
		if data != nil {
			length = 4 * len(data)
		}
		table = append(le.AppendUint16(words(table, data...), uint16(length+18)), id...)
	}
	entry(guid(0xe47a6535, 0x984a, 0x4798, 0x865e4685a7bf8ec2), tdxOffset)
	entry(guid(0xdc886566, 0x984a, 0x4798, 0xa75e5585a7bf67cc), sevOffset)
	entry(guid(0x7255371f, 0x3a3b, 0x4b04, 0x927b1da6efa8d454), 0x810c00, 0x400)
	entry(guid(0x00f771de, 0x1a7e, 0x4fcb, 0x890e68c77e2fb44e), 0x80b004)
	entry(guid(0x96b582de, 0x1fb2, 0x45f7, 0xbaeaa366c55a082d))
	copy(image[len(image)-32-len(table):], table)
	return image
}

// kernelImage gives content the headers of a Linux kernel with an EFI stub: PE
// (Microsoft, "PE Format") with two sections and the setup header of the x86
// boot protocol 2.15.
func kernelImage(image []byte) []byte {
	const header, first = 0x400, 0x2000
	le := binary.LittleEndian
	clear(image[:header])
	copy(image, "MZ")
	image[0x3c] = 0x40
	copy(image[0x40:], "PE\x00\x00")
	le.PutUint16(image[0x44:], 0x8664)
	image[0x46] = 2   // sections
	image[0x54] = 160 // size of the optional header
	le.PutUint16(image[0x58:], 0x20b)
	le.PutUint32(image[0x58+60:], header)
	image[0x58+108] = 6 // directories
	for i, s := range [][2]uint32{{header, first}, {header + first, uint32(len(image)) - header - first}} {
		copy(image[0xf8+40*i+16:], words(nil, s[1], s[0]))
	}
	copy(image[0x202:], "HdrS")
	le.PutUint16(image[0x206:], 0x20f)
	image[0x211] = 1 // loaded high
	le.PutUint32(image[0x22c:], 0x7fffffff)
	image[0x236] = 0x7f
	return image
}

func words(out []byte, list ...uint32) []byte {
	for _, w := range list {
		out = binary.LittleEndian.AppendUint32(out, w)
	}
	return out
}

// guid encodes a GUID as EFI does.
func guid(a uint32, b, c uint16, d uint64) []byte {
	le := binary.LittleEndian
	return binary.BigEndian.AppendUint64(le.AppendUint16(le.AppendUint16(le.AppendUint32(nil, a), b), c), d)
}
