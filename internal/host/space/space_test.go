package space_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/host/space"
)

func TestExplain(t *testing.T) {
	t.Parallel()
	const help = "; the node's directory /run/x is full: free space or inodes there (df /run/x, df -i /run/x)"
	for _, tt := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("state: %w", &fs.PathError{Op: "write", Path: "/run/x/y", Err: unix.ENOSPC}), "state: write /run/x/y: no space left on device" + help},
		{&fs.PathError{Op: "write", Path: "/run/x/y", Err: unix.EDQUOT}, "write /run/x/y: disk quota exceeded" + help},
		{&os.LinkError{Op: "rename", Old: "/a", New: "/run/x/y", Err: unix.ENOSPC}, "rename /a /run/x/y: no space left on device" + help},
		{&net.OpError{Op: "listen", Net: "unix", Addr: &net.UnixAddr{Name: "/run/x/s", Net: "unix"}, Err: os.NewSyscallError("bind", unix.ENOSPC)}, "listen unix /run/x/s: bind: no space left on device" + help},
		{unix.ENOSPC, "no space left on device; a disk of the node is full: free space or inodes on it (df, df -i)"},
		{&fs.PathError{Op: "write", Path: "/run/x/y", Err: unix.EIO}, "write /run/x/y: input/output error"},
	} {
		got := space.Explain(tt.err)
		if got.Error() != tt.want || !errors.Is(got, tt.err) {
			t.Errorf("want %q, got %q", tt.want, got)
		}
		if again := space.Explain(fmt.Errorf("x: %w", got)); again.Error() != "x: "+tt.want {
			t.Errorf("explained twice: %q", again)
		}
	}
	if err := space.Explain(nil); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}

func TestFree(t *testing.T) {
	t.Parallel()
	if n, err := space.Free(t.TempDir()); err != nil || n == 0 {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := space.Free("/nonexistent/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
