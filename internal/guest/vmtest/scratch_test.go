package vmtest

import (
	"bytes"
	"crypto/rand"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Magic numbers of statfs (linux/magic.h) and its flags (statfs(2)).
const (
	ext4Magic  = 0xef53
	tmpfsMagic = 0x01021994
	noSuidDev  = 2 | 4
)

const marker = "plaintext-marker"

// noPlaintext looks for the marker on the host's file.
func noPlaintext(t *testing.T, disks ...testDisk) {
	t.Helper()
	for _, d := range disks {
		if bytes.Contains(data(t, d), []byte(marker)) {
			t.Errorf("disk %s: plaintext", d.serial)
		}
	}
}

// extents calls f with every part of the host's file that was written.
func extents(t *testing.T, d testDisk, f func(file *os.File, from, to int64)) {
	t.Helper()
	file, err := os.OpenFile(d.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for at := int64(0); ; {
		from, err := unix.Seek(int(file.Fd()), at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		to, err := unix.Seek(int(file.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			t.Fatal(err)
		}
		f(file, from, to)
		at = to
	}
}

// data is what was written to the host's file.
func data(t *testing.T, d testDisk) []byte {
	t.Helper()
	var out bytes.Buffer
	extents(t, d, func(file *os.File, from, to int64) {
		b := make([]byte, to-from)
		if _, err := file.ReadAt(b, from); err != nil {
			t.Fatal(err)
		}
		out.Write(b)
	})
	return out.Bytes()
}

// flip changes a bit in every kilobyte that was written to the disk from an
// offset on.
func flip(t *testing.T, d testDisk, start int64) {
	t.Helper()
	extents(t, d, func(file *os.File, from, to int64) {
		from = max(from, start)
		if from >= to {
			return
		}
		b := make([]byte, to-from)
		if _, err := file.ReadAt(b, from); err != nil {
			t.Fatal(err)
		}
		for i := 512; i < len(b); i += 1024 {
			b[i] ^= 4
		}
		if _, err := file.WriteAt(b, from); err != nil {
			t.Fatal(err)
		}
	})
}

// The acceptance row, and a hostile host.
func TestScratch(t *testing.T) {
	_, initrd := guestImage(t)
	disk := sparse(t, "scratch", 4<<30)
	// What is on the disk before means nothing: here a superblock of
	// dm-integrity that would have the kernel recalculate tags, and noise.
	noise := make([]byte, 1<<20)
	_, _ = rand.Read(noise)
	copy(noise, "integrt\x00\x05\x0f\x20\x00\xff\xff\xff\xff")
	disk.put(t, 0, noise)
	small, tiny := sparse(t, "small", 36<<20), sparse(t, "tiny", 16<<20)
	g := startDisks(t, diskInitrd(t, initrd), disk, small, tiny)
	g.refuses(q{Do: "directory", Name: "early"}, "scratch disk: there is none")
	g.refuses(q{Do: "scratch", Serial: "../sda", Dir: "/run/scratch"}, "expected a serial number")
	g.refuses(q{Do: "scratch", Serial: "absent", Dir: "/run/scratch"}, "no disk with that serial number; it has scratch, small, tiny")
	g.refuses(q{Do: "scratch", Serial: "tiny", Dir: "/run/scratch"}, "scratch disk: disk tiny: expected at least 32 MiB, got 16777216 bytes")
	g.nothingLeft()
	a := g.must(q{Do: "scratch", Serial: "scratch", Dir: "/run/scratch"})
	t.Logf("drivers, mapping, mkfs and mount: %d ms", a.Values["ms"])
	fs := g.must(q{Do: "statfs", Path: "/run/scratch"}).Values
	if fs["type"] != ext4Magic || fs["flags"]&noSuidDev != noSuidDev {
		t.Errorf("type %#x, flags %#x", fs["type"], fs["flags"])
	}
	if share := float64(fs["free"]) / (4 << 30); share < 0.96 {
		t.Errorf("%.2f%% of the disk is free", share*100)
	} else {
		t.Logf("%.2f%% of the disk is free, %d inodes", share*100, fs["inodes"])
	}
	table := g.run("/usr/bin/dmsetup", "table")
	for _, want := range []string{"crypt capi:authenc(hmac(sha256),xts(aes))-plain64 ", " integrity:32:aead sector_size:4096", "base: 0 8 linear 1:0 0"} {
		if !strings.Contains(table, want) {
			t.Errorf("tables %q do not have %q", table, want)
		}
	}
	g.refuses(q{Do: "scratch", Serial: "small", Dir: "/run/other"}, "there is one already")
	g.refuses(q{Do: "volume", Name: "data", Serial: "scratch", Key: strings.Repeat("00", 32), Filesystem: "ext4"}, "disk scratch: it is in use already")

	g.must(q{Do: "write", Path: "/run/scratch/file", Text: marker, Size: 4 << 20})
	if got := g.must(q{Do: "read", Path: "/run/scratch/file", Offset: 1 << 20, Size: int64(len(marker))}).Text; got != marker {
		t.Errorf("read %q", got)
	}
	noPlaintext(t, disk)

	// Volumes on it are bounded, each for itself.
	group := uint32(2000)
	limited := g.must(q{Do: "ephemeral", Name: "limited", Size: 2 << 20, Group: &group}).Text
	other := g.must(q{Do: "ephemeral", Name: "other"}).Text
	g.refuses(q{Do: "write", Path: limited + "/f", Text: marker, Size: 4 << 20}, "disk quota exceeded")
	g.must(q{Do: "write", Path: other + "/f", Text: marker, Size: 4 << 20})
	if fs := g.must(q{Do: "statfs", Path: limited}).Values; fs["size"] != 2<<20 || fs["type"] != ext4Magic || fs["flags"]&noSuidDev != noSuidDev {
		t.Errorf("limited volume: %v", fs)
	}
	if st := g.must(q{Do: "stat", Path: limited}).Values; st["mode"]&0o7777 != 0o2777 || st["gid"] != 2000 || st["uid"] != 0 {
		t.Errorf("limited volume: %o of %d:%d", st["mode"], st["uid"], st["gid"])
	}
	if st := g.must(q{Do: "stat", Path: other}).Values; st["mode"]&0o7777 != 0o777 || st["gid"] != 0 {
		t.Errorf("other volume: %o of group %d", st["mode"], st["gid"])
	}
	// Memory volumes stay in memory, always with a size.
	memory := g.must(q{Do: "ephemeral", Name: "memory", Size: 1 << 20, Text: "memory"}).Text
	g.refuses(q{Do: "write", Path: memory + "/f", Text: marker, Size: 2 << 20}, "no space left on device")
	free := g.must(q{Do: "ephemeral", Name: "free", Text: "memory"}).Text
	if fs := g.must(q{Do: "statfs", Path: free}).Values; fs["type"] != tmpfsMagic || fs["size"] < 100<<20 || fs["size"] > 320<<20 {
		t.Errorf("memory volume without a size: %v", fs)
	}

	// The host flips bits: what was written cannot be read, nothing else is.
	flip(t, disk, 2<<20)
	for _, path := range []string{"/run/scratch/file", other + "/f"} {
		g.refuses(q{Do: "read", Path: path, Size: 4096}, "read "+path)
	}
	// The host cuts the disk off: what was there is not zeros now.
	g.must(q{Do: "write", Path: "/run/scratch/more", Text: marker, Size: 1 << 20})
	if err := os.Truncate(disk.path, 1<<20); err != nil {
		t.Fatal(err)
	}
	g.refuses(q{Do: "read", Path: "/run/scratch/more", Size: 4096}, "read /run/scratch/more")
	_ = g.ask(q{Do: "close"}) // what is left is written or not
	g.nothingLeft()

	// A small disk that is filled up says so.
	g.must(q{Do: "scratch", Serial: "small", Dir: "/run/scratch"})
	a = g.ask(q{Do: "write", Path: "/run/scratch/file", Text: marker, Size: 60 << 20})
	if !strings.Contains(a.Error, "no space left on device") || a.Values["written"] < 24<<20 {
		t.Errorf("%q after %d bytes", a.Error, a.Values["written"])
	}
	g.must(q{Do: "remove", Path: "/run/scratch/file"})
	g.must(q{Do: "write", Path: "/run/scratch/again", Text: marker, Size: 1 << 20})
	g.must(q{Do: "close"})
	g.must(q{Do: "close"})
	g.nothingLeft()
	if got := g.must(q{Do: "list", Path: "/run/scratch"}).Text; got != "" {
		t.Errorf("still there: %s", got)
	}
	g.off()
	noPlaintext(t, disk, small)
	if strings.Contains(g.console.String(), "panic") {
		t.Error("the kernel is not well")
	}
}
