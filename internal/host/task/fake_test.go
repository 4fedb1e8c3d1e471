package task

import (
	"context"
	"errors"
	"io"
	"iter"
	"net"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/cri"
)

// fakePod is a pod whose guest runs in this process. Its programs are true,
// false, cat, echo WORDS, sleep, seq N, sh -c "exit N" and sh -c "echo WORDS >&2";
// hooks hold calls up or fail them.
type fakePod struct {
	// hook is called at the beginning of each call, by its name: an error is
	// the call's.
	hook func(ctx context.Context, call, id string) error

	// stubborn calls succeed whatever has become of their caller.
	stubborn bool

	dead    chan struct{}
	deadErr error
	killing sync.Once

	mu     sync.Mutex
	booted bool
	gone   bool // dead
	closed int
	procs  map[string]*fakeProc
	calls  []string
	stats  *agentapi.StatsResponse
	events chan *agentapi.Event
	sizes  []string
	wg     sync.WaitGroup
}

var errDead = errors.New("the fake machine is dead")

func newFakePod() *fakePod {
	return &fakePod{
		dead: make(chan struct{}), procs: map[string]*fakeProc{}, events: make(chan *agentapi.Event),
		stats: &agentapi.StatsResponse{MemoryBytes: 4096, CpuUsageNs: 1e6, Pids: 1},
		hook:  func(context.Context, string, string) error { return nil },
	}
}

// fakeProc is a process of the fake guest.
type fakeProc struct {
	args     []string
	terminal bool
	started  bool
	kill     chan struct{} // closed by a signal
	code     uint32        // under the pod's lock
	reason   string
	done     chan struct{}

	inR, outR, errR net.Conn // the guest's ends are the others
	in, out, err    net.Conn
}

func newFakeProc(args []string, terminal bool) *fakeProc {
	p := &fakeProc{args: args, terminal: terminal, kill: make(chan struct{}), done: make(chan struct{}), reason: "exited"}
	p.in, p.inR = net.Pipe()
	p.out, p.outR = net.Pipe()
	p.err, p.errR = net.Pipe()
	return p
}

func (f *fakePod) enter(ctx context.Context, call, id string) error {
	f.mu.Lock()
	f.calls = append(f.calls, strings.TrimSuffix(call+" "+id, " "))
	hook, stubborn := f.hook, f.stubborn
	f.mu.Unlock()
	if err := hook(ctx, call, id); err != nil || stubborn {
		return err
	}
	select {
	case <-f.dead:
		return errDead
	default:
		return ctx.Err()
	}
}

func (f *fakePod) setHook(h func(ctx context.Context, call, id string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = h
}

func (f *fakePod) Boot(ctx context.Context, s *cri.Sandbox) error {
	if err := f.enter(ctx, "Boot", s.ID); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.booted = true
	return nil
}

func (f *fakePod) Create(ctx context.Context, c *cri.Container) error {
	if err := f.enter(ctx, "Create", c.ID); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.procs[c.ID+"/"] = newFakeProc(c.Spec.Process.Args, c.Terminal)
	return nil
}

func (f *fakePod) Exited(ctx context.Context, id string) error {
	if err := f.enter(ctx, "Exited", id); !errors.Is(err, errDead) {
		return err
	}
	return nil
}

func (f *fakePod) Delete(ctx context.Context, id, exec string) error {
	if err := f.enter(ctx, "Delete", strings.TrimSuffix(id+"/"+exec, "/")); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.procs[id+"/"+exec]
	if p == nil {
		return status.Error(codes.NotFound, "no such process")
	}
	if p.started && !p.over() {
		return status.Error(codes.FailedPrecondition, "it runs")
	}
	delete(f.procs, id+"/"+exec)
	return nil
}

func (p *fakeProc) over() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (f *fakePod) Machine() Machine {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.booted {
		return nil
	}
	return f
}

func (f *fakePod) Done() <-chan struct{} { return f.dead }

func (f *fakePod) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.deadErr
}

// die is the machine's sudden end.
func (f *fakePod) die(err error) {
	f.killing.Do(func() {
		f.mu.Lock()
		f.deadErr, f.gone = err, true
		for _, p := range f.procs {
			for _, c := range []net.Conn{p.in, p.inR, p.out, p.outR, p.err, p.errR} {
				_ = c.Close()
			}
			select {
			case <-p.kill:
			default:
				close(p.kill)
			}
		}
		f.mu.Unlock()
		close(f.dead)
	})
}

func (f *fakePod) Close(ctx context.Context) error {
	err := f.enter(ctx, "Close", "")
	if errors.Is(err, errDead) {
		err = nil
	}
	f.mu.Lock()
	f.closed++
	f.mu.Unlock()
	f.die(nil)
	f.wg.Wait()
	return err
}

// fakeAgent is the agent of a fakePod; what is not faked must not be called.
type fakeAgent struct {
	agentapi.AgentService
	pod *fakePod
}

func (f *fakePod) Agent() agentapi.AgentService { return fakeAgent{pod: f} }
func (f *fakePod) PID() int                     { return 4242 }

func (f *fakePod) Events(ctx context.Context) iter.Seq2[*agentapi.Event, error] {
	return func(yield func(*agentapi.Event, error) bool) {
		for {
			select {
			case e := <-f.events:
				if !yield(e, nil) {
					return
				}
			case <-ctx.Done():
				return
			case <-f.dead:
				yield(nil, io.EOF)
				return
			}
		}
	}
}

func (f *fakePod) called(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, c := range f.calls {
		if c == call {
			n++
		}
	}
	return n
}
