package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/coffer-project/coffer/internal/host/console"
	"github.com/coffer-project/coffer/internal/host/qmp"
)

// monitorTimeout bounds the emulator's own start, up to its monitor's
// greeting. Encrypting a confidential guest's pages comes before it.
const monitorTimeout = time.Minute

// statusTimeout bounds a question to the monitor of a stopped machine.
const statusTimeout = 5 * time.Second

// Options are what a machine's launch does not depend on.
type Options struct {
	QEMU   QEMU
	Logger *slog.Logger
	// ConsoleLine, when not nil, is called with every line of the console. It
	// must not block.
	ConsoleLine func(line string)
}

// VM is a running machine. Its methods are safe for concurrent use.
type VM struct {
	name    string
	log     *slog.Logger
	slots   *slots
	hidden  bool // devices reach shared memory only
	stop    context.CancelCauseFunc
	process *process
	monitor *qmp.Client
	ready   chan struct{} // closed once monitor is set, or never will be
	console *console.Tail
	stderr  *console.Tail
	conns   map[channel]net.Conn
	readers sync.WaitGroup // of the console
	done    chan struct{}
	end     *End // valid once done is closed

	mu    sync.Mutex
	cause Cause // why it ends, as soon as something is known
}

// errClosed is the cause of a machine's context after Close.
var errClosed = errors.New("closed")

// startError is the cause of a machine's context when it did not start.
type startError struct{ error }

// Start runs the machine. It runs until the guest ends, ctx ends, or Close is
// called; Close must be called in any case. When Start fails nothing is left
// running, and the error has the emulator's and the console's last lines.
func Start(ctx context.Context, m *Machine, opts Options) (*VM, error) {
	if err := opts.QEMU.Supports(m); err != nil {
		return nil, err
	}
	p, err := m.plan()
	if err != nil {
		return nil, err
	}
	vm := &VM{
		name:    m.Name,
		log:     opts.Logger.With("vm", m.Name),
		slots:   newSlots(m),
		hidden:  m.Confidential != nil,
		console: console.NewTail(0, opts.ConsoleLine),
		stderr:  console.NewTail(0, nil),
		conns:   make(map[channel]net.Conn),
		ready:   make(chan struct{}),
		done:    make(chan struct{}),
	}
	if err := vm.run(ctx, opts.QEMU, p); err != nil {
		return nil, err
	}
	return vm, nil
}

func (vm *VM) run(parent context.Context, qemu QEMU, p *plan) error {
	files, ends, err := vm.connect(p)
	if err != nil {
		vm.disconnect()
		return err
	}
	ctx, stop := context.WithCancelCause(parent)
	vm.stop = stop
	vm.log.DebugContext(ctx, "starting the emulator", "program", qemu.Path, "args", p.args)
	vm.process, err = spawn(ctx, qemu.Path, p.args, files, vm.stderr)
	for _, f := range ends {
		_ = f.Close()
	}
	if err != nil {
		stop(nil)
		vm.disconnect()
		return err
	}
	vm.readers.Go(func() { _, _ = io.Copy(vm.console, vm.conns[consoleChannel]) })

	greeting, cancel := context.WithTimeoutCause(ctx, monitorTimeout, fmt.Errorf("nothing within %s", monitorTimeout))
	defer cancel()
	vm.monitor, err = qmp.New(greeting, vm.conns[monitorChannel], vm.event)
	close(vm.ready)
	go vm.wait(ctx)
	if err != nil {
		// The emulator ends by itself, which gives a better reason than the
		// silence of its monitor, or it hangs.
		select {
		case <-vm.process.done:
		case <-ctx.Done():
		case <-time.After(drainTime):
			stop(startError{err})
		}
		<-vm.done
		vm.disconnect()
		return vm.end
	}
	vm.log.DebugContext(ctx, "the emulator runs", "pid", vm.process.pid, "version", vm.monitor.Version().String())
	return nil
}

// connect makes the plan's channels. It returns the files the emulator
// inherits, and those among them that are ours to close.
func (vm *VM) connect(p *plan) (files, ends []*os.File, err error) {
	for _, i := range p.fds {
		if i.file != nil {
			files = append(files, i.file)
			continue
		}
		ours, theirs, err := pair(string(i.channel))
		if err != nil {
			for _, f := range ends {
				_ = f.Close()
			}
			return nil, nil, err
		}
		vm.conns[i.channel] = ours
		files, ends = append(files, theirs), append(ends, theirs)
	}
	return files, ends, nil
}

