package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// input is standard input: a FIFO, or a file that is read to its end.
type input struct {
	file    *os.File
	raw     rawReader
	fifo    bool
	begun   atomic.Bool
	closing atomic.Bool
	done    chan struct{} // closed when nothing more is read
}

// rawReader is the part of syscall.RawConn that is used.
type rawReader interface {
	Read(func(fd uintptr) (done bool)) error
}

func openInput(value string) (*input, error) {
	file, fifo, err := open("stdin", value, true)
	if err != nil {
		return nil, err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("stdin: %w", err)
	}
	return &input{file: file, raw: raw, fifo: fifo, done: make(chan struct{})}, nil
}

func (in *input) closer() io.Closer {
	if in == nil {
		return nil
	}
	return in.file
}

// copy forwards to conn until the input is closed. A process that reads no
// more ends it too; who writes to the FIFO then gets a broken pipe.
func (in *input) copy(conn net.Conn, log *slog.Logger) {
	defer close(in.done)
	defer in.file.Close() //nolint:errcheck // only read
	defer conn.Close()    //nolint:errcheck // its end is the input's
	buf := make([]byte, chunk)
	for {
		n, err := in.read(buf)
		if n > 0 {
			if _, werr := conn.Write(buf[:n]); werr != nil {
				log.Debug("standard input is taken no more", "error", werr)
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// read reads what there is and waits for something unless the input is being
// closed; then nothing is the end.
func (in *input) read(buf []byte) (int, error) {
	for {
		closing := in.closing.Load()
		n, err := in.once(buf, !closing || !in.fifo)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded): // close wakes the reader
			if err := in.file.SetReadDeadline(time.Time{}); err != nil {
				return 0, err
			}
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, err
		case n <= 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// once makes one read; EAGAIN is told unless it may wait.
func (in *input) once(buf []byte, wait bool) (n int, err error) {
	polled := in.raw.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), buf)
		return !wait || !errors.Is(err, unix.EAGAIN)
	})
	if polled != nil {
		return 0, polled
	}
	return n, err
}

// close has the reader stop at the first moment that the FIFO is empty.
func (in *input) close(ctx context.Context) error {
	if !in.closing.Swap(true) {
		// It fails for what is closed, and for a file, which is never waited for.
		_ = in.file.SetReadDeadline(time.Unix(1, 0))
	}
	if !in.begun.Load() {
		return nil
	}
	select {
	case <-in.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stdin: what was written before is still on its way to the process: %w", context.Cause(ctx))
	}
}
