package collateral

import (
	"archive/tar"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"
)

// maxBundle bounds what a bundle, or a directory, holds in bytes.
const maxBundle = 256 << 20

// WriteBundle writes entries as a tar file that is the same for the same
// entries. Unpacked it is a [Store].
func WriteBundle(w io.Writer, entries []*Entry) error {
	type file struct {
		name string
		data []byte
	}
	var files []file
	for _, e := range entries {
		about, err := e.encode(e.Item.Kind != VCEK)
		if err != nil {
			return err
		}
		name := e.Item.path()
		if e.Item.Kind == VCEK {
			files = append(files, file{name, e.Body}, file{sidecar(name), about})
		} else {
			files = append(files, file{name, about})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	t := tar.NewWriter(w)
	for i, f := range files {
		if i > 0 && f.name == files[i-1].name {
			return fmt.Errorf("collateral: bundle: %s twice", f.name)
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(len(f.data)), Mode: 0o600, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(f.data); err != nil {
			return err
		}
	}
	return t.Close()
}

// isTar reports whether a file begins as a tar file does (POSIX.1-1988, ustar).
func isTar(head []byte) bool { return len(head) == 512 && string(head[257:262]) == "ustar" }

// bundle reads the files of a bundle. Their names decide nothing but what
// belongs together.
func (r *reader) bundle(from io.Reader) error {
	t := tar.NewReader(io.LimitReader(from, 2*maxBundle))
	for entries := 1; ; entries++ {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("bundle: %w", err)
		}
		if entries > 2*maxFiles { // directories count
			return fmt.Errorf("bundle: expected at most %d files and directories", 2*maxFiles)
		}
		name := path.Clean("/" + h.Name)[1:]
		switch {
		case h.Typeflag == tar.TypeDir:
			continue
		case h.Typeflag != tar.TypeReg:
			r.found(name, nil, Ignored, "no regular file")
			continue
		case h.Size > maxLooseFile:
			r.found(name, nil, Ignored, "expected at most %d bytes, got %d", maxLooseFile, h.Size)
			continue
		case r.files[name] != nil:
			return fmt.Errorf("bundle: %.200q twice", name)
		}
		data := make([]byte, h.Size)
		if _, err := io.ReadFull(t, data); err != nil {
			return fmt.Errorf("bundle: %.200q: %w", name, err)
		}
		if err := r.keep(name, data, h.ModTime); err != nil {
			return fmt.Errorf("bundle: %w", err)
		}
	}
}