func (vm *VM) disconnect() {
	for _, c := range vm.conns {
		_ = c.Close()
	}
}

// wait sees the machine to its end.
func (vm *VM) wait(ctx context.Context) {
	<-vm.process.done
	// The emulator's ends are closed now: both readers come to the end of
	// what it still said. The deadline is for what cannot happen.
	deadline := time.Now().Add(drainTime)
	_ = vm.conns[consoleChannel].SetReadDeadline(deadline)
	_ = vm.conns[monitorChannel].SetReadDeadline(deadline)
	vm.readers.Wait()
	if vm.monitor != nil {
		<-vm.monitor.Done()
	}
	vm.end = vm.reason(ctx)
	vm.log.DebugContext(ctx, "the machine has ended", "cause", string(vm.end.Cause), "detail", vm.end.Detail)
	if ctx.Err() != nil {
		vm.disconnect()
	}
	vm.stop(errClosed)
	close(vm.done)
}

// reason puts together what is known once the process is gone.
func (vm *VM) reason(ctx context.Context) *End {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	end := &End{Name: vm.name, Cause: vm.cause, Emulator: vm.stderr.Lines(), Console: vm.console.Lines()}
	if cause := context.Cause(ctx); cause != nil && cause != errClosed {
		end.Detail, end.err = cause.Error(), cause
	}
	_, failed := errors.AsType[startError](end.err)
	switch {
	case end.Cause != "":
	case failed:
		end.Cause = Failed
	case ctx.Err() != nil:
		end.Cause = Stopped
	default:
		end.Cause, end.err = Failed, vm.process.err
		end.Detail = "it ended without a word"
		if end.err != nil {
			end.Detail = end.err.Error()
		}
	}
	return end
}

// event is called by the monitor's reader.
func (vm *VM) event(e qmp.Event) {
	vm.log.Debug("emulator event", "event", e.Name, "data", string(e.Data))
	switch e.Name {
	case "SHUTDOWN":
		vm.setCause(shutdownCause(e))
	case "GUEST_PANICKED":
		vm.setCause(Panicked)
	case "STOP":
		go vm.examine()
	case "DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR":
		vm.slots.event(e)
	}
}

// examine asks why the machine stands still. QEMU keeps a machine that its
// accelerator cannot run; to us it has ended.
func (vm *VM) examine() {
	if <-vm.ready; vm.monitor == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), statusTimeout)
	defer cancel()
	var status struct {
		Status string `json:"status"`
	}
	if err := vm.monitor.Execute(ctx, "query-status", nil, &status); err != nil {
		return // it has ended, and wait knows more
	}
	switch status.Status {
	case "internal-error", "io-error":
		vm.setCause(Stuck)
		vm.stop(errors.New(status.Status))
	case "guest-panicked":
		vm.setCause(Panicked)
		vm.stop(errors.New(status.Status))
	}
}

// setCause keeps the first cause.
func (vm *VM) setCause(c Cause) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.cause == "" {
		vm.cause = c
	}
}

// PID is the emulator's process id.
func (vm *VM) PID() int { return vm.process.pid }

// Monitor is the connection to the emulator's monitor.
func (vm *VM) Monitor() *qmp.Client { return vm.monitor }

// Port returns the host's end of a virtio-serial port. It belongs to the VM,
// lives until Close (or the end of Start's context), and gives io.EOF when
// the machine has ended. Bytes written before the guest opens the port wait.
func (vm *VM) Port(name string) (net.Conn, error) {
	conn, ok := vm.conns[portChannel(name)]
	if !ok {
		return nil, fmt.Errorf("virtual machine %s: no port %q among its ports", vm.name, name)
	}
	return conn, nil
}

// Console returns the console's last lines, safe to print.
func (vm *VM) Console() []string { return vm.console.Lines() }

// Done is closed when the machine has ended.
func (vm *VM) Done() <-chan struct{} { return vm.done }

// End says how the machine ended; nil while it runs.
func (vm *VM) End() *End {
	select {
	case <-vm.done:
		return vm.end
	default:
		return nil
	}
}

// Close ends the machine at once if it still runs, waits for it, and closes
// its ports. There is nothing on disk it could damage; a guest that should
// end in order must be asked to before. Close may be called again.
func (vm *VM) Close() error {
	vm.stop(errClosed)
	<-vm.done
	vm.disconnect()
	return nil
}
