package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/reaper"
)

// ErrNoTerminal says that a process has no terminal to resize.
var ErrNoTerminal = errors.New("the process has no terminal")

// Process is one process in a container with our ends of its streams.
type Process struct {
	*reaper.Process
	// Stdin is written to; nil without standard input. With a terminal it
	// is the terminal.
	Stdin io.WriteCloser
	// Stdout and Stderr are read until the last process that holds the other
	// end has closed it. With a terminal Stderr is nil. Their io.EOF is clean.
	Stdout, Stderr io.ReadCloser

	terminal *os.File
}

// CloseIO closes our ends of every stream.
func (p *Process) CloseIO() {
	if p.terminal != nil {
		_ = p.terminal.Close()
		return
	}
	if p.Stdin != nil {
		_ = p.Stdin.Close()
	}
	if p.Stdout != nil {
		_ = p.Stdout.Close()
	}
	if p.Stderr != nil {
		_ = p.Stderr.Close()
	}
}

// pipes makes the streams and returns the process's ends.
func (p *Process) pipes(stdin bool) (files []*os.File, err error) {
	var in *os.File
	if stdin {
		var w *os.File
		if in, w, err = os.Pipe(); err != nil {
			return files, err
		}
		p.Stdin = w
	} else if in, err = os.Open(os.DevNull); err != nil {
		return files, err
	}
	files = append(files, in)
	for _, end := range []*io.ReadCloser{&p.Stdout, &p.Stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return files, err
		}
		*end = r
		files = append(files, w)
	}
	return files, nil
}

func (p *Process) setTerminal(master *os.File, stdin bool) {
	p.terminal = master
	p.Stdout = &terminalReader{master}
	if stdin {
		p.Stdin = &terminalWriter{file: master}
	}
}

// Resize sets the terminal's size in characters.
func (p *Process) Resize(width, height uint16) error {
	if p.terminal == nil {
		return ErrNoTerminal
	}
	raw, err := p.terminal.SyscallConn()
	if err != nil {
		return err
	}
	var ioErr error
	if err := raw.Control(func(fd uintptr) {
		ioErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	}); err != nil {
		return err
	}
	return ioErr
}

// terminalReader reads a terminal's master side, where the last close of the
// other side shows as EIO.
type terminalReader struct{ *os.File }

func (t *terminalReader) Read(b []byte) (int, error) {
	n, err := t.File.Read(b)
	if errors.Is(err, unix.EIO) {
		err = io.EOF
	}
	return n, err
}

// terminalWriter writes a terminal's master side. Its end of input is a
// character, as closing would hang the terminal up.
type terminalWriter struct {
	file *os.File
	once sync.Once
}

func (t *terminalWriter) Write(b []byte) (int, error) { return t.file.Write(b) }

func (t *terminalWriter) Close() error {
	var err error
	t.once.Do(func() {
		const endOfTransmission = 0x04 // VEOF of a new terminal
		_, err = t.file.Write([]byte{endOfTransmission})
	})
	return err
}

// consoleSocket is where the runtime sends a terminal's master side to.
type consoleSocket struct {
	path string
	l    *net.UnixListener
}

// listenConsole makes a bundle's socket. There is one at a time; its name is
// short, since the path has to fit sockaddr_un (108 bytes) with the longest id.
func listenConsole(bundle string) (*consoleSocket, error) {
	path := filepath.Join(bundle, "tty")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	return &consoleSocket{path: path, l: l}, nil
}

func (s *consoleSocket) close() { _ = s.l.Close() }

// receive takes the descriptor that the runtime has sent.
func (s *consoleSocket) receive(ctx context.Context) (*os.File, error) {
	stop := context.AfterFunc(ctx, s.close)
	defer stop()
	conn, err := s.l.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing is written
	stopConn := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stopConn()
	buf := make([]byte, 4096) // a name, not used
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return nil, fmt.Errorf("console socket: expected one control message, got %d (%w)", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("console socket: expected one descriptor, got %d (%w)", len(fds), err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}
