package volume

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Bounds of an archive of a files volume: its entries, directories included,
// and the length and depth of a name.
const (
	maxTarEntries = 8192
	maxNameLength = 512
	maxNameDepth  = 8
)

// dataLink is the link that all names lead through. Kubernetes' own volumes
// have the same shape, so programs that watch it for changes work.
const dataLink = "..data"

// Accept decides about a set of files as it comes in.
type Accept interface {
	// File is asked before a file's content is read; the size is a claim that
	// the content is held to. It returns the permission bits.
	File(name string, size int64) (mode uint32, err error)
	// Discard reports whether the content of a file is only to be looked at.
	Discard(name string) bool
	// Attributes reports whether permission bits and owner are as the archive has
	// them, and not what File has said and root's.
	Attributes(name string) bool
	// Content is told what was read.
	Content(name string, size int64, digest [sha256.Size]byte) error
	// Commit is asked at the end whether everything is there. If it agrees,
	// it calls publish, by which the new files take effect, one archive at a
	// time.
	Commit(publish func() error) error
}

// File is a file that the guest makes itself, beside those of an archive.
type File struct {
	// Name is relative to the volume, as in an archive.
	Name    string
	Mode    fs.FileMode
	Content []byte
}

// Option is about what a volume is made with.
type Option func(*options)

type options struct {
	group *uint32
	files []File
}

// WithGroup gives files, and directories, to a group.
func WithGroup(gid uint32) Option { return func(o *options) { o.group = &gid } }

// WithFiles adds files that the guest makes itself. The contents are only read.
func WithFiles(files ...File) Option {
	return func(o *options) { o.files = append(o.files, files...) }
}

func collect(opts []Option) *options {
	o := &options{}
	for _, apply := range opts {
		apply(o)
	}
	return o
}

// Put replaces the files of a volume by those of a tar archive and those of
// [WithFiles]: all of them, in one step, and only if accept agrees. Names are
// plain, or relative paths of at most 8 plain names; links, devices and
// everything else but regular files and directories are refused. Archives of
// one volume may come at once: each is unpacked to a place that no other has
// had, since what a host sends again must not touch what was accepted.
func (m *Manager) Put(ctx context.Context, name string, archive io.Reader, accept Accept, opts ...Option) error {
	return m.replace(name, collect(opts), func(t *tree) error { return t.unpack(ctx, archive, accept) }, accept.Commit)
}

// Make is Put for a volume none of whose files come in an archive.
func (m *Manager) Make(name string, opts ...Option) error {
	return m.replace(name, collect(opts), func(*tree) error { return nil }, func(publish func() error) error { return publish() })
}

// replace fills a new directory and lets commit put it in the old one's place.
func (m *Manager) replace(name string, o *options, fill func(*tree) error, commit func(publish func() error) error) error {
	if err := m.Files(name); err != nil {
		return err
	}
	// Containers have files volumes read only, so the paths below are ours.
	root, err := os.OpenRoot(filepath.Join(m.dir, name))
	if err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	defer root.Close() //nolint:errcheck // a directory
	next := fmt.Sprintf("..%d", m.puts.Add(1))
	t, err := newTree(root, next, o.group)
	if err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	defer t.close()
	published := false
	err = fill(t)
	if err == nil {
		err = t.make(o.files)
	}
	if err == nil {
		err = commit(func() error {
			// Containers that have the volume may be made at once.
			m.publishing.Lock()
			defer m.publishing.Unlock()
			if err := publish(root, next, t.top(), func(version string) { m.retire(root, name, version) }); err != nil {
				return err
			}
			published = true
			return nil
		})
	}
	if !published {
		err = errors.Join(err, root.RemoveAll(next))
	}
	if err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	return nil
}

// unpack writes the archive's files.
func (t *tree) unpack(ctx context.Context, archive io.Reader, accept Accept) error {
	tr := tar.NewReader(archive)
	for entries := 0; ; entries++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("archive: %w", err)
		}
		if entries >= maxTarEntries {
			return fmt.Errorf("archive: more than %d entries", maxTarEntries)
		}
		if h.Typeflag == tar.TypeDir && filepath.Clean(h.Name) == "." {
			continue
		}
		if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir {
			return fmt.Errorf("archive: %q: only regular files and directories are taken, got type %q", h.Name, h.Typeflag)
		}
		name := strings.TrimPrefix(h.Name, "./")
		if h.Typeflag == tar.TypeDir {
			name = strings.TrimSuffix(name, "/")
		}
		if !isName(name) {
			return fmt.Errorf("archive: %q: not a plain file name, nor a clean relative path of at most %d of them", h.Name, maxNameDepth)
		}
		if h.Typeflag == tar.TypeDir {
			continue // files make the directories that they need
		}
		if err := t.accept(name, h, tr, accept); err != nil {
			return err
		}
	}
}

// accept takes one file of an archive.
func (t *tree) accept(name string, h *tar.Header, r io.Reader, accept Accept) error {
	if t.names[name] {
		return fmt.Errorf("archive: %q occurs twice", name)
	}
	mode, err := accept.File(name, h.Size)
	if err != nil {
		return err
	}
	who := owner{group: t.group}
	if accept.Attributes(name) {
		mode = uint32(h.Mode & 0o777)
		if who, err = ownerOf(h, t.group); err != nil {
			return fmt.Errorf("archive: %q: %w", name, err)
		}
	}
	hash := sha256.New()
	var n int64
	if accept.Discard(name) {
		n, err = io.Copy(hash, r)
	} else {
		n, err = t.write(name, fs.FileMode(mode), who, io.TeeReader(r, hash))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return accept.Content(name, n, [sha256.Size]byte(hash.Sum(nil)))
}

// isName: a plain name, or a clean relative path of them. Names with two dots in
// front are the volume's own.
func isName(name string) bool {
	parts := strings.Split(name, "/")
	return filepath.IsLocal(name) && path.Clean(name) == name && name != "." && !strings.ContainsRune(name, 0) &&
		len(name) <= maxNameLength && len(parts) <= maxNameDepth &&
		!slices.ContainsFunc(parts, func(p string) bool { return len(p) > 255 || strings.HasPrefix(p, "..") })
}
