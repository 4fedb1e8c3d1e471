package directory

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/resource/tree"
	"github.com/coffer-project/coffer/secret"
)

// A file is a header and what the box made of the content. The header is part
// of the name that the content is sealed under.
//
//	bytes 0..3   "CFR1"
//	bytes 4..11  creation, milliseconds since 1970, big endian
//	bytes 12..15 length of the content, big endian
const (
	magic      = "CFR1"
	headerSize = 16
	// overhead is the most that a box may add to a content.
	overhead = 1 << 10

	domain  = "directory:"
	deleted = ".deleted"
	temp    = ".tmp-"
	// maxVersion has 18 digits: names of more are not ours.
	maxVersion = 999_999_999_999_999_999
)

// state is what a resource's directory holds.
type state struct {
	live   []int64 // readable versions, newest first
	stale  []string
	mark   int64 // the newest deletion's number, 0 for none
	newest int64 // the highest number in use, of whatever kind
}

// load reads a resource's directory: state.stale are the names below the newest
// deletion, half-written files and older deletions.
func load(dir *os.Root) (state, error) {
	entries, err := readDir(dir)
	if err != nil {
		return state{}, err
	}
	var s state
	type file struct {
		number int64
		name   string
	}
	var contents, marks []file
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, temp) {
			s.stale = append(s.stale, name)
			continue
		}
		digits, isMark := strings.CutSuffix(name, deleted)
		n, ok := number(digits)
		if !ok {
			continue
		}
		s.newest = max(s.newest, n)
		switch {
		case !e.Type().IsRegular(): // not ours, but its number is taken
		case isMark:
			marks = append(marks, file{n, name})
			s.mark = max(s.mark, n)
		default:
			contents = append(contents, file{n, name})
		}
	}
	for _, m := range marks {
		if m.number < s.mark {
			s.stale = append(s.stale, m.name)
		}
	}
	for _, c := range contents {
		if c.number > s.mark {
			s.live = append(s.live, c.number)
		} else {
			s.stale = append(s.stale, c.name)
		}
	}
	slices.SortFunc(s.live, func(a, b int64) int { return cmp.Compare(b, a) })
	return s, nil
}

func readDir(dir *os.Root) (_ []fs.DirEntry, err error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	entries, err := f.ReadDir(tree.MaxFolder + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(entries) > tree.MaxFolder {
		return nil, fmt.Errorf("expected at most %d files in one directory", tree.MaxFolder)
	}
	return entries, nil
}

// number reads a version's file name in its one spelling.
func number(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n >= 1 && n <= maxVersion && strconv.FormatInt(n, 10) == s
}

func fileName(version int64) string { return strconv.FormatInt(version, 10) }

func header(created time.Time, size int) []byte {
	h := append(make([]byte, 0, headerSize), magic...)
	h = binary.BigEndian.AppendUint64(h, uint64(created.UnixMilli()))
	return binary.BigEndian.AppendUint32(h, uint32(size))
}

func parseHeader(h []byte) (created time.Time, size int, err error) {
	if len(h) < headerSize || string(h[:len(magic)]) != magic {
		return time.Time{}, 0, fmt.Errorf("expected a file that begins with %q and has at least %d bytes", magic, headerSize)
	}
	return time.UnixMilli(int64(binary.BigEndian.Uint64(h[4:]))), int(binary.BigEndian.Uint32(h[12:])), nil
}

// sealedName is what a version is sealed under: its tenant, path and number,
// and its header.
func sealedName(dir string, version int64, h []byte) string {
	return domain + dir + "/" + fileName(version) + "?" + hex.EncodeToString(h[:headerSize])
}

// names lists the directories in one.
func (b *Backend) names(dir string) (_ []string, err error) {
	sub, err := b.root.OpenRoot(strings.TrimSuffix(dir, "/"))
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sub.Close()) }()
	entries, err := readDir(sub)
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out, err
}

// open opens a resource's directory; one that is not there is ErrNotFound.
func (b *Backend) open(dir string) (*os.Root, error) {
	sub, err := b.root.OpenRoot(dir)
	if missing(err) {
		return nil, resource.ErrNotFound
	}
	return sub, err
}

// rereads is how often a reader looks again after the file that it was about to
// open was removed by a writer.
const rereads = 100

