package vmtest

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/luks"
	"github.com/coffer-project/coffer/secret"
)

// hostCryptsetup runs cryptsetup on this machine, which needs no device-mapper
// for it.
func hostCryptsetup(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("cryptsetup", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("cryptsetup %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func keyFile(t *testing.T, key []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, key, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (d testDisk) clone(t *testing.T, serial string) testDisk {
	t.Helper()
	c := testDisk{serial, filepath.Join(t.TempDir(), serial+".img")}
	if err := os.WriteFile(c.path, d.content(t), 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// evilVolume is a volume whose dm-integrity superblock is changed.
func evilVolume(t *testing.T, from testDisk, serial string, change func(sb []byte)) testDisk {
	t.Helper()
	d := from.clone(t, serial)
	sb := d.content(t)[luks.NewDataOffset:][:512]
	change(sb)
	d.put(t, luks.NewDataOffset, sb)
	return d
}

func TestVolumes(t *testing.T) {
	_, image := guestImage(t)
	initrd := diskInitrd(t, image)
	raw := make([]byte, 32)
	_, _ = rand.Read(raw)
	raw[5], raw[6] = '\n', 0 // a key is bytes
	key, path := hex.EncodeToString(raw), keyFile(t, raw)
	wrong := strings.Repeat("ab", 32)
	group := uint32(3000)

	blank, device := sparse(t, "data", 64<<20), sparse(t, "device", luks.MinDiskSize)
	foreign := sparse(t, "cryptsetup", 64<<20)
	plain := sparse(t, "plain", 48<<20)
	hostCryptsetup(t, "luksFormat", "--batch-mode", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--sector-size", "4096", plain.path, path)
	junk, old, tiny := sparse(t, "junk", 64<<20), sparse(t, "old", 64<<20), sparse(t, "tiny", 8<<20)
	junk.put(t, 63<<20, []byte{1})
	old.put(t, 0x438, []byte("\x53\xef"))
	refused := []testDisk{plain, junk, old, tiny}
	var before [][32]byte
	for _, d := range refused {
		before = append(before, sha256.Sum256(d.content(t)))
	}
	volume := func(name, serial, key string) q {
		return q{Do: "volume", Name: name, Serial: serial, Key: key, Filesystem: "ext4"}
	}

	g := startDisks(t, initrd, append(refused, blank, device, foreign)...)
	g.refuses(volume("a", "data", "0011"), "volume a: key: expected 32 to 512 bytes, got 2")
	g.refuses(volume("../a", "data", key), "name: expected")
	g.refuses(q{Do: "volume", Name: "a", Serial: "data", Key: key, Filesystem: "xfs"}, "filesystem: expected ext4")
	g.refuses(volume("a", "plain", key), "volume a: disk plain: the disk is refused: LUKS2 header: segments.0.integrity: expected hmac(sha256), got none")
	g.refuses(volume("a", "junk", key), "volume a: disk junk: the disk is refused: the disk is not blank: it has data (byte 66060288 is not zero)", "only a disk of zeros")
	g.refuses(volume("a", "old", key), "it has an ext2, ext3 or ext4 file system")
	g.refuses(volume("a", "tiny", key), "a volume needs 20 MiB, the disk has 8388608 bytes")
	g.nothingLeft()

	r := volume("data", "data", key)
	r.Group = &group
	a := g.must(r)
	t.Logf("a new volume: %d ms", a.Values["ms"])
	if a.Values["new"] != 1 || !strings.HasPrefix(a.Text, "/dev/dm-") || !strings.HasSuffix(a.Text, " /run/disks/data") {
		t.Errorf("got %+v", a)
	}
	if again := g.must(r); again.Text != a.Text {
		t.Errorf("the second time: %+v", again)
	}
	g.refuses(volume("data", "junk", key), "it is open on disk data already")
	g.refuses(volume("other", "data", key), "disk data: it is in use already")
	if fs := g.must(q{Do: "statfs", Path: "/run/disks/data"}).Values; fs["type"] != ext4Magic || fs["flags"]&noSuidDev != noSuidDev {
		t.Errorf("%v", fs)
	}
	if st := g.must(q{Do: "stat", Path: "/run/disks/data"}).Values; st["mode"]&0o7777 != 0o2775 || st["gid"] != 3000 {
		t.Errorf("%o of group %d", st["mode"], st["gid"])
	}
	g.must(q{Do: "write", Path: "/run/disks/data/file", Text: marker, Size: 1 << 20})
	if table := g.run("/usr/bin/dmsetup", "table", "coffer-volume-data-integrity"); !strings.Contains(table, " 0 32 J ") {
		t.Errorf("table %q", table)
	}

	// A bare device can be read everywhere.
	bare := g.must(q{Do: "volume", Name: "device", Serial: "device", Key: key})
	node, dir, _ := strings.Cut(bare.Text, " ")
	if dir != "" {
		t.Errorf("a bare device is mounted at %s", dir)
	}
	if got := g.must(q{Do: "read", Path: node, Offset: 1 << 20, Size: 4096}).Text; got != strings.Repeat("\x00", 4096) {
		t.Error("a new device is not zero")
	}
	g.must(q{Do: "write", Path: node, Offset: 8192, Text: marker})

	// cryptsetup's own volume, with cryptsetup's defaults for the rest.
	g.must(q{Do: "write", Path: "/run/key", Text: string(raw[:5])})
	g.must(q{Do: "write", Path: "/run/key2", Text: strings.Repeat("k", 64)})
	disk := "/dev/vdg"
	g.run("/usr/bin/cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--cipher", "aes-xts-plain64", "--integrity", "hmac-sha256", "--integrity-no-wipe",
		"--sector-size", "4096", "--pbkdf-memory", "32768", "--pbkdf-force-iterations", "4", "--key-file", "/run/key2", disk)
	g.run("/usr/bin/cryptsetup", "open", "--key-file", "/run/key2", disk, "theirs")
	g.must(q{Do: "write", Path: "/dev/mapper/theirs", Text: strings.Repeat("\x00", 4096), Size: 1 << 20})
	g.run("/usr/bin/mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-O", "^resize_inode,^sparse_super,sparse_super2", "-E", "num_backup_sb=0,nodiscard", "/dev/mapper/theirs")
	g.run("/usr/bin/cryptsetup", "close", "theirs")
	theirs := g.must(volume("theirs", "cryptsetup", hex.EncodeToString(bytes.Repeat([]byte("k"), 64))))
	if theirs.Values["new"] != 0 {
		t.Error("a volume of cryptsetup's was made anew")
	}
	g.must(q{Do: "write", Path: "/run/disks/theirs/file", Text: marker, Size: 1 << 20})
	g.must(q{Do: "close"})
	g.nothingLeft()
	// And the other way round: cryptsetup reads what we wrote.
	g.run("/usr/bin/cryptsetup", "open", "--key-file", "/run/key2", disk, "theirs")
	if out := g.run("/usr/bin/e2fsck", "-f", "-n", "/dev/mapper/theirs"); !strings.Contains(out, "files") {
		t.Error(out)
	}
	g.run("/usr/bin/cryptsetup", "close", "theirs")
	g.off()

	all := append(refused, blank, device, foreign)
	noPlaintext(t, all...)
	for i, d := range refused {
		if sha256.Sum256(d.content(t)) != before[i] {
			t.Errorf("disk %s was refused and written", d.serial)
		}
	}
	if dump := hostCryptsetup(t, "luksDump", blank.path); !strings.Contains(dump, "integrity: hmac(sha256)") {
		t.Errorf("luksDump:\n%s", dump)
	}
	hostCryptsetup(t, "open", "--test-passphrase", "--key-file", path, blank.path)
	if strings.Contains(g.console.String(), key) || strings.Contains(g.console.String(), hex.EncodeToString(raw[16:])) {
		t.Error("the console has the key")
	}

	t.Run("another machine", func(t *testing.T) { reopen(t, initrd, blank, device, key, wrong) })
}

// reopen opens the volumes in another virtual machine, and altered ones.
func reopen(t *testing.T, initrd string, data, device testDisk, key, wrong string) {
	flipped, swapped, half := data.clone(t, "flipped"), data.clone(t, "swapped"), data.clone(t, "half")
	flip(t, flipped, luks.NewDataOffset+8<<20)
	other, err := luks.Create(rand.Reader, secret.New(bytes.Repeat([]byte{0xab}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	swapped.put(t, 0, other.Header) // the key slot of another volume
	if err := os.Truncate(half.path, luks.NewDataOffset+1<<20); err != nil {
		t.Fatal(err)
	}
	recalc := evilVolume(t, data, "recalc", func(sb []byte) { sb[24] |= 2 })
	journal := evilVolume(t, data, "journal", func(sb []byte) { copy(sb[12:], "\xff\xff\xff\xff") })
	secondary := data.clone(t, "secondary")
	secondary.put(t, 16<<10+5000, []byte("x"))
	volume := func(name, serial, key string) q {
		return q{Do: "volume", Name: name, Serial: serial, Key: key, Filesystem: "ext4"}
	}

	g := startDisks(t, initrd, data, device, flipped, swapped, half, recalc, journal, secondary)
	g.refuses(volume("a", "data", wrong), "volume a: disk data: the disk is refused: the key does not open this volume")
	g.refuses(volume("a", "swapped", key), "the key does not open this volume")
	g.refuses(volume("a", "half", key), "superblock of dm-integrity: data sectors: expected")
	g.refuses(volume("a", "recalc", key), "superblock of dm-integrity: flags: expected 0 or 8, got 10")
	g.refuses(volume("a", "journal", key), "superblock of dm-integrity: journal sections: expected 1 to 512")
	g.refuses(volume("a", "secondary", key), "secondary LUKS2 header: csum")
	// Right header, right key, another volume's data: nothing of it can be read.
	if a := g.ask(volume("swapped", "swapped", wrong)); !strings.Contains(a.Error, "mount the file system") {
		t.Errorf("data of another volume: %+v", a)
	}
	g.nothingLeft()

	if a := g.must(volume("data", "data", key)); a.Values["new"] != 0 {
		t.Error("a volume was made anew")
	}
	if got := g.must(q{Do: "read", Path: "/run/disks/data/file", Size: int64(len(marker))}).Text; got != marker {
		t.Errorf("read %q", got)
	}
	node, _, _ := strings.Cut(g.must(q{Do: "volume", Name: "device", Serial: "device", Key: key}).Text, " ")
	if got := g.must(q{Do: "read", Path: node, Offset: 8192, Size: int64(len(marker))}).Text; got != marker {
		t.Errorf("read %q", got)
	}
	// What was altered is an error, never other data.
	if a := g.ask(volume("flipped", "flipped", key)); a.Error == "" {
		if got := g.ask(q{Do: "read", Path: "/run/disks/flipped/file", Size: 1 << 20}); got.Error == "" && strings.ReplaceAll(got.Text, marker, "") != "" {
			t.Errorf("read %d bytes of something else", len(got.Text))
		} else {
			t.Logf("the altered file: %q", got.Error)
		}
	} else {
		t.Logf("the altered volume: %s", a.Error)
	}
	g.must(q{Do: "close"})
	g.nothingLeft()
	g.off()
}
