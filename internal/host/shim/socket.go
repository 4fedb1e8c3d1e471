package shim

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pathLimit is what fits into sockaddr_un (unix(7)), without the final zero.
	pathLimit = 107
	// dialTime bounds the attempt to reach a daemon: a socket that somebody
	// listens on connects at once.
	dialTime   = 500 * time.Millisecond
	unixScheme = "unix://"
)

// socketPath is where the daemon of a pod listens. The name is derived as
// containerd's own shims derive theirs (containerd/containerd v2 pkg/shim
// CreateSocketAddress): no two containerds, namespaces or pods share one, and
// it is short whatever they are called.
func socketPath(dir, containerd, namespace, pod string) (string, error) {
	sum := sha256.Sum256([]byte(filepath.Join(containerd, namespace, pod)))
	path := filepath.Join(dir, hex.EncodeToString(sum[:]))
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("socket directory: expected an absolute path, got %q", dir)
	}
	if len(path) > pathLimit {
		return "", fmt.Errorf("socket path %s: expected at most %d bytes, got %d; set a shorter socket_dir in containerd's configuration",
			path, pathLimit, len(path))
	}
	return path, nil
}

// reachable tells whether a daemon listens there.
func reachable(ctx context.Context, path string) bool {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// errListening says that the pod has a daemon already.
var errListening = errors.New("a daemon listens already")

// listen makes the pod's socket, which the daemon inherits: whoever connects
// from now on waits for it. A socket that nobody listens on any more is
// replaced, after clean has removed what belonged to it. Of two that come at
// once one gets errListening.
func listen(ctx context.Context, path string, clean func(context.Context) error) (*os.File, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("socket directory: %w", err)
	}
	// Without the lock the second of two could remove what the first has just
	// made in place of the stale one.
	lock, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("socket directory: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if reachable(ctx, path) {
		return nil, errListening
	}
	if err := clean(ctx); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("stale socket: %w", err)
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// The mode is in place before the name is.
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	l, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	listener, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("socket: unexpected listener %T", l), l.Close())
	}
	listener.SetUnlinkOnClose(false)
	file, err := listener.File() // a duplicate
	if err := errors.Join(err, listener.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("socket: %w", err), os.Remove(path))
	}
	return file, nil
}

// inherited is the listener that `start` made, or one at the path of -socket.
func inherited(ctx context.Context, path string) (net.Listener, string, error) {
	if path != "" {
		path = strings.TrimPrefix(path, unixScheme)
		file, err := listen(ctx, path, func(context.Context) error { return nil })
		if err != nil {
			return nil, "", err
		}
		l, err := net.FileListener(file)
		return l, path, errors.Join(err, file.Close())
	}
	unix.CloseOnExec(listenerFD) // a machine that outlives the daemon must not listen
	file := os.NewFile(listenerFD, "socket")
	l, err := net.FileListener(file)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, "", fmt.Errorf("no socket was inherited: %w; a daemon is started with the action start", err)
	}
	return l, l.Addr().String(), nil
}
