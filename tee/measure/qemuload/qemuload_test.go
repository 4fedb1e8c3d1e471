package qemuload

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
)

// kernel has a setup header and nothing else.
func kernel(protocol uint16) []byte {
	k := make([]byte, 2*MaxHeader)
	for i := range k {
		k[i] = byte(i * 7)
	}
	le := binary.LittleEndian
	copy(k[headerMagic:], "HdrS")
	le.PutUint16(k[headerVersion:], protocol)
	k[loadFlags] = loadedHigh
	le.PutUint32(k[initrdMax:], 0x7fffffff)
	le.PutUint16(k[xloadFlags:], 0x7f)
	return k
}

func load() Load {
	return Load{Machine: Q35, Memory: 512 << 20, Cmdline: "quiet", Initrd: 6000}
}

// place is where the initrd goes.
func place(t *testing.T, l Load, k []byte) uint32 {
	t.Helper()
	head, _, err := l.Kernel(k)
	if err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint32(head[ramdiskImage:])
}

func TestKernel(t *testing.T) {
	t.Parallel()
	le := binary.LittleEndian
	for _, size := range []int{headerEnd, 0x900, MaxHeader, 2 * MaxHeader} {
		k := kernel(0x20f)[:size]
		given := bytes.Clone(k)
		head, rest, err := load().Kernel(k)
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Clone(k)
		want[0x210], want[0x211] = 0xb0, 0x81
		le.PutUint32(want[0x218:], (512<<20-0x28000-1-6000)&^0xfff)
		le.PutUint32(want[0x21c:], 6000)
		le.PutUint16(want[0x224:], 0xfe00)
		le.PutUint32(want[0x228:], 0x20000)
		if len(head) > MaxHeader || !bytes.Equal(slices.Concat(head, rest), want) || !bytes.Equal(k, given) {
			t.Errorf("%d bytes: got another header, or the kernel was changed", size)
		}
		// Without an initrd its place stays what the file says, for any machine.
		head, _, err = Load{}.Kernel(k)
		copy(want[0x218:0x220], k[0x218:])
		if err != nil || !bytes.Equal(head, want[:len(head)]) {
			t.Errorf("%d bytes, no initrd: got another header, or %v", size, err)
		}
	}
}

// Where the initrd goes depends on the memory below 4 GiB: the cases of
// Dstack-TEE/dstack, dstack-mr/src/kernel.rs.
func TestInitrdAddress(t *testing.T) {
	t.Parallel()
	const split = 0xb0000000
	at := func(memory uint64) uint32 {
		return place(t, Load{Machine: Q35, Memory: memory, Initrd: 1 << 20}, kernel(0x20c))
	}
	at2G := at(2 << 30)
	if at(2<<30-4096) == at2G || at(split-4096) == at2G || at(split) != at2G || at(64<<30) != at2G {
		t.Errorf("2 GiB %#x, less %#x, below the split %#x, at the split %#x", at2G, at(2<<30-4096), at(split-4096), at(split))
	}
	l := Load{Machine: Q35, Memory: 4 << 30, Initrd: 0x1000}
	low := kernel(0x20f)
	binary.LittleEndian.PutUint16(low[xloadFlags:], 0x7d)
	if a := place(t, l, low); a != 0x7ffd6000 {
		t.Errorf("without XLF_CAN_BE_LOADED_ABOVE_4G, more room than memory: got %#x", a)
	}
	for protocol, want := range map[uint16]uint32{0x202: 0x37ffe000, 0x203: 0x1fffe000, 0x20b: 0x1fffe000, 0x20f: 0x1fffe000} {
		binary.LittleEndian.PutUint32(low[initrdMax:], 0x1fffffff)
		binary.LittleEndian.PutUint16(low[headerVersion:], protocol)
		if a := place(t, l, low); a != want {
			t.Errorf("protocol %#x: got %#x, want %#x", protocol, a, want)
		}
	}
	// xloadflags mean nothing before protocol 2.12.
	if a := place(t, l, kernel(0x20b)); a != 0x7ffd6000 {
		t.Errorf("protocol 2.11: got %#x", a)
	}
	// 3 GiB are below 4 GiB on one machine only.
	l.Memory = 3 << 30
	q35 := place(t, l, kernel(0x20f))
	if l.Machine = PC; place(t, l, kernel(0x20f)) <= q35 {
		t.Errorf("3 GiB: got %#x on q35 and not more on pc", q35)
	}
}

