package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"strings"
)

// Limits of an unpacked package.
const (
	maxTreeBytes   = 1 << 30
	maxTreeEntries = 100_000
	maxLinks       = 16
)

// File is a regular file or a symbolic link of a package.
type File struct {
	// Mode holds the permission bits.
	Mode uint32
	// Data is a regular file's content.
	Data []byte
	// Target is a symbolic link's target; empty for a regular file.
	Target string
}

// Tree is the files of one or more packages by path, relative to the root and
// clean: usr/bin/crun.
type Tree map[string]File

// Unpack reads the files of a .deb for which keep returns true. Directories,
// devices and maintainer scripts are not read.
func Unpack(ctx context.Context, deb string, keep func(name string) bool) (Tree, error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("unpack %s: %w (dpkg-deb is part of Debian's dpkg)", deb, err)
	}
	tree, readErr := readTar(out, keep)
	if readErr != nil {
		// Ends dpkg-deb by a broken pipe; its own error would only hide ours.
		_ = out.Close()
		_ = cmd.Wait()
		return nil, fmt.Errorf("unpack %s: %w", deb, readErr)
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("unpack %s: %w: %s", deb, err, strings.TrimSpace(stderr.String()))
	}
	return tree, nil
}

func readTar(r io.Reader, keep func(string) bool) (Tree, error) {
	tree := Tree{}
	tr := tar.NewReader(r)
	total := int64(0)
	for entries := 0; ; entries++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			// dpkg-deb must be able to write its padding.
			_, err := io.Copy(io.Discard, r)
			return tree, err
		}
		if err != nil {
			return nil, err
		}
		if entries == maxTreeEntries {
			return nil, fmt.Errorf("more than %d entries", maxTreeEntries)
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "/"))
		if name == ".." || strings.HasPrefix(name, "../") {
			return nil, fmt.Errorf("entry %q leaves the package", h.Name)
		}
		if !keep(name) {
			continue
		}
		switch h.Typeflag {
		case tar.TypeReg:
			if total += h.Size; total > maxTreeBytes {
				return nil, fmt.Errorf("entry %q: more than %d bytes in all", h.Name, maxTreeBytes)
			}
			data, err := io.ReadAll(tr)
			if err != nil {
				return nil, fmt.Errorf("entry %q: %w", h.Name, err)
			}
			tree[name] = File{Mode: uint32(h.Mode) & 0o7777, Data: data}
		case tar.TypeSymlink:
			tree[name] = File{Mode: 0o777, Target: h.Linkname}
		case tar.TypeLink:
			target, ok := tree[path.Clean(h.Linkname)]
			if !ok {
				return nil, fmt.Errorf("entry %q is a hard link to %q, which is not there", h.Name, h.Linkname)
			}
			tree[name] = target
		}
	}
}

// Resolve follows symbolic links from name to a regular file. A link in the place of
// a directory is not followed: packages of merged-/usr systems ship none.
func (t Tree) Resolve(name string) (string, File, error) {
	at := name
	for range maxLinks {
		f, ok := t[at]
		switch {
		case !ok && at == name:
			return "", File{}, fmt.Errorf("%s is in none of the packages", name)
		case !ok:
			return "", File{}, fmt.Errorf("%s is a link to %s, which is in none of the packages", name, at)
		case f.Target == "":
			return at, f, nil
		case path.IsAbs(f.Target):
			at = path.Clean(f.Target)[1:]
		default:
			at = path.Join(path.Dir(at), f.Target)
		}
	}
	return "", File{}, fmt.Errorf("%s: more than %d links in a row", name, maxLinks)
}

// Glob returns the one name that matches pattern (path.Match).
func (t Tree) Glob(pattern string) (string, error) {
	found := ""
	for name := range t {
		ok, err := path.Match(pattern, name)
		if err != nil {
			return "", fmt.Errorf("pattern %q: %w", pattern, err)
		}
		if ok && found != "" {
			return "", fmt.Errorf("pattern %q fits %s and %s; it must fit one file", pattern, min(found, name), max(found, name))
		}
		if ok {
			found = name
		}
	}
	if found == "" {
		return "", fmt.Errorf("pattern %q fits no file", pattern)
	}
	return found, nil
}
