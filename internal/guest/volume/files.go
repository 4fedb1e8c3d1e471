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
	"path/filepath"
	"strings"
)

// maxTarEntries bounds an archive of a files volume, its directories included.
const maxTarEntries = 4096

// dataLink is the link that all names lead through. Kubernetes' own volumes
// have the same shape, so programs that watch it for changes work.
const dataLink = "..data"

// Accept decides about a set of files as it comes in.
type Accept interface {
	// File is asked before a file's content is read; the size is a claim that
	// the content is held to. It returns the permission bits.
	File(name string, size int64) (mode uint32, err error)
	// Content is told what was read.
	Content(name string, size int64, digest [sha256.Size]byte) error
	// Commit is asked at the end whether everything is there. If it agrees,
	// it calls publish, by which the new files take effect, one archive at a
	// time.
	Commit(publish func() error) error
}

// Put replaces the files of a volume by those of a tar archive: all of them,
// in one step, and only if accept agrees. Names are plain file names; links,
// devices and everything else but regular files are refused. Archives of one
// volume may come at once: each is unpacked to a place that no other has had,
// since what a host sends again must not touch what was accepted.
func (m *Manager) Put(ctx context.Context, name string, archive io.Reader, accept Accept) error {
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
	if err := root.Mkdir(next, 0o755); err != nil {
		return fmt.Errorf("volume %s: %w", name, err)
	}
	names, err := unpackFiles(ctx, root, next, archive, accept)
	published := false
	if err == nil {
		err = accept.Commit(func() error {
			if err := publish(root, next, names); err != nil {
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

// unpackFiles writes the archive's files into dir and returns their names.
func unpackFiles(ctx context.Context, root *os.Root, dir string, archive io.Reader, accept Accept) (map[string]bool, error) {
	names := map[string]bool{}
	tr := tar.NewReader(archive)
	for entries := 0; ; entries++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err != nil {
			return nil, fmt.Errorf("archive: %w", err)
		}
		if entries >= maxTarEntries {
			return nil, fmt.Errorf("archive: more than %d entries", maxTarEntries)
		}
		switch {
		case h.Typeflag == tar.TypeDir && filepath.Clean(h.Name) == ".":
			continue
		case h.Typeflag != tar.TypeReg:
			return nil, fmt.Errorf("archive: %q: only regular files are taken, got type %q", h.Name, h.Typeflag)
		}
		name := strings.TrimPrefix(h.Name, "./")
		if name == "" || len(name) > 255 || strings.HasPrefix(name, "..") || name == "." || strings.ContainsAny(name, "/\x00") {
			return nil, fmt.Errorf("archive: %q: not a plain file name", h.Name)
		}
		if names[name] {
			return nil, fmt.Errorf("archive: %q occurs twice", name)
		}
		names[name] = true
		mode, err := accept.File(name, h.Size)
		if err != nil {
			return nil, err
		}
		size, digest, err := writeFile(root, filepath.Join(dir, name), tr, fs.FileMode(mode))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := accept.Content(name, size, digest); err != nil {
			return nil, err
		}
	}
}

func writeFile(root *os.Root, path string, r io.Reader, mode fs.FileMode) (size int64, digest [sha256.Size]byte, err error) {
	f, err := root.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, digest, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	hash := sha256.New()
	if size, err = io.Copy(io.MultiWriter(f, hash), r); err != nil {
		return 0, digest, err
	}
	if err := f.Chmod(mode.Perm()); err != nil {
		return 0, digest, err
	}
	return size, [sha256.Size]byte(hash.Sum(nil)), nil
}

// publish lets every name lead to the new directory at once, by renaming one
// link, and then removes what is left of the old. What may fail for want of
// room comes first: names that lead nowhere yet.
func publish(root *os.Root, next string, names map[string]bool) error {
	old, err := root.Readlink(dataLink)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for name := range names {
		if err := root.Symlink(filepath.Join(dataLink, name), name); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	const temp = "..data_tmp"
	if err := root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.Symlink(next, temp); err != nil {
		return err
	}
	if err := root.Rename(temp, dataLink); err != nil {
		return err
	}
	// The new files are in effect. What cannot be removed leads nowhere.
	if dir, err := root.Open("."); err == nil {
		entries, _ := dir.ReadDir(-1)
		_ = dir.Close()
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), "..") && !names[e.Name()] {
				_ = root.Remove(e.Name())
			}
		}
	}
	if old != "" {
		_ = root.RemoveAll(old)
	}
	return nil
}
