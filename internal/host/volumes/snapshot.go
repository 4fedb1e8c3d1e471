package volumes

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bounds on a volume of files. A ConfigMap or a Secret has at most 1 MiB; a
// projected volume may have several. The guest's own bounds (podpolicy) are as
// large or larger.
const (
	maxFiles     = 1024
	maxBytes     = 16 << 20
	maxEntries   = 4096 // directories and what is left out included
	maxFileName  = 512
	maxFileDepth = 8
	// maxTries is how often a volume is read again because it was replaced
	// meanwhile.
	maxTries = 16
)

// dataLink leads to the directory of the current files (kubernetes@v1.35.4
// pkg/volume/util/atomic_writer.go).
const dataLink = "..data"

// errContent marks files that cannot be sent, however often it is tried.
var errContent = errors.New("volume content")

// file is one file of a volume. Its content may be secret, and is not logged.
type file struct {
	name     string
	mode     fs.FileMode // permissions only
	uid, gid uint32
	content  []byte
}

// snapshot is all files of a volume at one time, by name, and the group of its
// directory (fsGroup).
type snapshot struct {
	files []file
	group *uint32
	// omitted are names that were left out; see [reader].
	omitted []string
}

// digest tells snapshots apart.
func (s *snapshot) digest() [sha256.Size]byte {
	h := sha256.New()
	number := func(n int) { _ = binary.Write(h, binary.BigEndian, uint64(n)) }
	for _, f := range s.files {
		number(len(f.name))
		_, _ = io.WriteString(h, f.name)
		number(int(f.mode))
		number(int(f.uid))
		number(int(f.gid))
		number(len(f.content))
		_, _ = h.Write(f.content)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// archive writes the files as a tar archive. Modes and owners are those on the
// node: the kubelet gives a token to the container's user, and files to the
// pod's group. A guest with a policy takes those of the policy.
func (s *snapshot) archive(w io.Writer) error {
	b := bufio.NewWriterSize(w, 32<<10)
	t := tar.NewWriter(b)
	for _, f := range s.files {
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: int64(f.mode), Uid: int(f.uid), Gid: int(f.gid), Size: int64(len(f.content)), Format: tar.FormatPAX}); err != nil {
			return err
		}
		if _, err := t.Write(f.content); err != nil {
			return err
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	return b.Flush()
}

// readVolume reads a volume of the kubelet's atomic writer: the files of one
// version, never of two. The writer fills a directory, lets ..data lead to it by
// one rename, and only then removes the one before; so what was read is whole
// if ..data leads to the same directory afterwards, and is read again if not.
func readVolume(dir string) (*snapshot, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // a directory
	group, err := groupOf(root)
	if err != nil {
		return nil, err
	}
	for range maxTries {
		version, err := currentVersion(root)
		if err != nil {
			return nil, err
		}
		s, err := readVersion(root, version)
		after, again := currentVersion(root)
		switch {
		case again != nil:
			return nil, again
		case after != version:
			continue // replaced meanwhile, whatever was read
		case err != nil:
			return nil, err
		}
		s.group = group
		return s, nil
	}
	return nil, fmt.Errorf("the files were replaced %d times while they were read", maxTries)
}

func currentVersion(root *os.Root) (string, error) {
	version, err := root.Readlink(dataLink)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s: the kubelet has not written the volume yet: %w", dataLink, err)
	}
	if err != nil {
		return "", err
	}
	if !strings.HasPrefix(version, "..") || len(version) < 3 || strings.ContainsRune(version, '/') {
		return "", fmt.Errorf("%s: expected a link to a directory beside it that begins with two dots, got %q", dataLink, clip(version))
	}
	return version, nil
}

func readVersion(root *os.Root, version string) (*snapshot, error) {
	dir, err := root.OpenRoot(version)
	if err != nil {
		return nil, err
	}
	defer dir.Close() //nolint:errcheck // a directory
	r := reader{root: dir}
	return r.read()
}

// groupOf is the group that the kubelet gave a volume to: it sets the group of
// the directory and the bit by which new files get it (SetVolumeOwnership).
func groupOf(root *os.Root) (*uint32, error) {
	info, err := root.Stat(".")
	if err != nil {
		return nil, err
	}
	return groupIn(info), nil
}

func groupIn(info fs.FileInfo) *uint32 {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || info.Mode()&fs.ModeSetgid == 0 {
		return nil
	}
	return new(st.Gid)
}

// reader reads the files below a directory.
type reader struct {
	root *os.Root
	// lenient leaves out what cannot be sent but can be done without (a link that
	// leads outside, or a name that the guest does not take) instead of failing.
	lenient bool

	entries int
	bytes   int64
	out     snapshot
}

func (r *reader) read() (*snapshot, error) {
	if err := r.directory(".", 0); err != nil {
		return nil, err
	}
	slices.SortFunc(r.out.files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	return &r.out, nil
}

func (r *reader) directory(name string, depth int) error {
	dir, err := r.root.Open(name)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // a directory
	for {
		entries, err := dir.ReadDir(256)
		for _, e := range entries {
			if r.entries++; r.entries > maxEntries {
				return fmt.Errorf("%w: more than %d entries", errContent, maxEntries)
			}
			if err := r.entry(path.Join(name, e.Name()), e.Type(), depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *reader) entry(name string, kind fs.FileMode, depth int) error {
	if err := checkName(name); err != nil {
		return r.omit(name, err)
	}
	switch {
	case kind.IsDir() && depth+1 < maxFileDepth:
		return r.directory(name, depth+1)
	case kind.IsDir():
		return r.omit(name, fmt.Errorf("directories are more than %d deep", maxFileDepth-1))
	case kind.IsRegular():
		return r.file(name)
	case kind == fs.ModeSymlink:
		info, err := r.root.Stat(name) // follows links inside the directory only
		if err != nil || !info.Mode().IsRegular() {
			return r.omit(name, errors.New("a link that leads to no file inside the volume"))
		}
		return r.file(name)
	}
	return fmt.Errorf("%w: file %q: %s cannot be sent to the guest, only regular files", errContent, clip(name), typeName(kind))
}

// omit leaves an entry out, or says why it cannot be sent.
func (r *reader) omit(name string, why error) error {
	if !r.lenient {
		return fmt.Errorf("%w: file %q: %w", errContent, clip(name), why)
	}
	r.out.omitted = append(r.out.omitted, clip(name))
	return nil
}

// file reads one regular file. What it is and how large is asked of the open
// file, and not believed further than the bounds.
func (r *reader) file(name string) error {
	f, err := r.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: file %q: %s cannot be sent to the guest, only regular files", errContent, clip(name), typeName(info.Mode().Type()))
	}
	if len(r.out.files) >= maxFiles {
		return fmt.Errorf("%w: file %q: more than %d files", errContent, clip(name), maxFiles)
	}
	left := maxBytes - r.bytes
	tooLarge := func(size int64) error {
		return fmt.Errorf("%w: file %q: %d bytes are more than the %d that are left of %d for a volume", errContent, clip(name), size, left, int64(maxBytes))
	}
	if info.Size() > left {
		return tooLarge(info.Size())
	}
	content, err := io.ReadAll(io.LimitReader(f, left+1))
	if err != nil {
		return fmt.Errorf("file %q: %w", clip(name), err)
	}
	if int64(len(content)) > left {
		return tooLarge(int64(len(content)))
	}
	r.bytes += int64(len(content))
	out := file{name: name, mode: info.Mode().Perm(), content: content}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		out.uid, out.gid = st.Uid, st.Gid
	}
	r.out.files = append(r.out.files, out)
	return nil
}

func typeName(m fs.FileMode) string {
	switch {
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device node"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case m&fs.ModeDir != 0:
		return "a directory"
	}
	return "something else than a file"
}

const nameCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"

// checkName: what the guest takes, podpolicy's checkFileName.
func checkName(name string) error {
	parts := strings.Split(name, "/")
	bad := slices.ContainsFunc(parts, func(p string) bool {
		return p == "" || p == "." || strings.HasPrefix(p, "..") || len(p) > maxName || strings.ContainsFunc(p, func(c rune) bool {
			return c >= 0x80 || !strings.ContainsRune(nameCharacters, c)
		})
	})
	if bad || len(name) > maxFileName || len(parts) > maxFileDepth {
		return fmt.Errorf("expected letters, digits, ., _ and - in a name that does not begin with two dots, at most %d directories deep and %d characters long", maxFileDepth-1, maxFileName)
	}
	return nil
}
