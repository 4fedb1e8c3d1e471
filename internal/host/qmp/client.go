// Package qmp speaks the QEMU machine protocol: commands to a running
// emulator and the events it reports.
//
// The protocol (QEMU docs/interop/qmp-spec) is one JSON object per line. The
// emulator greets, the client answers qmp_capabilities, and from then on
// replies and events arrive in any order; replies carry the id of their
// command.
package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Limits on what the emulator may send: it has handled a guest's input and
// may have been taken over by it.
const (
	// maxMessage bounds one line. The largest replies of the commands in use
	// are a few KiB.
	maxMessage = 1 << 20
	// maxInFlight bounds the commands awaiting a reply.
	maxInFlight = 64
)

// ErrClosed is the cause of every failure after the connection has ended.
var ErrClosed = errors.New("qmp: connection closed")

// Event is something the emulator reports on its own.
type Event struct {
	// Name is for example "SHUTDOWN".
	Name string
	// Data is a JSON object or nil.
	Data json.RawMessage
	// At is the emulator's clock.
	At time.Time
}

// Version is the emulator's version.
type Version struct {
	Major, Minor, Micro int
	// Package is the distribution's addition, for example "Debian 1:7.2+dfsg-7".
	Package string
}

func (v Version) String() string {
	s := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
	if v.Package != "" {
		s += " (" + v.Package + ")"
	}
	return s
}

// Error is a command the emulator refused.
type Error struct {
	Command string
	Class   string
	Desc    string
}

func (e *Error) Error() string {
	return fmt.Sprintf("qmp: %s: %s: %s", e.Command, e.Class, e.Desc)
}

// Client is one connection. It is safe for concurrent use.
type Client struct {
	conn    net.Conn
	version Version
	onEvent func(Event)
	done    chan struct{}

	write sync.Mutex // held while a command is written

	mu      sync.Mutex // guards what follows
	nextID  uint64
	pending map[uint64]chan reply
	err     error // why the connection ended
}

type reply struct {
	result json.RawMessage
	err    *message
}

// New greets the emulator on conn, which the client owns from here on: it is
// closed by Close and when New fails. onEvent, when not nil, is called for
// every event, in order, from the client's reader: it must not block nor
// execute commands.
func New(ctx context.Context, conn net.Conn, onEvent func(Event)) (*Client, error) {
	if onEvent == nil {
		onEvent = func(Event) {}
	}
	c := &Client{conn: conn, onEvent: onEvent, done: make(chan struct{}), pending: make(map[uint64]chan reply)}
	in := bufio.NewReaderSize(conn, 4096)
	// A context that ends must end the wait for a greeting.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	greeting, err := readMessage(in)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err == nil && greeting.QMP == nil {
		err = errors.New("the first message is not a greeting")
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("qmp: waiting for the emulator's greeting: %w", err)
	}
	c.version = greeting.QMP.version()
	go c.read(in)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// Version returns what the emulator said it is.
func (c *Client) Version() Version { return c.version }

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection and waits until no event callback runs. The
// emulator goes on running.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Execute runs a command. args is encoded as the command's arguments (nil:
// none); the reply is decoded into result (nil: dropped). A refusal is an
// *Error. When ctx ends first the command may still take effect.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	return c.execute(ctx, command, args, nil, result)
}

// ExecuteFile is Execute for a command that takes a descriptor, as add-fd
// does. The emulator has a duplicate of file afterwards; the caller keeps its
// own. The connection must be a unix socket.
func (c *Client) ExecuteFile(ctx context.Context, command string, args any, file *os.File, result any) error {
	return c.execute(ctx, command, args, file, result)
}

func (c *Client) execute(ctx context.Context, command string, args any, file *os.File, result any) error {
	replies := make(chan reply, 1)
	id, err := c.register(replies)
	if err != nil {
		return fmt.Errorf("qmp: %s: %w", command, err)
	}
	defer c.forget(id)
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return fmt.Errorf("qmp: %s: encoding arguments: %w", command, err)
	}
	if err := c.send(ctx, append(line, '\n'), file); err != nil {
		return fmt.Errorf("qmp: %s: %w", command, err)
	}
	select {
	case r := <-replies:
		return decode(command, r, result)
	case <-c.done:
		// The reply may have come just before the end.
		select {
		case r := <-replies:
			return decode(command, r, result)
		default:
			return fmt.Errorf("qmp: %s: %w", command, c.cause())
		}
	case <-ctx.Done():
		return fmt.Errorf("qmp: %s: no reply: %w", command, context.Cause(ctx))
	}
}

func decode(command string, r reply, result any) error {
	if r.err != nil {
		return &Error{Command: command, Class: r.err.Error.Class, Desc: r.err.Error.Desc}
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(r.result, result); err != nil {
		return fmt.Errorf("qmp: %s: decoding the reply: %w", command, err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, line []byte, file *os.File) error {
	c.write.Lock()
	defer c.write.Unlock()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if err := c.conn.SetWriteDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	n, err := c.transmit(line, file)
	if err == nil {
		return nil
	}
	if n > 0 {
		// Half a command would make the next one unreadable.
		_ = c.conn.Close()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: %w", ErrClosed, err)
}

// transmit writes a line; a file goes along with its first byte (SCM_RIGHTS).
func (c *Client) transmit(line []byte, file *os.File) (int, error) {
	if file == nil {
		return c.conn.Write(line)
	}
	conn, ok := c.conn.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("a descriptor needs a unix socket, this connection is a %T", c.conn)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	n := 0
	var werr error
	// The descriptor stays open while it is sent, whoever closes the file.
	err = raw.Control(func(fd uintptr) {
		n, _, werr = conn.WriteMsgUnix(line, unix.UnixRights(int(fd)), nil)
	})
	if err == nil {
		err = werr
	}
	if err == nil && n < len(line) {
		var rest int
		rest, err = conn.Write(line[n:])
		n += rest
	}
	return n, err
}

func (c *Client) register(replies chan reply) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if len(c.pending) >= maxInFlight {
		return 0, fmt.Errorf("%d commands already await a reply", len(c.pending))
	}
	c.nextID++
	c.pending[c.nextID] = replies
	return c.nextID, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

func (c *Client) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// read is the connection's only reader.
func (c *Client) read(in *bufio.Reader) {
	defer close(c.done)
	for {
		m, err := readMessage(in)
		if err != nil {
			c.mu.Lock()
			c.err = fmt.Errorf("%w: %w", ErrClosed, err)
			c.mu.Unlock()
			_ = c.conn.Close()
			return
		}
		switch {
		case m.Event != "":
			c.onEvent(Event{Name: m.Event, Data: m.Data, At: m.Timestamp.time()})
		case m.ID != nil:
			c.deliver(*m.ID, m)
		}
	}
}

// deliver hands a reply to its command; one nobody waits for is dropped.
func (c *Client) deliver(id uint64, m *message) {
	c.mu.Lock()
	replies, ok := c.pending[id]
	delete(c.pending, id)
	c.mu.Unlock()
	if !ok {
		return
	}
	r := reply{result: m.Return}
	if m.Error != nil {
		r.err = m
	}
	replies <- r // buffered, and used once
}
