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

	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/guestimage/manifest"
	"github.com/coffer-project/coffer/internal/host/sandbox"
)

// counted is a machine with one virtual CPU whose clock is the number of
// instructions executed, one each nanosecond, idle time skipped over.
type counted struct {
	cmd                   *exec.Cmd
	dir                   string
	agent, bench, monitor net.Conn
	ended                 chan struct{}
	result                error
	stderr                strings.Builder
}

// countedMachine starts one with the image's kernel and firmware. The options
// are those of bench-boot.
func (b *bench) countedMachine(ctx context.Context, image *manifest.Manifest, initrd []byte, more string) (_ *counted, err error) {
	m := &counted{ended: make(chan struct{})}
	if m.dir, err = os.MkdirTemp(workDir, "counted-"); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(m.dir, "initrd"), initrd, 0o600); err != nil {
		return nil, err
	}
	names := []string{"monitor", "agent", "bench"}
	var listeners []net.Listener
	for _, name := range names {
		l, err := (&net.ListenConfig{}).Listen(ctx, "unix", filepath.Join(m.dir, name))
		if err != nil {
			return nil, err
		}
		defer l.Close() //nolint:errcheck // one connection is all
		listeners = append(listeners, l)
	}
	m.cmd = exec.CommandContext(ctx, "qemu-system-x86_64", m.args(b.guest, image, more)...)
	m.cmd.Stderr = &m.stderr
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w (install it: make deps)", err)
	}
	go func() {
		m.result = m.cmd.Wait()
		close(m.ended)
		for _, l := range listeners {
			_ = l.Close() // ends an Accept that nobody will answer
		}
	}()
	for i, to := range []*net.Conn{&m.monitor, &m.agent, &m.bench} {
		if *to, err = listeners[i].Accept(); err != nil {
			m.stop()
			return nil, fmt.Errorf("QEMU did not connect to its %s: %w: %s", names[i], err, m.stderr.String())
		}
	}
	return m, nil
}

func (m *counted) args(guest string, image *manifest.Manifest, more string) []string {
	file := func(name string) string { return filepath.Join(m.dir, name) }
	return []string{
		"-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-m", "1024",
		"-machine", "q35,vmport=off,smbus=off,sata=off,i8042=off,hpet=off", "-cpu", "max",
		"-bios", filepath.Join(guest, image.Firmware.Name), "-kernel", filepath.Join(guest, image.Kernel.Name), "-initrd", file("initrd"),
		"-append", sandbox.Cmdline(image.Cmdline, sandbox.None, true) + " " + more,
		"-chardev", "file,id=debug,path=" + file("debug"), "-device", "isa-debugcon,iobase=0xe9,chardev=debug",
		"-serial", "file:" + file("console"),
		"-chardev", "socket,id=monitor,path=" + file("monitor"), "-mon", "chardev=monitor,mode=control",
		// In this order: probe.c knows the serial bus by its number.
		"-netdev", "user,id=n0,restrict=on", "-device", "virtio-net-pci,netdev=n0,romfile=,mac=" + guestMAC,
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,path=" + file("agent"), "-device", "virtserialport,nr=1,id=agent,chardev=agent,name=" + channel.SerialPort,
		"-chardev", "socket,id=bench,path=" + file("bench"), "-device", "virtserialport,nr=2,id=bench,chardev=bench,name=org.coffer.bench.0",
		// The seed fixes what RDRAND gives, and with it the kernel's layout.
		"-smp", "1", "-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off,align=off", "-rtc", "base=2026-01-01,clock=vm", "-seed", "1",
	}
}

// wait returns once the machine has ended by itself.
func (m *counted) wait(ctx context.Context) error {
	select {
	case <-m.ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	if m.result != nil {
		return fmt.Errorf("QEMU: %w: %s", m.result, m.stderr.String())
	}
	return nil
}

// stop ends the machine.
func (m *counted) stop() {
	_ = m.cmd.Process.Kill()
	<-m.ended
	for _, c := range []net.Conn{m.agent, m.bench, m.monitor} {
		if c != nil {
			_ = c.Close()
		}
	}
	_ = os.RemoveAll(m.dir)
}

// console is the end of the guest's console, for error messages.
func (m *counted) console() string {
	const most = 2000
	text, err := os.ReadFile(filepath.Join(m.dir, "console"))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-most):])
}

// waitForPort returns once the guest has opened the agent's port.
func (m *counted) waitForPort(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = m.monitor.Close() })
	defer stop()
	if _, err := fmt.Fprintln(m.monitor, `{"execute":"qmp_capabilities"}`); err != nil {
		return err
	}
	in := bufio.NewScanner(m.monitor)
	for in.Scan() {
		var message struct {
			Event string
			Data  struct {
				ID   string
				Open bool
			}
		}
		if err := json.Unmarshal(in.Bytes(), &message); err != nil {
			return fmt.Errorf("QEMU's monitor: %w", err)
		}
		if message.Event == "VSERPORT_CHANGE" && message.Data.ID == "agent" && message.Data.Open {
			return nil
		}
	}
	return errors.Join(errors.New("the machine ended before the agent opened its port"), in.Err(), ctx.Err())
}