func TestBelowFourGiB(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		m            Machine
		memory, want uint64
	}{
		{Q35, 2 << 30, 2 << 30},
		{Q35, 0xb0000000 - 4096, 0xb0000000 - 4096},
		{Q35, 0xb0000000, 0x80000000},
		{Q35, 8 << 30, 0x80000000},
		{PC, 3 << 30, 3 << 30},
		{PC, 0xe0000000 - 4096, 0xe0000000 - 4096},
		{PC, 0xe0000000, 0xc0000000},
		{PC, 8 << 30, 0xc0000000},
	} {
		if got, err := c.m.BelowFourGiB(c.memory); err != nil || got != c.want {
			t.Errorf("%s with %#x: expected %#x, got %#x, %v", c.m, c.memory, c.want, got, err)
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*Load, []byte) []byte
		want   string
	}{
		"empty":           {func(*Load, []byte) []byte { return nil }, "kernel: expected at least"},
		"short":           {func(_ *Load, k []byte) []byte { return k[:headerEnd-1] }, "kernel: expected at least"},
		"no Linux kernel": {func(_ *Load, k []byte) []byte { k[headerMagic] = 0; return k }, "kernel: expected the Linux"},
		"old kernel":      {func(_ *Load, k []byte) []byte { k[headerVersion] = 1; return k }, "kernel: expected boot protocol"},
		"loaded low":      {func(_ *Load, k []byte) []byte { k[loadFlags] = 0x80; return k }, "kernel: expected boot protocol"},
		"video mode":      {func(l *Load, k []byte) []byte { l.Cmdline = "quiet vga=ask"; return k }, "cmdline: \"vga=\""},
		"machine":         {func(l *Load, k []byte) []byte { l.Machine = "microvm"; return k }, "machine: expected q35 or pc"},
		"no memory":       {func(l *Load, k []byte) []byte { l.Memory = acpiDataSize; return k }, "memory: expected"},
		"odd memory":      {func(l *Load, k []byte) []byte { l.Memory++; return k }, "memory: expected whole pages"},
		"large initrd":    {func(l *Load, k []byte) []byte { l.Initrd = 512<<20 - acpiDataSize - 1; return k }, "initrd: expected fewer"},
		"no place":        {func(_ *Load, k []byte) []byte { copy(k[initrdMax:], "\x00\x10\x00\x00"); k[xloadFlags] = 0; return k }, "initrd: expected fewer"},
	} {
		l, k := load(), kernel(0x20f)
		k = c.change(&l, k)
		if _, _, err := l.Kernel(k); err == nil || !strings.HasPrefix(err.Error(), strings.Split(c.want, ":")[0]) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: expected an error with %q, got %v", name, c.want, err)
		}
	}
}

func FuzzKernel(f *testing.F) {
	f.Add(kernel(0x20f), uint64(512<<20), 6000, "quiet")
	f.Add(kernel(0x202), uint64(1<<40), 1, "")
	f.Fuzz(func(t *testing.T, k []byte, memory uint64, initrd int, cmdline string) {
		if initrd < 0 {
			return
		}
		head, rest, err := Load{Machine: Q35, Memory: memory, Cmdline: cmdline, Initrd: initrd}.Kernel(k)
		if err != nil {
			return
		}
		if len(head) > MaxHeader || len(head)+len(rest) != len(k) {
			t.Fatalf("%d and %d bytes of %d", len(head), len(rest), len(k))
		}
		le := binary.LittleEndian
		if from := uint64(le.Uint32(head[ramdiskImage:])); initrd > 0 && (from+uint64(initrd) >= memory || from%pageSize != 0) {
			t.Errorf("an initrd of %#x bytes at %#x in %#x bytes of memory", initrd, from, memory)
		}
	})
}