func (b *Backend) get(dir string, version int64) (_ secret.Bytes, _ int64, err error) {
	sub, err := b.open(dir)
	if err != nil {
		return secret.Bytes{}, 0, err
	}
	defer func() { err = errors.Join(err, sub.Close()) }()
	for range rereads {
		s, err := load(sub)
		if err != nil {
			return secret.Bytes{}, 0, err
		}
		v := version
		if v == 0 && len(s.live) > 0 {
			v = s.live[0]
		}
		if !slices.Contains(s.live, v) {
			return secret.Bytes{}, 0, resource.ErrNotFound
		}
		data, _, err := read(sub, fileName(v), headerSize+b.o.MaxContent+overhead)
		if missing(err) {
			continue
		}
		if err != nil {
			return secret.Bytes{}, 0, fmt.Errorf("version %d: %w", v, err)
		}
		content, err := b.unseal(dir, v, data)
		if err != nil {
			return secret.Bytes{}, 0, fmt.Errorf("version %d: %w", v, err)
		}
		return content, v, nil
	}
	return secret.Bytes{}, 0, fmt.Errorf("%w: it was replaced %d times while it was read", resource.ErrUnavailable, rereads)
}

func (b *Backend) unseal(dir string, version int64, data []byte) (secret.Bytes, error) {
	_, size, err := parseHeader(data)
	if err != nil {
		return secret.Bytes{}, err
	}
	content, err := b.o.Box.Open(sealedName(dir, version, data), data[headerSize:])
	if err == nil && content.Len() != size {
		content.Clear()
		err = fmt.Errorf("expected %d bytes of content, got %d", size, content.Len())
	}
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("the file is damaged or not of this resource: %w", err)
	}
	return content, nil
}

// read reads a regular file. Nothing is followed and nothing waited for: a link
// or a pipe in the file's place is an error.
func read(dir *os.Root, name string, limit int) (_ []byte, modified time.Time, err error) {
	f, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, err
	}
	if !info.Mode().IsRegular() || info.Size() > int64(limit) && limit > headerSize {
		return nil, time.Time{}, fmt.Errorf("expected a file of at most %d bytes, got %s of %d", limit, info.Mode().Type(), info.Size())
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)))
	return data, info.ModTime(), err
}

// info describes a version by its header, which only a Get verifies.
func (b *Backend) info(dir *os.Root, p resource.Path, name string, version int64) (resource.Info, error) {
	info := resource.Info{Path: p.String(), Version: version, Size: -1, Deleted: strings.HasSuffix(name, deleted)}
	h, modified, err := read(dir, name, headerSize)
	if err != nil {
		return info, err
	}
	info.Created = modified
	if created, size, err := parseHeader(h); err == nil {
		info.Created, info.Size = created, size
	}
	return info, nil
}

func (b *Backend) infos(dir string, p resource.Path) (_ []resource.Info, err error) {
	sub, err := b.open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, sub.Close()) }()
	s, err := load(sub)
	if err != nil {
		return nil, err
	}
	out := []resource.Info{}
	add := func(name string, version int64) error {
		i, err := b.info(sub, p, name, version)
		if missing(err) {
			return nil // removed meanwhile
		}
		out = append(out, i)
		return err
	}
	for _, v := range s.live {
		if err := add(fileName(v), v); err != nil {
			return nil, err
		}
	}
	if s.mark > 0 {
		err = add(fileName(s.mark)+deleted, s.mark)
	}
	return out, err
}

func (b *Backend) newest(dir string, p resource.Path) (_ resource.Info, err error) {
	sub, err := b.open(dir)
	if err != nil {
		return resource.Info{}, err
	}
	defer func() { err = errors.Join(err, sub.Close()) }()
	for range rereads {
		s, err := load(sub)
		if err != nil {
			return resource.Info{}, err
		}
		if len(s.live) == 0 {
			return resource.Info{}, resource.ErrNotFound
		}
		info, err := b.info(sub, p, fileName(s.live[0]), s.live[0])
		if !missing(err) {
			return info, err
		}
	}
	return resource.Info{}, resource.ErrNotFound
}

// locked carries out f on a resource's directory with no other writer at it.
func (b *Backend) locked(ctx context.Context, dir string, create bool, f func(*os.Root) error) (err error) {
	if create {
		if err := b.makeDirs(dir); err != nil {
			return err
		}
	}
	sub, err := b.open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sub.Close()) }()
	lock, err := sub.Open(".")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }() // and with it the lock
	if err := flock(ctx, lock); err != nil {
		return err
	}
	return f(sub)
}
