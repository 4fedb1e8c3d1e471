package build

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt/encrypt"
)

const copyBytes = 256 << 10

// push writes the tree as a layer.
func (t Tree) push(ctx context.Context, p oci.Pusher, o Options) (oci.Descriptor, oci.Digest, error) {
	pr, pw := io.Pipe()
	diff := sha256.New()
	go func() { pw.CloseWithError(t.compress(ctx, pw, o.Compression, diff)) }()
	defer func() { _ = pr.Close() }()
	format := oci.LayerFormat{Compression: o.Compression}
	d, err := pushStream(ctx, p, pr, format, o.Recipients, o.Spool, o.Rand)
	if err != nil {
		return oci.Descriptor{}, "", err
	}
	return d, oci.FromHash(diff), nil // the pipe's end orders this after the writing
}

func (t Tree) compress(ctx context.Context, w io.Writer, c oci.Compression, diff hash.Hash) error {
	z, err := compressor(w, c)
	if err != nil {
		return err
	}
	return errors.Join(t.write(ctx, io.MultiWriter(z, diff)), z.Close())
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func compressor(w io.Writer, c oci.Compression) (io.WriteCloser, error) {
	switch c {
	case oci.Uncompressed:
		return nopCloser{w}, nil
	case oci.Gzip:
		return gzip.NewWriter(w), nil
	case oci.Zstd:
		// One goroutine, so that the frames are the same every time.
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	default:
		return nil, fmt.Errorf("compression %v is not supported", c)
	}
}

// contextReader reads until ctx ends.
type contextReader struct {
	ctx context.Context //nolint:containedctx // it lives as long as one copy
	io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(p)
}

// pushStream encrypts a layer's stored form, if there are recipients, and
// pushes it from a spool, because a registry wants the digest first.
func pushStream(ctx context.Context, p oci.Pusher, r io.Reader, format oci.LayerFormat, recipients []encrypt.Recipient, spool string, rand io.Reader) (oci.Descriptor, error) {
	var sealed *encrypt.Layer
	if len(recipients) > 0 {
		var err error
		if sealed, err = encrypt.NewLayer(r, rand); err != nil {
			return oci.Descriptor{}, err
		}
		defer sealed.Clear()
		r, format.Encrypted = sealed, true
	}
	f, err := os.CreateTemp(spool, "coffer-layer-*")
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("spool: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := os.Remove(f.Name()); err != nil {
		return oci.Descriptor{}, fmt.Errorf("spool: %w", err)
	}
	sum := sha256.New()
	n, err := io.CopyBuffer(io.MultiWriter(f, sum), contextReader{ctx, r}, make([]byte, copyBytes))
	if err != nil {
		return oci.Descriptor{}, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return oci.Descriptor{}, err
	}
	d := oci.Descriptor{MediaType: format.MediaType(), Digest: oci.FromHash(sum), Size: n}
	if sealed != nil {
		if d.Annotations, err = sealed.Annotations(recipients...); err != nil {
			return oci.Descriptor{}, err
		}
	}
	return d, p.Push(ctx, d, f)
}

// write writes the tree as a tar stream, in lexical order.
func (t Tree) write(ctx context.Context, w io.Writer) error {
	root, err := os.OpenRoot(t.Dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	tw := tar.NewWriter(w)
	links := map[inode]string{}
	err = fs.WalkDir(root.FS(), ".", func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.add(tw, root, name, links); err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(t.Dir, name), err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

type inode struct{ dev, ino uint64 }

// add writes one file.
func (t Tree) add(tw *tar.Writer, root *os.Root, name string, links map[inode]string) error {
	fi, err := root.Lstat(name)
	if err != nil {
		return err
	}
	if strings.HasPrefix(fi.Name(), ".wh.") && name != "." {
		return errors.New("names that start with .wh. mean a deletion in a layer and cannot be stored")
	}
	target := ""
	switch fi.Mode().Type() {
	case fs.ModeSymlink:
		if target, err = root.Readlink(name); err != nil {
			return err
		}
	case 0, fs.ModeDir, fs.ModeNamedPipe:
	default:
		return fmt.Errorf("%v: expected a file, directory, symbolic link or FIFO", fi.Mode())
	}
	hdr, err := tar.FileInfoHeader(fi, target)
	if err != nil {
		return err
	}
	st, _ := fi.Sys().(*syscall.Stat_t)
	hdr.Name, hdr.Format = name, tar.FormatPAX
	if fi.IsDir() {
		hdr.Name += "/"
	}
	// What depends on the machine or on the moment has no place in an image.
	hdr.Uname, hdr.Gname = "", ""
	hdr.AccessTime, hdr.ChangeTime = time.Time{}, time.Time{}
	hdr.ModTime = hdr.ModTime.Truncate(time.Second)
	if !t.ModTime.IsZero() {
		hdr.ModTime = t.ModTime
	}
	if !t.KeepOwners {
		hdr.Uid, hdr.Gid = 0, 0
	}
	if fi.Mode().IsRegular() && st != nil && st.Nlink > 1 {
		id := inode{uint64(st.Dev), st.Ino}
		if first, ok := links[id]; ok {
			hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, first, 0
		} else {
			links[id] = name
		}
	}
	if hdr.Typeflag != tar.TypeReg {
		return tw.WriteHeader(hdr)
	}
	return t.addFile(tw, root, name, hdr)
}

// addFile writes a regular file with its capabilities.
func (t Tree) addFile(tw *tar.Writer, root *os.Root, name string, hdr *tar.Header) error {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, 256)
	if n, err := unix.Fgetxattr(int(f.Fd()), "security.capability", buf); err == nil && n > 0 {
		hdr.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": string(buf[:n])}
	}
	if err := tw.WriteHeader(hdr); err != nil {
		return err
	}
	// A file that grows is cut at the size of its header; one that shrinks is
	// an error of the tar writer.
	_, err = io.CopyBuffer(tw, io.LimitReader(f, hdr.Size), make([]byte, copyBytes))
	return err
}
