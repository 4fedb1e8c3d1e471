package layer

import (
	"fmt"
	"hash/maphash"

	"golang.org/x/sys/unix"
)

// whiteoutFile handles a name that starts with ".wh."; rest is what follows.
func (u *Unpacker) whiteoutFile(dir, base, rest string) error {
	switch {
	case base == whiteoutOpaque:
		return u.opaque(dir)
	case len(base) >= len(whiteoutMeta) && base[:len(whiteoutMeta)] == whiteoutMeta:
		return nil
	case rest == "" || rest == "." || rest == "..":
		return fmt.Errorf("whiteout of %q: expected the name of a file", rest)
	}
	return u.whiteout(dir, rest)
}

// whiteout hides what lower layers have at dir/base.
func (u *Unpacker) whiteout(dir, base string) error {
	return u.below(dir, func(parent int) error { return u.hide(parent, dir, base) })
}

// opaque hides all that lower layers have in dir.
func (u *Unpacker) opaque(dir string) error {
	return u.below(dir, func(parent int) error { return u.hideIn(parent, ".", dir) })
}

// below calls do with dir opened, unless there is nothing below this layer, or
// nothing at dir.
func (u *Unpacker) below(dir string, do func(parent int) error) error {
	if u.touched == nil {
		return nil
	}
	fd, err := u.tree.open(dir)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	}
	if err != nil {
		return fmt.Errorf("directory %q: %w", clip(dir), err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := u.keepTime(dir, fd); err != nil {
		return fmt.Errorf("directory %q: %w", clip(dir), err)
	}
	if err := do(fd); err != nil {
		return fmt.Errorf("whiteout: %w", err)
	}
	return nil
}

func (u *Unpacker) hide(parent int, dir, base string) error {
	name := base
	if dir != "" {
		name = dir + "/" + base
	}
	if _, ours := u.touched[maphash.String(u.seed, name)]; !ours {
		return u.tree.remove(parent, base)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		if err == unix.ENOENT {
			return nil
		}
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil // made by this layer
	}
	return u.hideIn(parent, base, name)
}

// hideIn hides what is in the directory base of parent, whose path is name.
func (u *Unpacker) hideIn(parent int, base, name string) error {
	return eachName(parent, base, func(dir int, child string) error { return u.hide(dir, name, child) })
}
