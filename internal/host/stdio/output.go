package stdio

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// output is one stream from the guest; a nil file is nowhere.
type output struct {
	name string
	file *os.File
	fifo bool
	// withheld: the guest's policy lets nothing of it through; notice says so.
	withheld bool
	notice   string

	got   atomic.Uint64 // bytes that came from the guest
	lost  atomic.Uint64 // of them, those that could not be written
	ended atomic.Bool   // the guest has said that there are no more
}

// notice is what stands in place of output that the guest's policy keeps, so that
// whoever reads the log, or the output of a command, learns of it. The guest's
// words are bounded and made safe.
func notice(r *agentapi.Refusal, terminal bool) string {
	const most = 64
	word := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r > ' ' && r < 0x7f {
				return r
			}
			return '?'
		}, s[:min(len(s), most)])
	}
	end := "\n"
	if terminal {
		end = "\r\n"
	}
	return "coffer: the pod's policy keeps this output in the guest (refused by rule " + word(r.GetRule()) + ", " + word(r.GetPath()) +
		"): to read it, allow it there and prepare the pod again" + end
}

func (o *output) closer() io.Closer {
	if o == nil || o.file == nil {
		return nil
	}
	return o.file
}

// copy reads the guest's stream to its end, whatever becomes of the host's
// side: a process must not be held up by a disk that is full. When what went into
// a FIFO was read there, or the file was closed, it closes the file and returns.
// moved counts bytes that made a step.
func (o *output) copy(conn net.Conn, moved *atomic.Uint64, log *slog.Logger) {
	defer conn.Close() //nolint:errcheck // read to its end, or given up
	if o.file != nil {
		// Who reads one stream to its end, and then the other, must not wait for both.
		defer o.file.Close() //nolint:errcheck // what was written was written
	}
	buf := make([]byte, chunk)
	discard := o.file == nil
	if o.withheld && !discard {
		// Nothing more comes: who reads, or attaches later, is told of the end.
		_, _ = o.file.WriteString(o.notice)
		o.awaitTaken(moved)
		_ = o.file.Close()
		discard = true
	}
	var broken error // why it is written no more
	for {
		n, err := conn.Read(buf)
		o.got.Add(uint64(n))
		switch {
		case n == 0 || discard:
		case broken != nil:
			o.lost.Add(uint64(n))
		default:
			written, werr := o.file.Write(buf[:n])
			if werr != nil {
				o.lost.Add(uint64(n - written))
				broken = werr
				if !errors.Is(werr, os.ErrClosed) { // it may go on for long
					log.Warn("a container's output is lost from here on", "stream", o.name, "after", o.got.Load()-o.lost.Load(), "error", werr)
				}
			}
		}
		moved.Add(uint64(n))
		if err != nil {
			o.end(err, log)
			break
		}
	}
	if broken != nil {
		log.Warn("a container's output was lost", "stream", o.name, "bytes", o.lost.Load(), "of", o.got.Load(), "error", broken)
		return
	}
	o.awaitTaken(moved)
}

// end records how the guest's stream ended. That Close has cut it off, by its
// deadline, is told by who calls Close.
func (o *output) end(err error, log *slog.Logger) {
	if errors.Is(err, io.EOF) {
		o.ended.Store(true)
		return
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return
	}
	log.Warn("a container's output broke off before the guest had ended it; what follows is lost", "stream", o.name, "after", o.got.Load(), "error", err)
}

// Pauses between looks at a FIFO: nothing tells a writer that it is empty.
const (
	firstLook = time.Millisecond
	lastLook  = 50 * time.Millisecond
)

// awaitTaken waits until the FIFO is empty or closed. One that nobody has open for
// reading is waited for too: a containerd that is restarted reads on.
func (o *output) awaitTaken(moved *atomic.Uint64) {
	before, wait := 0, firstLook
	look := time.NewTimer(wait)
	defer look.Stop()
	for {
		n := o.unread()
		if n == 0 {
			return
		}
		if n < before {
			moved.Add(uint64(before - n))
			wait = firstLook
		}
		before = n
		<-look.C
		wait = min(2*wait, lastLook)
		look.Reset(wait)
	}
}

// unread is how many bytes wait in a FIFO (FIONREAD, which is TIOCINQ); none of
// what is closed, or no FIFO.
func (o *output) unread() (n int) {
	if o.file == nil || !o.fifo {
		return 0
	}
	raw, err := o.file.SyscallConn()
	if err != nil {
		return 0
	}
	if raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }) != nil || err != nil {
		return 0
	}
	return n
}

// left says where of the stream there is something that was not taken.
func (o *output) left() string {
	end := "the guest has ended it"
	if !o.ended.Load() {
		end = "the guest has not ended it"
	}
	return fmt.Sprintf("%s: %d bytes came, %d of them are unread in the FIFO, %d were lost, %s", o.name, o.got.Load(), o.unread(), o.lost.Load(), end)
}
