package shim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/host/shim/events"
	"github.com/coffer-project/coffer/internal/host/shim/podstate"
	"github.com/coffer-project/coffer/internal/host/space"
)

// The times of a daemon's end, in their order.
const (
	closeTime = 20 * time.Second // of the pod, if it has not ended
	drainTime = 1 * time.Second  // of connections
	flushTime = 3 * time.Second  // of events
)

// serve is the daemon.
func (p Program) serve(ctx context.Context, proc Process, f flags) (err error) {
	pipe := readyFile(f)
	defer func() { err = tell(pipe, err) }()
	logFile, err := openLog(filepath.Join(proc.Dir, "log"))
	if err != nil {
		return err
	}
	defer func() { _ = logFile.Close() }()
	if pipe != nil {
		if err := logFile.takeStderr(); err != nil {
			return fmt.Errorf("log: %w", err)
		}
	}
	settings, err := p.Configure(f.config)
	if err != nil {
		return err
	}
	log := newLogger(logFile, f.debug || settings.Debug).With("shim", p.Name, "pod", f.id, "namespace", f.namespace)
	tune()
	s, err := p.open(ctx, proc, f, settings, log)
	if err != nil {
		return err
	}
	if err := tell(pipe, nil); err != nil {
		return errors.Join(err, s.end(ctx, asked))
	}
	pipe = nil
	log.InfoContext(ctx, "the shim serves", "pid", os.Getpid(), "version", p.Version, "socket", s.socket)
	s.background.Go(func() {
		p.sweep(s.ctx, podstate.Cleaner{Release: p.Release, Lost: lostSocket(filepath.Dir(s.socket), f.address), Logger: log}, settings.StateDir)
	})
	return s.end(ctx, s.wait(cmp.Or(settings.Linger, DefaultLinger)))
}

// tune keeps a process small that mostly waits. containerd sets GOMAXPROCS.
func tune() {
	const percent = 40
	debug.SetGCPercent(percent)
}

// server is a running daemon.
type server struct {
	log      *slog.Logger
	bundle   string
	socket   string
	listener net.Listener
	peers    *peers
	ttrpc    *ttrpc.Server
	services *Services
	state    *podstate.File
	events   *events.Publisher

	ctx        context.Context // the daemon's life
	cancel     context.CancelFunc
	asked      chan struct{} // closed when somebody wants the end
	ask        func()
	signals    chan os.Signal
	background sync.WaitGroup
}

func (p Program) open(ctx context.Context, proc Process, f flags, settings Settings, log *slog.Logger) (_ *server, err error) {
	s := &server{log: log, bundle: proc.Dir, peers: newPeers(), asked: make(chan struct{}), signals: make(chan os.Signal, 8)}
	s.ask = sync.OnceFunc(func() { close(s.asked) })
	s.ctx, s.cancel = context.WithCancel(ctx)
	defer func() {
		if err != nil {
			s.cancel()
		}
	}()
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP)
	signal.Notify(s.signals, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1)
	if err := becomeSubreaper(); err != nil {
		return nil, err
	}
	if s.listener, s.socket, err = inherited(ctx, f.socket); err != nil {
		return nil, err
	}
	if s.state, err = p.note(proc, f, settings, s.socket); err != nil {
		return nil, errors.Join(err, s.listener.Close())
	}
	s.events = events.New(events.Options{Address: proc.getenv(envTTRPCAddress), Namespace: f.namespace, Logger: log})
	s.services, err = p.Open(s.ctx, &Daemon{
		ID: f.id, Namespace: f.namespace, Bundle: proc.Dir, Config: f.config,
		Logger: log, Publisher: s.events, State: s.state, Shutdown: s.ask,
	})
	if err == nil {
		s.ttrpc, err = newServer(s.services, s.peers)
	}
	if err != nil {
		return nil, errors.Join(err, s.listener.Close(), s.events.Close(s.ctx), s.state.Remove())
	}
	s.background.Go(func() { reap(s.ctx) })
	s.background.Go(func() {
		err := s.ttrpc.Serve(s.ctx, s.listener)
		select {
		case <-s.asked: // end has closed the socket
		default:
			s.log.ErrorContext(s.ctx, "the shim's socket failed; the shim ends", "error", err)
			s.ask()
		}
	})
	return s, nil
}

