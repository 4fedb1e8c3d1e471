package luks

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/secret"
)

const diskSize = 64 << 20

// disk is a sparse disk: a beginning, and zeros behind it.
type disk struct {
	start []byte
	size  int64
	// broken is where reading fails.
	broken int64
}

func (d *disk) ReadAt(b []byte, off int64) (int, error) {
	if d.broken != 0 && off+int64(len(b)) > d.broken {
		return 0, errors.New("input/output error")
	}
	if off >= d.size {
		return 0, io.EOF
	}
	n := min(int64(len(b)), d.size-off)
	clear(b[:n])
	if off < int64(len(d.start)) {
		copy(b[:n], d.start[off:])
	}
	if n < int64(len(b)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func newDisk(start []byte) *disk { return &disk{start: start, size: diskSize} }

var passphrase = secret.New([]byte("0123456789abcdef0123456789abcdef"))

func create(t testing.TB) *New {
	t.Helper()
	n, err := Create(rand.Reader, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestCreateReadUnlock(t *testing.T) {
	t.Parallel()
	n := create(t)
	h, err := Read(newDisk(n.Header), diskSize, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if h.DataOffset != NewDataOffset || len(h.UUID) != 36 || h.KDF != "argon2id" {
		t.Errorf("got %+v", h)
	}
	key, err := h.Unlock(passphrase)
	if err != nil || !key.Equal(n.Key) {
		t.Errorf("another key than the volume's, %v", err)
	}
	if _, err := h.Unlock(secret.New([]byte("wrong"))); !errors.Is(err, ErrWrongKey) {
		t.Errorf("wrong passphrase: %v", err)
	}
	for _, n := range []int{0, maxPassphrase + 1} {
		if _, err := h.Unlock(secret.New(make([]byte, n))); err == nil || !strings.Contains(err.Error(), "expected 1 to 4096 bytes") {
			t.Errorf("passphrase of %d bytes: %v", n, err)
		}
		if _, err := Create(rand.Reader, secret.New(make([]byte, n))); err == nil {
			t.Errorf("a volume with a passphrase of %d bytes", n)
		}
	}
	if _, err := Create(bytes.NewReader(make([]byte, 100)), passphrase); err == nil {
		t.Error("a volume without random numbers")
	}
}

// cryptsetup runs Debian's program.
func cryptsetup(t *testing.T, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("cryptsetup")
	if err != nil {
		if os.Getenv("COFFER_REQUIRE_VM") != "" {
			t.Fatalf("%v (Debian's package cryptsetup-bin), and COFFER_REQUIRE_VM is set", err)
		}
		t.Skipf("not supported here: %v", err)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("cryptsetup %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Real cryptsetup opens what we write, and we open what it makes of it: it
// writes the metadata anew and the key slot with a derivation of its own.
func TestCryptsetup(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, data []byte) {
		if err := os.WriteFile(path(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n := create(t)
	write("disk", n.Header)
	write("key", passphrase.Expose())
	other := secret.New([]byte("another\nkey\x00with all\xffbytes"))
	write("other", other.Expose())
	if err := os.Truncate(path("disk"), diskSize); err != nil {
		t.Fatal(err)
	}
	dump := cryptsetup(t, "luksDump", path("disk"))
	for _, want := range []string{"Version:       \t2", "cipher: aes-xts-plain64", "integrity: hmac(sha256)", "sector: 4096", "Cipher key: 512 bits", "argon2id"} {
		if !strings.Contains(strings.Join(strings.Fields(dump), " "), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("luksDump does not say %q:\n%s", want, dump)
		}
	}
	cryptsetup(t, "open", "--test-passphrase", "--key-file", path("key"), path("disk"))
	for _, tc := range []struct {
		kdf  string
		args []string
	}{
		{"argon2id", []string{"--pbkdf", "argon2id", "--pbkdf-memory", "20000", "--pbkdf-force-iterations", "5", "--pbkdf-parallel", "2"}},
		{"argon2i", []string{"--pbkdf", "argon2i", "--pbkdf-memory", "32768", "--pbkdf-force-iterations", "4", "--pbkdf-parallel", "1"}},
		{"pbkdf2", []string{"--pbkdf", "pbkdf2", "--hash", "sha512", "--pbkdf-force-iterations", "1234"}},
		{"pbkdf2", []string{"--pbkdf", "pbkdf2", "--hash", "sha256", "--pbkdf-force-iterations", "1000"}},
	} {
		cryptsetup(t, append([]string{"luksChangeKey", "--batch-mode", "--key-slot", "0", "--key-file", path("key"), path("disk"), path("other")}, tc.args...)...)
		f, err := os.Open(path("disk"))
		if err != nil {
			t.Fatal(err)
		}
		h, err := Read(f, diskSize, Limits{})
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		key, err := h.Unlock(other)
		if err != nil || !key.Equal(n.Key) || h.KDF != tc.kdf {
			t.Errorf("%s: kdf %s, %v", tc.kdf, h.KDF, err)
		}
		if err := os.Rename(path("other"), path("t")); err != nil {
			t.Fatal(err)
		}
		write("other", passphrase.Expose())
		if err := os.Rename(path("t"), path("key")); err != nil {
			t.Fatal(err)
		}
		// Back to the first one, so that every round changes the same way.
		cryptsetup(t, "luksChangeKey", "--batch-mode", "--key-slot", "0", "--key-file", path("key"), path("disk"), path("other"),
			"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
		write("key", passphrase.Expose())
		write("other", other.Expose())
	}
	// A second key slot is a second way in.
	cryptsetup(t, "luksAddKey", "--batch-mode", "--key-file", path("key"), path("disk"), path("other"), "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
	f, err := os.Open(path("disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Read(f, diskSize, Limits{}); err == nil || !strings.Contains(err.Error(), "keyslots: expected exactly one") {
		t.Errorf("two key slots: %v", err)
	}
}

// edit changes the JSON document of both copies and makes the checksums right.
func edit(t testing.TB, header []byte, change func(doc map[string]any)) []byte {
	t.Helper()
	header = bytes.Clone(header)
	for _, b := range [][]byte{header[:newHeaderSize], header[newHeaderSize : 2*newHeaderSize]} {
		raw := b[binarySize:]
		doc := map[string]any{}
		if err := json.Unmarshal(raw[:bytes.IndexByte(raw, 0)], &doc); err != nil {
			t.Fatal(err)
		}
		change(doc)
		out, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		clear(raw)
		copy(raw, out)
		reseal(b)
	}
	return header
}

// set changes the value at a path.
func set(path string, value any) func(map[string]any) {
	return func(doc map[string]any) {
		parts := strings.Split(path, ".")
		at := doc
		for _, p := range parts[:len(parts)-1] {
			next, ok := at[p].(map[string]any)
			if !ok {
				next = map[string]any{}
				at[p] = next
			}
			at = next
		}
		if value == nil {
			delete(at, parts[len(parts)-1])
		} else {
			at[parts[len(parts)-1]] = value
		}
	}
}

// again copies an entry to the number 1.
func again(section string) func(map[string]any) {
	return func(doc map[string]any) {
		m := doc[section].(map[string]any)
		m["1"] = m["0"]
	}
}

// Every field that a hostile host may change (GHSA-f5p4-p5q5-jv3h), with right
// checksums: the checksum has no key.
func TestEvilMetadata(t *testing.T) {
	t.Parallel()
	n := create(t)
	big := fmt.Sprint(uint64(1) << 63)
	for _, tc := range []struct {
		name   string
		change func(map[string]any)
		field  string
	}{
		{"two keyslots", again("keyslots"), "keyslots"},
		{"no keyslot", set("keyslots.0", nil), "keyslots"},
		{"keyslot of another number", func(d map[string]any) { d["keyslots"] = map[string]any{"7": d["keyslots"].(map[string]any)["0"]} }, "keyslots"},
		{"two segments", again("segments"), "segments"},
		{"two digests", again("digests"), "digests"},
		{"no digest", set("digests.0", nil), "digests"},
		{"a token", set("tokens.0", map[string]any{}), "tokens"},
		{"a token with a type", set("tokens.0", map[string]any{"type": "luks2-keyring"}), "tokens.0.type"},
		{"unknown section", set("extra", 1), "extra"},
		{"requirement", set("config.requirements", map[string]any{"mandatory": []string{"online-reencrypt"}}), "config.requirements"},
		{"flag", set("config.flags", []string{"allow-discards"}), "config.flags"},
		{"json size", set("config.json_size", "4096"), "config.json_size"},
		{"json size not canonical", set("config.json_size", "012288"), "config.json_size"},
		{"keyslots size", set("config.keyslots_size", big), "config.keyslots_size"},
		{"keyslots size odd", set("config.keyslots_size", "1000"), "config.keyslots_size"},
		{"keyslots beyond the disk", set("config.keyslots_size", "67108864"), "config.keyslots_size"},

		{"null cipher", set("segments.0.encryption", "cipher_null-ecb"), "segments.0.encryption"},
		{"weak cipher", set("segments.0.encryption", "aes-ecb"), "segments.0.encryption"},
		{"linear segment", set("segments.0.type", "linear"), "segments.0.type"},
		{"segment flags", set("segments.0.flags", []string{"backup-final"}), "segments.0.flags"},
		{"no integrity", set("segments.0.integrity", nil), "segments.0.integrity"},
		{"weak integrity", set("segments.0.integrity.type", "none"), "segments.0.integrity.type"},
		{"integrity crc32c", set("segments.0.integrity.type", "crc32c"), "segments.0.integrity.type"},
		{"journal encryption", set("segments.0.integrity.journal_encryption", "x"), "segments.0.integrity.journal_encryption"},
		{"journal integrity", set("segments.0.integrity.journal_integrity", "x"), "segments.0.integrity.journal_integrity"},
		{"sector size", set("segments.0.sector_size", 512), "segments.0.sector_size"},
		{"tweak", set("segments.0.iv_tweak", "8"), "segments.0.iv_tweak"},
		{"fixed size", set("segments.0.size", "4096"), "segments.0.size"},
		{"offset in the headers", set("segments.0.offset", "0"), "segments.0.offset"},
		{"offset in the key slots", set("segments.0.offset", "32768"), "segments.0.offset"},
		{"offset odd", set("segments.0.offset", "16777217"), "segments.0.offset"},
		{"offset beyond the disk", set("segments.0.offset", "68719476736"), "segments.0.offset"},
		{"offset overflows", set("segments.0.offset", "18446744073709551615"), "segments.0.offset"},
		{"offset negative", set("segments.0.offset", "-4096"), "segments.0.offset"},
		{"offset a number", set("segments.0.offset", 16777216), "segments.0.offset"},

		{"reencrypt slot", set("keyslots.0.type", "reencrypt"), "keyslots.0.type"},
		{"short key", set("keyslots.0.key_size", 64), "keyslots.0.key_size"},
		{"no key", set("keyslots.0.key_size", 0), "keyslots.0.key_size"},
		{"huge key", set("keyslots.0.key_size", 1<<30), "keyslots.0.key_size"},
		{"af type", set("keyslots.0.af.type", "none"), "keyslots.0.af.type"},
		{"no stripes", set("keyslots.0.af.stripes", 0), "keyslots.0.af.stripes"},
		{"many stripes", set("keyslots.0.af.stripes", 1<<30), "keyslots.0.af.stripes"},
		{"af hash", set("keyslots.0.af.hash", "md5"), "keyslots.0.af.hash"},
		{"area type", set("keyslots.0.area.type", "journal"), "keyslots.0.area.type"},
		{"area null cipher", set("keyslots.0.area.encryption", "cipher_null-ecb"), "keyslots.0.area.encryption"},
		{"area key size", set("keyslots.0.area.key_size", 32), "keyslots.0.area.key_size"},
		{"area in the header", set("keyslots.0.area.offset", "4096"), "keyslots.0.area.offset"},
		{"area in the data", set("keyslots.0.area.offset", "33554432"), "keyslots.0.area.offset"},
		{"area overflows", set("keyslots.0.area.offset", "9223372036854775807"), "keyslots.0.area.offset"},
		{"area small", set("keyslots.0.area.size", "4096"), "keyslots.0.area.size"},
		{"area large", set("keyslots.0.area.size", "9223372036854771712"), "keyslots.0.area.size"},
		{"priority", set("keyslots.0.priority", 0), "keyslots.0.priority"},

		{"kdf", set("keyslots.0.kdf.type", "scrypt"), "keyslots.0.kdf.type"},
		{"memory", set("keyslots.0.kdf.memory", 4<<20), "keyslots.0.kdf.memory"},
		{"memory overflows", set("keyslots.0.kdf.memory", 1<<33), "keyslots.0.kdf.memory"},
		{"no memory", set("keyslots.0.kdf.memory", 0), "keyslots.0.kdf.memory"},
		{"time", set("keyslots.0.kdf.time", 1<<31), "keyslots.0.kdf.time"},
		{"no time", set("keyslots.0.kdf.time", 0), "keyslots.0.kdf.time"},
		{"threads", set("keyslots.0.kdf.cpus", 256), "keyslots.0.kdf.cpus"},
		{"no threads", set("keyslots.0.kdf.cpus", 0), "keyslots.0.kdf.cpus"},
		{"kdf salt", set("keyslots.0.kdf.salt", ""), "keyslots.0.kdf.salt"},
		{"kdf long salt", set("keyslots.0.kdf.salt", strings.Repeat("AAAA", 100)), "keyslots.0.kdf.salt"},
		{"argon with iterations", set("keyslots.0.kdf.iterations", 1000), "keyslots.0.kdf.hash"},
		{"pbkdf2 with memory", set("keyslots.0.kdf.type", "pbkdf2"), "keyslots.0.kdf.time"},
		{"pbkdf2 endless", set("keyslots.0.kdf", map[string]any{"type": "pbkdf2", "hash": "sha256", "iterations": 4_000_000_000, "salt": "AAAAAAAAAAAAAAAA"}), "keyslots.0.kdf.iterations"},
		{"pbkdf2 hash", set("keyslots.0.kdf", map[string]any{"type": "pbkdf2", "hash": "sha1", "iterations": 1000, "salt": "AAAAAAAAAAAAAAAA"}), "keyslots.0.kdf.hash"},

		{"digest type", set("digests.0.type", "none"), "digests.0.type"},
		{"digest of no slot", set("digests.0.keyslots", []string{}), "digests.0.keyslots"},
		{"digest of another slot", set("digests.0.keyslots", []string{"1"}), "digests.0.keyslots"},
		{"digest of two segments", set("digests.0.segments", []string{"0", "1"}), "digests.0.segments"},
		{"digest hash", set("digests.0.hash", "crc32"), "digests.0.hash"},
		{"digest iterations", set("digests.0.iterations", 1<<31), "digests.0.iterations"},
		{"digest salt", set("digests.0.salt", "!"), "digests.0.salt"},
		{"empty digest", set("digests.0.digest", ""), "digests.0.digest"},
		{"short digest", set("digests.0.digest", "AAAA"), "digests.0.digest"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h, err := Read(newDisk(edit(t, n.Header, tc.change)), diskSize, Limits{})
			e, ok := errors.AsType[*FormatError](err)
			if !ok || e.Field != tc.field || h != nil {
				t.Errorf("got %+v, %v; want an error about %s", h, err, tc.field)
			}
		})
	}
	if _, err := Read(newDisk(edit(t, n.Header, func(map[string]any) {})), diskSize, Limits{}); err != nil {
		t.Errorf("unchanged: %v", err)
	}
	// What the host may change without notice costs it the volume: the key slot
	// no longer opens.
	for name, change := range map[string]func(map[string]any){
		"kdf salt": set("keyslots.0.kdf.salt", "AAAAAAAAAAAAAAAA"), "digest salt": set("digests.0.salt", "AAAAAAAAAAAAAAAA"),
		"memory": set("keyslots.0.kdf.memory", 1024), "af hash": set("keyslots.0.af.hash", "sha512"),
		"area": set("keyslots.0.area.offset", "1048576"), "digest hash": func(d map[string]any) {
			set("digests.0.hash", "sha512")(d)
			set("digests.0.digest", strings.Repeat("A", 86)+"==")(d)
		},
	} {
		h, err := Read(newDisk(edit(t, n.Header, change)), diskSize, Limits{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := h.Unlock(passphrase); !errors.Is(err, ErrWrongKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEvilBinaryHeader(t *testing.T) {
	t.Parallel()
	n := create(t)
	both := func(change func(b []byte)) func([]byte) {
		return func(b []byte) {
			change(b[:newHeaderSize])
			change(b[newHeaderSize : 2*newHeaderSize])
		}
	}
	sealed := func(change func(b []byte)) func([]byte) {
		return both(func(b []byte) { change(b); reseal(b) })
	}
	be := binary.BigEndian
	for _, tc := range []struct {
		name   string
		change func(b []byte)
		want   string
	}{
		{"version 1", func(b []byte) { be.PutUint16(b[6:], 1) }, "version: expected 2, got 1"},
		{"small header", func(b []byte) { be.PutUint64(b[8:], 4096) }, "hdr_size: expected a power of two"},
		{"huge header", func(b []byte) { be.PutUint64(b[8:], 1<<62) }, "hdr_size: expected a power of two"},
		{"odd header", func(b []byte) { be.PutUint64(b[8:], 20000) }, "hdr_size: expected a power of two"},
		{"another size", func(b []byte) { be.PutUint64(b[8:], 32<<10); reseal(b[:32<<10]) }, "primary LUKS2 header: JSON area"},
		{"secondary of another size", func(b []byte) { be.PutUint64(b[newHeaderSize+8:], 32<<10); reseal(b[newHeaderSize : 2*newHeaderSize]) }, "secondary LUKS2 header: hdr_size"},
		{"checksum", func(b []byte) { b[checksumAt]++ }, "primary LUKS2 header: csum"},
		{"checksum of the secondary", func(b []byte) { b[newHeaderSize+5000]++ }, "secondary LUKS2 header: "},
		{"algorithm", sealed(func(b []byte) { copy(b[72:], "crc32c\x00") }), "csum_alg: expected"},
		{"offset", sealed(func(b []byte) { be.PutUint64(b[256:], 512) }), "hdr_offset"},
		{"uuid", sealed(func(b []byte) { b[168] = '\n' }), "uuid: expected printable"},
		{"uuid without end", sealed(func(b []byte) { copy(b[168:], bytes.Repeat([]byte("a"), 40)) }), "uuid: expected printable"},
		{"sequence", func(b []byte) { b[newHeaderSize+23]++; reseal(b[newHeaderSize : 2*newHeaderSize]) }, "secondary header: expected the same"},
		{"secondary says another thing", func(b []byte) {
			s := b[newHeaderSize : 2*newHeaderSize]
			copy(s[binarySize:], bytes.Replace(s[binarySize:], []byte("aes-xts-plain64"), []byte("cipher_null-ecb"), 2))
			reseal(s)
		}, "secondary header: expected the same"},
		{"no JSON", sealed(func(b []byte) { clear(b[binarySize:]) }), "JSON area"},
		{"broken JSON", sealed(func(b []byte) { b[binarySize] = '[' }), "JSON area"},
		{"deep JSON", sealed(func(b []byte) { clear(b[binarySize:]); copy(b[binarySize:], strings.Repeat("[", 12000)) }), "JSON area"},
		{"JSON without end", sealed(func(b []byte) {
			for i := range b[binarySize:] {
				b[binarySize+i] = ' '
			}
		}), "JSON area: expected a final NUL"},
		{"JSON behind the JSON", sealed(func(b []byte) { b[len(b)-1] = '}' }), "JSON area: expected zeros"},
		{"name twice", sealed(func(b []byte) {
			raw := b[binarySize:]
			doc := bytes.TrimRight(raw, "\x00")
			doc = append(bytes.Clone(doc[:len(doc)-1]), []byte(`,"tokens":{}}`)...)
			copy(raw, doc)
		}), "tokens"},
	} {
		b := bytes.Clone(n.Header)
		tc.change(b)
		h, err := Read(newDisk(b), diskSize, Limits{})
		if err == nil || !strings.Contains(err.Error(), tc.want) || h != nil || errors.Is(err, ErrNotLUKS) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

// "Cannot read" and "not LUKS" are different things (Contrast PR 932).
func TestReadErrorIsNotAbsence(t *testing.T) {
	t.Parallel()
	n := create(t)
	for _, broken := range []int64{1, 5000, newHeaderSize + 100, newAreaOffset + 100} {
		_, err := Read(&disk{start: n.Header, size: diskSize, broken: broken}, diskSize, Limits{})
		if _, ok := errors.AsType[*ReadError](err); !ok || errors.Is(err, ErrNotLUKS) {
			t.Errorf("broken at %d: %v", broken, err)
		}
	}
	for _, size := range []int64{0, 1, 4096, 20000} {
		d := newDisk(n.Header)
		d.size = size
		if _, err := Read(d, size, Limits{}); err == nil {
			t.Errorf("a disk of %d bytes was read", size)
		}
		// The host says more than there is.
		if _, err := Read(d, diskSize, Limits{}); err == nil {
			t.Errorf("a disk of %d bytes, said to be larger, was read", size)
		}
	}
	if _, err := Read(newDisk(nil), diskSize, Limits{}); !errors.Is(err, ErrNotLUKS) {
		t.Errorf("blank: %v", err)
	}
	if _, err := Read(newDisk(n.Header), diskSize, Limits{MemoryKiB: 1024}); err == nil || !strings.Contains(err.Error(), "kdf.memory: expected 8 to 1024 KiB, got 8192") {
		t.Errorf("less memory: %v", err)
	}
}

func TestBlank(t *testing.T) {
	t.Parallel()
	at := func(off int, text string) []byte { return append(make([]byte, off), text...) }
	for _, tc := range []struct {
		d    *disk
		want string
	}{
		{newDisk(nil), ""},
		{&disk{size: 1 << 20}, ""},
		{&disk{size: blankStart}, ""},
		{&disk{size: blankStart + 4096}, ""},
		{&disk{size: 1 << 40}, ""},
		{newDisk(at(0, "x")), "it has data (byte 0 is not zero)"},
		{newDisk(at(0x438, "\x53\xef")), "ext2, ext3 or ext4"},
		{newDisk(at(0, "XFSB")), "XFS"},
		{newDisk(at(510, "\x55\xaa")), "partition table"},
		{newDisk(at(0, "LUKS\xba\xbe\x00\x01")), "LUKS1"},
		{newDisk(at(0, "LUKS\xba\xbe\x00\x02")), "a LUKS2 header"},
		{newDisk(at(0x4000, "SKUL\xba\xbe")), "first copy is damaged"},
		{newDisk(at(blankStart-1, "x")), "byte 17825791"},
		{newDisk(at(diskSize-1, "x")), "byte 67108863"},
		{newDisk(at(diskSize-blankEnd, "x")), "is not zero"},
		{&disk{size: diskSize, broken: 1}, "cannot be read"},
		{&disk{size: diskSize, broken: diskSize}, ""}, // reads end there
		{&disk{size: diskSize, broken: diskSize - 1}, "cannot be read"},
		{&disk{size: diskSize, broken: blankStart + 1}, "cannot be read"},
	} {
		err := Blank(tc.d, tc.d.size)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("size %d, %d bytes: %v, want %q", tc.d.size, len(tc.d.start), err, tc.want)
		}
	}
	// The host says more than there is.
	if err := Blank(&disk{size: blankStart}, diskSize); err == nil {
		t.Error("a disk that ends early is blank")
	}
}

func TestMaterialDoesNotPrint(t *testing.T) {
	t.Parallel()
	n := create(t)
	if got := fmt.Sprintf("%v %+v", n.Key, *n); !strings.Contains(got, secret.Redacted) || strings.Contains(got, fmt.Sprintf("%d", n.Key.Expose()[:8])) {
		t.Error("a volume key prints")
	}
}

func FuzzRead(f *testing.F) {
	n := create(f)
	f.Add(n.Header[binarySize : binarySize+1200])
	f.Add([]byte(`{"keyslots":{},"tokens":{},"segments":{},"digests":{},"config":{}}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		if len(doc) > newHeaderSize-binarySize {
			return
		}
		b := bytes.Clone(n.Header)
		for _, c := range [][]byte{b[:newHeaderSize], b[newHeaderSize : 2*newHeaderSize]} {
			clear(c[binarySize:])
			copy(c[binarySize:], doc)
			reseal(c)
		}
		h, err := Read(newDisk(b), diskSize, Limits{})
		if err == nil && (h.DataOffset < newAreaOffset || h.DataOffset >= diskSize || h.kdf.Memory > DefaultMemoryKiB || len(h.area) != stripes*KeySize) {
			t.Errorf("accepted %+v", h)
		}
	})
}

func FuzzBinaryHeader(f *testing.F) {
	n := create(f)
	f.Add(n.Header[:512], true)
	f.Add([]byte("LUKS\xba\xbe\x00\x02"), false)
	f.Fuzz(func(t *testing.T, start []byte, seal bool) {
		b := bytes.Clone(n.Header)
		copy(b, start[:min(len(start), binarySize)])
		if seal {
			reseal(b[:newHeaderSize])
		}
		if h, err := Read(newDisk(b), diskSize, Limits{}); err == nil && h.DataOffset != NewDataOffset {
			t.Errorf("accepted %+v", h)
		}
	})
}
