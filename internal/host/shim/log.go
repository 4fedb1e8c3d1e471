package shim

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"
)

// fifoLog writes to the pipe from which containerd copies the daemon's log
// into its own. It never waits: while nobody reads, the pipe keeps what fits
// into it (pipe(7): 64 KiB), and lines after that are counted and lost.
// Whoever opens the pipe anew, as containerd does when it is started again,
// reads on where the last one stopped.
type fifoLog struct {
	fd int

	mu   sync.Mutex
	lost int
}

// openLog opens the pipe at path, which containerd has made; one that is
// missing is made.
func openLog(path string) (*fifoLog, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("log: %w", &fs.PathError{Op: "mkfifo", Path: path, Err: err})
	}
	// Read and write: a pipe that its writer could read never breaks, and
	// opening it waits for nobody (fifo(7)).
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("log: %w", &fs.PathError{Op: "open", Path: path, Err: err})
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil || stat.Mode&unix.S_IFMT != unix.S_IFIFO {
		return nil, errors.Join(fmt.Errorf("log %s: expected a named pipe", path), err, unix.Close(fd))
	}
	return &fifoLog{fd: fd}, nil
}

// Write writes one line. It always succeeds: a program does not stop because
// nobody reads its log.
func (l *fifoLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost > 0 && l.put(fmt.Appendf(nil, "level=WARN msg=\"nobody read the log\" lost=%d\n", l.lost)) {
		l.lost = 0
	}
	if l.lost > 0 || !l.put(line) {
		l.lost++
	}
	return len(line), nil
}

// put writes a line whole, or not at all where it has at most PIPE_BUF bytes.
func (l *fifoLog) put(line []byte) bool {
	for {
		n, err := unix.Write(l.fd, line)
		if err != unix.EINTR {
			return err == nil && n == len(line)
		}
	}
}

// takeStderr makes the pipe this process's standard error: that is where Go
// writes why it dies.
func (l *fifoLog) takeStderr() error { return unix.Dup3(l.fd, 2, 0) }

func (l *fifoLog) Close() error { return unix.Close(l.fd) }

// newLogger logs as containerd does: lines of key=value.
func newLogger(w io.Writer, debug bool) *slog.Logger {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}
