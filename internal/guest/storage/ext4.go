package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/luks"
)

// A sector that was never written cannot be read: it has no valid tag. A file
// system must not read what it has not written. Linux' ext4 does not, with
// uninitialised groups; mke2fs reads where it writes less than a block: the
// superblock and its copies, which are zeroed before.

// blocksPerGroup is that of a file system with blocks of 4,096 bytes.
const blocksPerGroup = 8 * luks.SectorSize

// scratchExt4 are the options of a file system that nobody repairs: no journal,
// no copies of the superblock, inode tables as they come.
func scratchExt4() []string {
	return []string{
		"-t", "ext4", "-O", "none,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,huge_file,large_file,project,quota,sparse_super2,uninit_bg",
		"-E", "nodiscard,lazy_itable_init=1,num_backup_sb=0,quotatype=prjquota,root_owner=0:0",
		"-b", "4096", "-I", "256", "-i", "16384", "-m", "0",
	}
}

// volumeExt4 are the options of a file system that stays.
func volumeExt4() []string {
	return []string{
		"-t", "ext4", "-O", "none,64bit,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,has_journal,huge_file,large_file,metadata_csum,resize_inode,sparse_super",
		"-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=0,root_owner=0:0",
		"-b", "4096", "-I", "256", "-m", "0",
	}
}

// maxOutput is how much of mke2fs' messages is kept.
const maxOutput = 4096

// mkfs makes a file system on a mapped device of so many bytes.
func (m *Manager) mkfs(ctx context.Context, device string, size int64, options []string) error {
	if err := zeroSuperblocks(device, size); err != nil {
		return fmt.Errorf("prepare the file system: %w", err)
	}
	out, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close() //nolint:errcheck // read to its end
	null, err := os.Open(os.DevNull)
	if err != nil {
		return errors.Join(err, w.Close())
	}
	defer null.Close() //nolint:errcheck // read only
	argv := append(append([]string{m.o.Mke2fs, "-q", "-F"}, options...), device)
	p, err := m.o.Reaper.Start(m.o.Mke2fs, argv, &os.ProcAttr{Env: []string{"LC_ALL=C"}, Files: []*os.File{null, w, w}})
	if err := errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("mke2fs: %w", err)
	}
	said := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(out, maxOutput))
		_, _ = io.Copy(io.Discard, out)
		said <- b
	}()
	status, err := p.Wait(ctx)
	if err != nil {
		_ = p.Signal(unix.SIGKILL)
		return fmt.Errorf("mke2fs: %w", err)
	}
	text := strings.Join(strings.Fields(string(bytes.ToValidUTF8(<-said, nil))), " ")
	if status.Code != 0 {
		return fmt.Errorf("mke2fs ended with %d: %s", status.Code, text)
	}
	if text != "" {
		m.o.Logger.DebugContext(ctx, "mke2fs", "said", text)
	}
	return nil
}

// zeroSuperblocks writes the blocks in which superblocks are, whole.
func zeroSuperblocks(device string, size int64) error {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // synced below
	zeros := make([]byte, 16*luks.SectorSize)
	// The beginning, where other file systems have theirs; and the end, where
	// mke2fs wipes what RAID has left.
	if _, err := f.WriteAt(zeros[:min(size, int64(len(zeros)))], 0); err != nil {
		return err
	}
	if end := size - int64(len(zeros)); end > 0 {
		if _, err := f.WriteAt(zeros, end); err != nil {
			return err
		}
	}
	for _, group := range backupGroups(size / (blocksPerGroup * luks.SectorSize)) {
		if _, err := f.WriteAt(zeros[:luks.SectorSize], group*blocksPerGroup*luks.SectorSize); err != nil {
			return err
		}
	}
	return f.Sync()
}

// backupGroups are the groups up to last that have a copy of the superblock: 1
// and the powers of 3, 5 and 7 (Linux, Documentation/filesystems/ext4,
// sparse_super).
func backupGroups(last int64) []int64 {
	var groups []int64
	if last >= 1 {
		groups = append(groups, 1)
	}
	for _, base := range []int64{3, 5, 7} {
		for g := base; g <= last; g *= base {
			groups = append(groups, g)
		}
	}
	return groups
}

// mountFlags are those of every file system of a disk.
const mountFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOATIME

// mountExt4 mounts a device on dir.
func mountExt4(device, dir, options string) error {
	if err := unix.Mount(device, dir, "ext4", mountFlags, options); err != nil {
		return fmt.Errorf("mount the file system: %w", err)
	}
	return nil
}

// unmount writes what is in memory and unmounts. If somebody still uses the file
// system it goes away with its last user.
func unmount(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if !errors.Is(err, unix.EBUSY) {
		return wrapUnmount(dir, err)
	}
	if f, err := os.Open(dir); err == nil {
		_ = unix.Syncfs(int(f.Fd()))
		_ = f.Close()
	}
	return wrapUnmount(dir, errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)))
}

func wrapUnmount(dir string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("unmount %s: %w", dir, err)
}

// wipe writes zeros to all of a mapped device, so that every sector can be read.
func wipe(ctx context.Context, device string, size int64) error {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // synced below
	zeros := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(zeros)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.WriteAt(zeros[:min(size-at, int64(len(zeros)))], at); err != nil {
			return fmt.Errorf("wipe the volume: %w", err)
		}
	}
	return f.Sync()
}
