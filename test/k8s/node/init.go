package node

import (
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Program is one that runs inside a node for long.
type Program struct {
	// Name is unique among those that run; the log is LOG/NAME.log.
	Name string
	Path string
	Args []string
	Env  []string
	Log  string
}

// Exit is how a program ended.
type Exit struct {
	Code   int
	Signal int
}

func (e Exit) String() string {
	if e.Signal != 0 {
		return "signal " + syscall.Signal(e.Signal).String()
	}
	return fmt.Sprintf("exit code %d", e.Code)
}

// SignalArgs names a program and a signal.
type SignalArgs struct {
	Name   string
	Signal int
}

// Init is the first process of a node's namespaces. A program that starts nodes
// calls it first thing: if is, the program is such a process and has to exit with
// the code, else it goes on.
func Init() (code int, is bool) {
	if len(os.Args) == 0 || os.Args[0] != initName {
		return 0, false
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, initName+" is started by the tests, in a PID namespace")
		return 2, true
	}
	c, err := net.FileConn(os.NewFile(3, "control"))
	if err != nil {
		fmt.Fprintln(os.Stderr, initName+":", err)
		return 2, true
	}
	_ = unix.Close(3)
	i := &initService{running: map[int]*process{}, names: map[string]*process{}}
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go i.reap(children)
	s := rpc.NewServer()
	if err := s.RegisterName("Init", i); err != nil {
		fmt.Fprintln(os.Stderr, initName+":", err)
		return 2, true
	}
	// Until the other side is gone; then the kernel ends the rest.
	s.ServeConn(c)
	return 0, true
}

// initService is what the first process does for the one that started it.
type initService struct {
	mu      sync.Mutex
	running map[int]*process
	names   map[string]*process
}

type process struct {
	pid   int
	ended chan struct{}
	exit  Exit
}

// Setup makes mounts and network. It is called once, first.
func (i *initService) Setup(s Setup, _ *struct{}) error {
	if err := s.mounts(); err != nil {
		return err
	}
	return s.network()
}

// Start starts a program; its name can be used again when it has ended.
func (i *initService) Start(p Program, pid *int) error {
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	i.mu.Lock()
	defer i.mu.Unlock()
	if old := i.names[p.Name]; old != nil && i.running[old.pid] == old {
		return fmt.Errorf("%s runs already", p.Name)
	}
	// Not os/exec: the reaper waits for everybody.
	child, err := syscall.ForkExec(p.Path, append([]string{p.Path}, p.Args...), &syscall.ProcAttr{
		Dir: "/", Env: p.Env, Files: []uintptr{null.Fd(), log.Fd(), log.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("%s: %w", p.Path, err)
	}
	q := &process{pid: child, ended: make(chan struct{})}
	i.running[child], i.names[p.Name] = q, q
	*pid = child
	return nil
}

// Signal sends a signal to a program that runs.
func (i *initService) Signal(a SignalArgs, _ *struct{}) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.names[a.Name]
	if p == nil || i.running[p.pid] != p {
		return fmt.Errorf("%s does not run", a.Name)
	}
	return unix.Kill(p.pid, unix.Signal(a.Signal))
}

// Wait waits until a program has ended.
func (i *initService) Wait(name string, e *Exit) error {
	i.mu.Lock()
	p := i.names[name]
	i.mu.Unlock()
	if p == nil {
		return fmt.Errorf("%s was never started", name)
	}
	<-p.ended
	*e = p.exit
	return nil
}

// reap waits for programs, and for the orphans that every first process inherits.
func (i *initService) reap(children <-chan os.Signal) {
	for range children {
		for i.reapOne() {
		}
	}
}

func (i *initService) reapOne() bool {
	// Locked, so that a program is known before its end is.
	i.mu.Lock()
	defer i.mu.Unlock()
	var status unix.WaitStatus
	pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
	if errors.Is(err, unix.EINTR) {
		return true
	}
	if err != nil || pid <= 0 {
		return false
	}
	if p := i.running[pid]; p != nil {
		delete(i.running, pid)
		p.exit = Exit{Code: status.ExitStatus()}
		if status.Signaled() {
			p.exit = Exit{Code: -1, Signal: int(status.Signal())}
		}
		close(p.ended)
	}
	return true
}
