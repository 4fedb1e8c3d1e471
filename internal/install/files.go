package install

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
)

// temporary is the name under which a file is written before it gets its own.
// There is one for each path, so that a clean-up finds it.
func temporary(p string) string { return path.Join(path.Dir(p), "."+path.Base(p)+".coffer-new") }

// write replaces a file by data: it is whole, on the disk, or as it was.
func (n *node) write(p string, mode os.FileMode, data []byte) error {
	_, err := n.copy(p, mode, bytes.NewReader(data))
	return err
}

// copy replaces a file by what r reads, and returns its digest.
func (n *node) copy(p string, mode os.FileMode, r io.Reader) (string, error) {
	sum, err := n.stage(p, mode, r)
	if err == nil {
		err = n.Rename(rel(temporary(p)), rel(p))
	}
	if err != nil {
		_ = n.Remove(rel(temporary(p)))
		return "", fmt.Errorf("write %s: %w", p, linkCause(err))
	}
	return sum, nil
}

func (n *node) stage(p string, mode os.FileMode, r io.Reader) (string, error) {
	t := rel(temporary(p))
	if err := n.Remove(t); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	f, err := n.OpenFile(t, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), r)
	if err == nil {
		err = f.Chmod(mode) // whatever the umask
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return hex.EncodeToString(h.Sum(nil)), err
}

func linkCause(err error) error {
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return cause(err)
}

// digest of a regular file; "" where there is none, and an error for anything
// else in its place.
func (n *node) digest(p string) (string, error) {
	info, err := n.Lstat(rel(p))
	if errors.Is(err, fs.ErrNotExist) || err != nil && isNotDir(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", p, cause(err))
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s: expected a regular file, found %s", p, info.Mode().Type())
	}
	f, err := n.Open(rel(p))
	if err != nil {
		return "", fmt.Errorf("%s: %w", p, cause(err))
	}
	defer f.Close() //nolint:errcheck // only read
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("%s: %w", p, cause(err))
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// missing lists the directories that a file needs and that are not there,
// parents first.
func (n *node) missing(dir string) ([]string, error) {
	var out []string
	for ; dir != "/"; dir = path.Dir(dir) {
		info, err := n.Stat(rel(dir))
		if err == nil && !info.IsDir() {
			return nil, fmt.Errorf("%s: expected a directory", dir)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: %w", dir, cause(err))
		}
		out = append([]string{dir}, out...)
	}
	return out, nil
}
