// Package serial opens virtio-serial ports by name and reads and writes them
// without polling, across any number of hosts that connect and leave.
//
// The kernel's virtio_console driver does not block where other devices do:
// while no host is connected a read returns 0 at once and poll(2) reports a
// hang-up. Read in the ordinary way such a port keeps a processor busy, or
// looks ended for ever. The edge-triggered poller of the Go runtime tells of
// changes only, so [Conn.Read] treats "no host" as "wait for the next edge".
package serial

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Port is an open port. It is opened once and stays open for the life of the
// guest; each host that comes is served through a [Conn] of its own.
type Port struct {
	name string
	file *os.File
	raw  syscall.RawConn

	mu   sync.Mutex
	conn *Conn // the one in use
}

// newPort takes over fd, which must be non-blocking and pollable.
func newPort(name string, file *os.File) (*Port, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &Port{name: name, file: file, raw: raw}, nil
}

// openDevice opens a device node such as /dev/vport0p1. The kernel lets one
// process have it open at a time.
func openDevice(name, path string) (*Port, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("serial port %s: open %s: %w", name, path, err)
	}
	return newPort(name, os.NewFile(uintptr(fd), path))
}

// Name is the port's name, not its path.
func (p *Port) Name() string { return p.name }

// Close closes the port for good.
func (p *Port) Close() error { return p.file.Close() }

// Conn returns a connection to the next host and ends the one before it.
func (p *Port) Conn() *Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		p.conn.end()
	}
	// An ended connection leaves deadlines behind that woke its callers up.
	_ = p.file.SetDeadline(time.Time{})
	p.conn = &Conn{port: p, closed: make(chan struct{})}
	return p.conn
}

// Conn is the port as one host's connection. Closing it leaves the port open.
// One goroutine may read while another writes.
type Conn struct {
	port   *Port
	once   sync.Once
	closed chan struct{}
	// heard is whether anything came from this host: before, a port without
	// a host is one that waits; after, it is one whose host has left.
	heard bool
}

// Close ends the connection: reads and writes under way return an error.
func (c *Conn) Close() error {
	c.port.mu.Lock()
	defer c.port.mu.Unlock()
	c.end()
	return nil
}

// end needs the port's lock.
func (c *Conn) end() {
	c.once.Do(func() {
		close(c.closed)
		if c.port.conn == c {
			// A deadline that has passed wakes every caller.
			_ = c.port.file.SetDeadline(time.Unix(1, 0))
		}
	})
}

func (c *Conn) ended() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// failure turns the wake-up of a closed connection into what it is.
func (c *Conn) failure(op string, err error) error {
	if c.ended() || errors.Is(err, os.ErrDeadlineExceeded) {
		return os.ErrClosed
	}
	return fmt.Errorf("serial port %s: %s: %w", c.port.name, op, err)
}

// Read waits for a host and its bytes. It returns io.EOF when the host that
// had sent something has left.
func (c *Conn) Read(b []byte) (int, error) {
	if c.ended() {
		return 0, os.ErrClosed
	}
	if len(b) == 0 {
		return 0, nil
	}
	var n int
	var rerr error
	err := c.port.raw.Read(func(fd uintptr) bool {
		for {
			n, rerr = unix.Read(int(fd), b)
			switch {
			case errors.Is(rerr, unix.EINTR):
				continue
			case errors.Is(rerr, unix.EAGAIN):
				return c.ended()
			case rerr == nil && n == 0 && !c.heard:
				return c.ended() // nobody is there yet
			}
			return true
		}
	})
	if err == nil {
		err = rerr
	}
	switch {
	case err != nil:
		return 0, c.failure("read", err)
	case c.ended() && n <= 0:
		return 0, os.ErrClosed
	case n == 0:
		return 0, io.EOF
	}
	c.heard = true
	return n, nil
}

// Write waits until the host has room. With no host it waits for one, unless
// the connection is closed.
func (c *Conn) Write(b []byte) (int, error) {
	written := 0
	for written < len(b) {
		if c.ended() {
			return written, os.ErrClosed
		}
		var n int
		var werr error
		err := c.port.raw.Write(func(fd uintptr) bool {
			for {
				n, werr = unix.Write(int(fd), b[written:])
				switch {
				case errors.Is(werr, unix.EINTR):
					continue
				case errors.Is(werr, unix.EAGAIN):
					return c.ended()
				}
				return true
			}
		})
		if err == nil {
			err = werr
		}
		if err != nil {
			return written, c.failure("write", err)
		}
		written += n
	}
	return written, nil
}
