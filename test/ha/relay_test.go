package ha

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// socketName is that of PostgreSQL's Unix socket in its directory.
const socketName = ".s.PGSQL.5432"

// relay stands between one replica and PostgreSQL, so that the one can lose
// the database while the others have it.
type relay struct {
	dir, target string

	mu    sync.Mutex
	open  map[net.Conn]struct{}
	cut   bool
	stall chan struct{} // closed when bytes flow again; nil: they do
}

// newRelay listens in dir for what PostgreSQL's socket directory takes.
func newRelay(t *testing.T, dir, target string) *relay {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r := &relay{dir: dir, target: filepath.Join(target, socketName), open: map[net.Conn]struct{}{}}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { r.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		r.set(true, false)
		all.Wait()
	})
	return r
}

func (r *relay) serve(from net.Conn) {
	defer func() { _ = from.Close() }()
	if !r.add(from) {
		return
	}
	defer r.remove(from)
	to, err := (&net.Dialer{}).DialContext(context.Background(), "unix", r.target)
	if err != nil {
		return
	}
	defer func() { _ = to.Close() }()
	if !r.add(to) {
		return
	}
	defer r.remove(to)
	together(2, func(i int) {
		in, out := from, to
		if i == 1 {
			in, out = to, from
		}
		r.copy(out, in)
		_, _ = in.Close(), out.Close() // the other direction ends as well
	})
}

func (r *relay) copy(out io.Writer, in io.Reader) {
	b := make([]byte, 16<<10)
	for {
		n, err := in.Read(b)
		if n > 0 {
			r.mu.Lock()
			stall := r.stall
			r.mu.Unlock()
			if stall != nil {
				<-stall
			}
			if _, err := out.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (r *relay) add(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cut {
		return false
	}
	r.open[c] = struct{}{}
	return true
}

func (r *relay) remove(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, c)
}

// set cuts all connections and refuses new ones, or lets bytes pile up as a
// network does that drops them, or ends both.
func (r *relay) set(cut, stall bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = cut
	switch {
	case stall && r.stall == nil:
		r.stall = make(chan struct{})
	case !stall && r.stall != nil:
		close(r.stall)
		r.stall = nil
	}
	if !cut {
		return
	}
	var errs []error
	for c := range r.open {
		errs = append(errs, c.Close())
	}
	_ = errors.Join(errs...) // some have been closed by their other end
}