// note writes down that this process is the pod's shim.
func (p Program) note(proc Process, f flags, settings Settings, socket string) (*podstate.File, error) {
	dir, err := podstate.Dir(settings.StateDir, f.namespace, f.id)
	if err != nil {
		return nil, err
	}
	self, err := podstate.Look("shim", os.Getpid())
	if err != nil {
		return nil, err
	}
	return podstate.Create(dir, podstate.State{
		Namespace: f.namespace, ID: f.id, Bundle: proc.Dir, Socket: socket, Shim: self,
	})
}

func newServer(services *Services, p *peers) (*ttrpc.Server, error) {
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(p))
	if err != nil {
		return nil, fmt.Errorf("ttrpc server: %w", err)
	}
	services.Register(server)
	return server, nil
}

// wait returns when the services or a signal want the daemon to end, or nobody
// can need it any more.
func (s *server) wait(linger time.Duration) why {
	look := time.NewTicker(max(linger/lookShare, time.Millisecond))
	defer look.Stop()
	v := vigil{linger: linger, bundle: s.bundle, over: s.services.Over, alone: s.peers.alone}
	for {
		select {
		case now := <-look.C:
			if reason := v.look(now); reason != "" {
				s.log.WarnContext(s.ctx, "nobody is connected with the shim any more, nor needs it; it ends", "because", reason, "after", linger)
				return forgotten
			}
		case <-s.asked:
			return asked
		case <-s.ctx.Done():
			return asked
		case sig := <-s.signals:
			if sig != unix.SIGUSR1 {
				s.log.InfoContext(s.ctx, "the shim ends because of a signal", "signal", sig.String())
				return asked
			}
			s.log.InfoContext(s.ctx, "goroutines, because of SIGUSR1", "stacks", stacks())
		}
	}
}

func stacks() string {
	const limit = 256 << 10
	buf := make([]byte, limit)
	return string(buf[:runtime.Stack(buf, true)])
}

// end ends everything: the pod, then what is left of it on this node, then the
// calls that wait for its end, and what they had to say. From the moment when
// the pod's directory is gone, `delete` has nothing to do: containerd may wait
// for that before it listens for the rest.
func (s *server) end(ctx context.Context, because why) error {
	ctx = context.WithoutCancel(ctx)
	s.ask()
	err := s.clear(ctx, because)
	if err != nil {
		// The pod's directory stays: `delete` finishes what it describes.
		s.log.ErrorContext(ctx, "the shim could not remove everything", "error", err)
	}
	if err := within(ctx, drainTime, s.peers.wait); err != nil {
		s.log.DebugContext(ctx, "a connection is cut off", "error", err)
	}
	_ = s.ttrpc.Close()
	if err := within(ctx, flushTime, s.events.Close); err != nil {
		s.log.WarnContext(ctx, "containerd was not told everything; it will ask", "error", err)
	}
	s.cancel()
	s.background.Wait()
	signal.Stop(s.signals)
	s.log.InfoContext(ctx, "the shim ends")
	return err
}

// clear removes the pod, if it has not ended, the socket and the pod's
// directory.
func (s *server) clear(ctx context.Context, because why) error {
	var err error
	if s.services.Close != nil {
		err = within(ctx, closeTime, s.services.Close)
	}
	_ = s.listener.Close()
	if rerr := os.Remove(s.socket); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	if err != nil {
		return err
	}
	if because == forgotten && !missing(s.bundle) {
		return s.state.Leave()
	}
	return s.state.Remove()
}

func within(ctx context.Context, limit time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return f(ctx)
}

// sweep removes what pods left that nobody will ask to remove.
func (p Program) sweep(ctx context.Context, c podstate.Cleaner, root string) {
	if err := c.Sweep(ctx, root); err != nil {
		c.Logger.WarnContext(ctx, "not all that dead shims left could be removed", "error", err)
	}
}

// readyFile is the pipe to `start`; nil for a daemon that is started by hand.
func readyFile(f flags) *os.File {
	if !f.ready {
		return nil
	}
	unix.CloseOnExec(readyFD) // start waits until nobody has it open
	return os.NewFile(readyFD, "ready")
}

// tell says that the daemon is ready, or why not, and closes the pipe.
func tell(pipe *os.File, err error) error {
	if pipe == nil {
		return err
	}
	word := ready
	if err != nil {
		word = space.Explain(err).Error()
	}
	_, werr := pipe.WriteString(word)
	return errors.Join(err, werr, pipe.Close())
}
