package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// place makes the file, directory, link or FIFO.
func (u *Unpacker) place(hdr *tar.Header, content io.Reader, parent int, name, base string) error {
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		return u.regular(hdr, content, parent, base)
	case tar.TypeDir:
		return u.directory(hdr, parent, name, base)
	case tar.TypeSymlink:
		if hdr.Linkname == "" {
			return errors.New("symbolic link without a target")
		}
		if err := u.create(parent, base, func() error { return unix.Symlinkat(hdr.Linkname, parent, base) }); err != nil {
			return fmt.Errorf("make symbolic link: %w", err)
		}
		if err := unix.Fchownat(parent, base, hdr.Uid, hdr.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set owner %d:%d: %w", hdr.Uid, hdr.Gid, err)
		}
		u.stats.SkippedXattrs += countXattrs(hdr)
		return setTime(parent, base, hdr.ModTime)
	case tar.TypeLink:
		return u.hardLink(hdr.Linkname, parent, name, base)
	case tar.TypeFifo:
		if err := u.create(parent, base, func() error { return unix.Mknodat(parent, base, unix.S_IFIFO|0o600, 0) }); err != nil {
			return fmt.Errorf("make FIFO: %w", err)
		}
		u.stats.SkippedXattrs += countXattrs(hdr)
		return setMeta(hdr, parent, base)
	case tar.TypeChar, tar.TypeBlock:
		return u.device(hdr, parent, base)
	default:
		return fmt.Errorf("tar entry type %q: expected a file, directory, link or FIFO", hdr.Typeflag)
	}
}

// device makes a device node, but only where it does nothing.
func (u *Unpacker) device(hdr *tar.Header, parent int, base string) error {
	if !u.tree.nodev {
		return fmt.Errorf("device node %d:%d: the file system that the layer is unpacked to would let it work: mount it nodev", hdr.Devmajor, hdr.Devminor)
	}
	if hdr.Devmajor < 0 || hdr.Devmajor > maxMajor || hdr.Devminor < 0 || hdr.Devminor > maxMinor {
		return fmt.Errorf("device node %d:%d: expected numbers from 0 to %d and from 0 to %d", hdr.Devmajor, hdr.Devminor, maxMajor, maxMinor)
	}
	kind := uint32(unix.S_IFCHR)
	if hdr.Typeflag == tar.TypeBlock {
		kind = unix.S_IFBLK
	}
	number := int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
	if err := u.create(parent, base, func() error { return unix.Mknodat(parent, base, kind|0o600, number) }); err != nil {
		return fmt.Errorf("make device node: %w", err)
	}
	u.stats.SkippedXattrs += countXattrs(hdr)
	return setMeta(hdr, parent, base)
}

func (u *Unpacker) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return fmt.Errorf("the root of a layer must be a directory, got tar entry type %q", hdr.Typeflag)
	}
	if err := errors.Join(checkHeader(hdr), checkXattrs(hdr)); err != nil {
		return err
	}
	if err := unix.Fchown(u.tree.root, hdr.Uid, hdr.Gid); err != nil {
		return fmt.Errorf("set owner %d:%d: %w", hdr.Uid, hdr.Gid, err)
	}
	if err := unix.Fchmod(u.tree.root, mode(hdr)); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	skipped, err := setXattrs(u.tree.root, hdr)
	u.stats.SkippedXattrs += skipped
	return errors.Join(err, u.dirTime("", u.tree.root, hdr.ModTime))
}

func (u *Unpacker) regular(hdr *tar.Header, content io.Reader, parent int, base string) error {
	if hdr.Size > u.limits.Bytes-u.stats.Bytes {
		return &SizeError{Limit: u.limits.Bytes, Size: hdr.Size, Before: u.stats.Bytes}
	}
	u.stats.Bytes += hdr.Size
	u.stats.Allocated += (hdr.Size + blockBytes - 1) / blockBytes * blockBytes
	var fd int
	err := u.create(parent, base, func() (err error) {
		fd, err = unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	return u.filler.fill(fd, hdr, content)
}

func (u *Unpacker) directory(hdr *tar.Header, parent int, name, base string) error {
	err := unix.Mkdirat(parent, base, 0o700)
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err = unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = u.create(parent, base, func() error { return unix.Mkdirat(parent, base, 0o700) })
		}
	}
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.Fchown(fd, hdr.Uid, hdr.Gid); err != nil {
		return fmt.Errorf("set owner %d:%d: %w", hdr.Uid, hdr.Gid, err)
	}
	if err := unix.Fchmod(fd, mode(hdr)); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	skipped, err := setXattrs(fd, hdr)
	u.stats.SkippedXattrs += skipped
	return errors.Join(err, u.dirTime(name, fd, hdr.ModTime))
}

func (u *Unpacker) hardLink(target string, parent int, name, base string) error {
	to, err := cleanPath(target, u.limits.Depth)
	if err != nil {
		return fmt.Errorf("hard link target: %w", err)
	}
	if to == "" || to == name {
		return fmt.Errorf("hard link to %q: expected another file of the image", clip(target))
	}
	dir, toBase := split(to)
	from, err := u.tree.open(dir)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", clip(target), err)
	}
	defer func() { _ = unix.Close(from) }()
	err = u.create(parent, base, func() error { return unix.Linkat(from, toBase, parent, base, 0) })
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", clip(target), err)
	}
	return nil
}

// create calls build and, if something is in the way, removes that and calls
// it again: an entry replaces whatever has its name.
func (u *Unpacker) create(parent int, base string, build func() error) error {
	err := build()
	if err != unix.EEXIST {
		return err
	}
	if err := u.tree.remove(parent, base); err != nil {
		return fmt.Errorf("replace what an earlier entry made: %w", err)
	}
	return build()
}
