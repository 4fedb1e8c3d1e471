package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// Ports of the machine's virtio-serial bus.
const (
	agentPort = "agent"
	benchPort = "bench"
)

// machine is one start of QEMU.
type machine struct {
	qemu, firmware, kernel, initrd, cmdline string
	// portName is the agent port's name in the guest; empty: the machine has no ports.
	portName string
	// counted runs on one virtual CPU whose clock is the number of instructions
	// executed: one each nanosecond, and idle time is skipped over.
	counted bool
}

// running is a machine that has been started. Its directory holds the debug
// console's and the serial console's output.
type running struct {
	cmd     *exec.Cmd
	dir     string
	agent   net.Conn
	bench   net.Conn
	monitor *monitor
	stderr  strings.Builder
	// ended is closed when QEMU has ended, with result.
	ended  chan struct{}
	result error
}

// start starts a machine whose files are in dir, which must be private to it.
func (m machine) start(ctx context.Context, dir string) (*running, error) {
	r := &running{dir: dir, ended: make(chan struct{})}
	names := []string{"monitor", agentPort, benchPort}
	if m.portName == "" {
		names = names[:1]
	}
	// QEMU connects to these before the guest's first instruction, so that the
	// guest sees a connected host from the start, in every run.
	var listeners []net.Listener
	closeAll := sync.OnceFunc(func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	})
	defer closeAll()
	for _, name := range names {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "unix", filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, l)
	}
	r.cmd = exec.CommandContext(ctx, m.qemu, m.args(dir)...)
	r.cmd.Stderr = &r.stderr
	if err := r.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		r.result = r.cmd.Wait()
		close(r.ended)
		closeAll() // ends an Accept that nobody will answer
	}()
	conns := make([]net.Conn, 3)
	for i, l := range listeners {
		var err error
		if conns[i], err = l.Accept(); err != nil {
			r.stop()
			return nil, fmt.Errorf("QEMU did not connect to its %s: %w: %s", names[i], err, r.stderr.String())
		}
	}
	r.monitor, r.agent, r.bench = newMonitor(conns[0]), conns[1], conns[2]
	return r, nil
}

func (m machine) args(dir string) []string {
	args := []string{
		"-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-m", "1024",
		"-machine", "q35,vmport=off,smbus=off,sata=off,i8042=off,hpet=off", "-cpu", "max",
		"-bios", m.firmware, "-kernel", m.kernel, "-initrd", m.initrd, "-append", m.cmdline,
		"-chardev", "file,id=debug,path=" + filepath.Join(dir, "debug"), "-device", "isa-debugcon,iobase=0xe9,chardev=debug",
		"-serial", "file:" + filepath.Join(dir, "console"),
		"-chardev", "socket,id=monitor,path=" + filepath.Join(dir, "monitor"), "-mon", "chardev=monitor,mode=control",
		// In this order: idle.c knows the serial bus by its number.
		"-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-pci,netdev=n0,romfile=",
		"-device", "virtio-serial-pci",
	}
	if m.portName != "" {
		args = append(args,
			"-chardev", "socket,id=agent,path="+filepath.Join(dir, agentPort), "-device", "virtserialport,nr=1,id=agent,chardev=agent,name="+m.portName,
			"-chardev", "socket,id=bench,path="+filepath.Join(dir, benchPort), "-device", "virtserialport,nr=2,id=bench,chardev=bench,name=org.coffer.bench.0")
	}
	if m.counted {
		// The seed fixes what RDRAND gives, and with it the kernel's layout.
		return append(args, "-smp", "1", "-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off,align=off",
			"-rtc", "base=2026-01-01,clock=vm", "-seed", "1")
	}
	return append(args, "-smp", "2", "-accel", "tcg,thread=single")
}

// wait returns once the machine has ended by itself.
func (r *running) wait() error {
	<-r.ended
	if r.result != nil {
		return fmt.Errorf("QEMU: %w: %s", r.result, r.stderr.String())
	}
	return nil
}

// stop ends the machine.
func (r *running) stop() {
	_ = r.cmd.Process.Kill()
	<-r.ended
	for _, c := range []net.Conn{r.agent, r.bench} {
		if c != nil {
			_ = c.Close()
		}
	}
	if r.monitor != nil {
		_ = r.monitor.conn.Close()
	}
}

// console returns the last lines of the guest's console, for error messages.
func (r *running) console() string {
	data, err := os.ReadFile(filepath.Join(r.dir, "console"))
	if err != nil {
		return err.Error()
	}
	const lines = 20
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// monitor reads QEMU's machine protocol (QMP): one JSON object a line.
type monitor struct {
	conn net.Conn
	in   *bufio.Scanner
}

func newMonitor(conn net.Conn) *monitor {
	return &monitor{conn: conn, in: bufio.NewScanner(conn)}
}

// waitForPort returns once the guest has opened the port of the given device.
func (m *monitor) waitForPort(ctx context.Context, device string) error {
	stop := context.AfterFunc(ctx, func() { _ = m.conn.Close() })
	defer stop()
	if _, err := fmt.Fprintln(m.conn, `{"execute":"qmp_capabilities"}`); err != nil {
		return err
	}
	for m.in.Scan() {
		var message struct {
			Event string
			Data  struct {
				ID   string
				Open bool
			}
		}
		if err := json.Unmarshal(m.in.Bytes(), &message); err != nil {
			return fmt.Errorf("QEMU's monitor: %w", err)
		}
		if message.Event == "VSERPORT_CHANGE" && message.Data.ID == device && message.Data.Open {
			return nil
		}
		if message.Event == "SHUTDOWN" || message.Event == "GUEST_PANICKED" {
			return fmt.Errorf("the machine ended before it opened the port (%s)", message.Event)
		}
	}
	return errors.Join(fmt.Errorf("the machine ended before it opened the port of %s", device), m.in.Err(), ctx.Err())
}
