package vmm_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/host/hosttest"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

var discard = slog.New(slog.DiscardHandler)

const testPort = "org.coffer.test.0"

// helperVariable makes the test binary start a machine and wait: it is the
// parent that TestDiesWithItsParent kills.
const helperVariable = "COFFER_TEST_VMM_HELPER"

func TestMain(m *testing.M) {
	if initrd := os.Getenv(helperVariable); initrd != "" {
		helper(initrd)
		return
	}
	if manner := os.Getenv(fakeVariable); manner != "" {
		fake(manner)
		return
	}
	os.Exit(m.Run())
}

func guest(kernel string, initrd vmm.Input, mode string) *vmm.Machine {
	return &vmm.Machine{
		Name: "vmm-test", Accelerator: vmm.TCG, CPU: "max", VCPUs: 1, MemoryMiB: 256,
		Firmware: vmm.Input{Path: "/usr/share/seabios/bios-256k.bin"},
		Kernel:   vmm.Input{Path: kernel}, Initrd: initrd,
		Cmdline: hosttest.Cmdline + mode,
		Ports:   []vmm.Port{{Name: testPort}},
	}
}

func options(t testing.TB, line func(string)) vmm.Options {
	t.Helper()
	q, err := vmm.FindQEMU(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	return vmm.Options{QEMU: q, Logger: discard, ConsoleLine: line}
}

// TestLife boots machines one after the other: each way a machine can end is
// told apart, and leaves neither process nor descriptor nor file.
func TestLife(t *testing.T) {
	kernel := hosttest.Kernel(t)
	initrd := hosttest.Initrd(t)
	hosttest.NoFiles(t)
	sealed, err := vmm.Sealed("initrd", initrd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sealed.Close() }()
	if _, err := sealed.WriteAt([]byte("x"), 0); err == nil {
		t.Error("a sealed file can be written")
	}
	before := hosttest.Descriptors(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()

	t.Run("echo and close", func(t *testing.T) {
		m := guest(kernel, vmm.Input{File: sealed}, "echo")
		scratch, err := vmm.Unlinked(t.TempDir(), 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		m.Disks = []vmm.Disk{
			{Serial: "scratch", Image: vmm.Input{File: scratch}},
			{Serial: "read-only", Image: vmm.Input{Path: kernel}, ReadOnly: true},
		}
		vm, err := vmm.Start(ctx, m, options(t, nil))
		_ = scratch.Close() // the machine has its own
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = vm.Close() }()
		port, err := vm.Port(testPort)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := vm.Port("org.coffer.other"); err == nil {
			t.Error("a port that is not there")
		}
		_, _ = fmt.Fprintln(port, "hello, guest")
		got, err := bufio.NewReader(port).ReadString('\n')
		if got != "hello, guest\n" || err != nil {
			t.Fatalf("echo: %q, %v; console:\n%s", got, err, strings.Join(vm.Console(), "\n"))
		}
		var status struct{ Status string }
		if err := vm.Monitor().Execute(ctx, "query-status", nil, &status); err != nil || status.Status != "running" {
			t.Errorf("status %+v, %v", status, err)
		}
		var nodes []struct {
			Name     string `json:"node-name"`
			ReadOnly bool   `json:"ro"`
			Image    struct {
				Size int64 `json:"virtual-size"`
			} `json:"image"`
		}
		if err := vm.Monitor().Execute(ctx, "query-named-block-nodes", nil, &nodes); err != nil {
			t.Error(err)
		}
		found := 0
		for _, n := range nodes {
			if n.Name == "disk0" && !n.ReadOnly && n.Image.Size == 64<<20 || n.Name == "disk1" && n.ReadOnly {
				found++
			}
		}
		if found != 2 {
			t.Errorf("disks: %+v", nodes)
		}
		if vm.End() != nil {
			t.Errorf("End of a running machine: %v", vm.End())
		}
		pid := vm.PID()
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
		if end := vm.End(); end.Cause != vmm.Stopped {
			t.Errorf("end: %v", end)
		}
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("the emulator is still there: %v", err)
		}
		if _, err := port.Read(make([]byte, 1)); err == nil {
			t.Error("the port is still open")
		}
		if err := vm.Close(); err != nil {
			t.Error("Close again:", err)
		}
	})
	for _, tc := range []struct {
		mode    string
		cause   vmm.Cause
		console string
	}{
		{"poweroff", vmm.PoweredOff, "testguest: mode poweroff"},
		{"panic", vmm.Reset, "Attempted to kill init"},
	} {
		t.Run(tc.mode, func(t *testing.T) {
			vm, err := vmm.Start(ctx, guest(kernel, vmm.Input{File: sealed}, tc.mode), options(t, nil))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = vm.Close() }()
			<-vm.Done()
			end := vm.End()
			if end.Cause != tc.cause || !strings.Contains(strings.Join(end.Console, "\n"), tc.console) {
				t.Errorf("end: %v", end)
			}
			port, err := vm.Port(testPort)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := port.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("reading a dead machine's port: %v", err)
			}
		})
	}
	t.Run("context ends", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(ctx)
		hung := make(chan struct{}, 1)
		vm, err := vmm.Start(ctx, guest(kernel, vmm.Input{File: sealed}, "hang"), options(t, func(line string) {
			if strings.HasPrefix(line, "testguest: mode hang") {
				hung <- struct{}{}
			}
		}))
		if err != nil {
			t.Fatal(err)
		}
		<-hung
		cause := errors.New("the user pressed Ctrl-C")
		cancel(cause)
		<-vm.Done()
		if end := vm.End(); end.Cause != vmm.Stopped || !errors.Is(end, cause) {
			t.Errorf("end: %v", end)
		}
		if after := hosttest.Descriptors(t); after > before {
			t.Errorf("%d descriptors, %d before: the context's end must close them without Close", after, before)
		}
		_ = vm.Close()
	})
	if after := hosttest.Descriptors(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// TestFailedStart shows that a start that fails says why and leaves nothing.
func TestFailedStart(t *testing.T) {
	hosttest.Kernel(t)
	hosttest.NoFiles(t)
	before := hosttest.Descriptors(t)
	junk := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(junk, []byte("not a kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name   string
		ctx    context.Context
		change func(*vmm.Machine, *vmm.Options)
		want   []string
	}{
		{"no such kernel", t.Context(), func(m *vmm.Machine, _ *vmm.Options) {
			m.Kernel.Path = "/no/such/kernel"
		}, []string{"the emulator failed", "exit status 1", "/no/such/kernel"}},
		{"no such CPU", t.Context(), func(m *vmm.Machine, _ *vmm.Options) { m.CPU = "z80" }, []string{"unable to find CPU model 'z80'"}},
		{"no such program", t.Context(), func(_ *vmm.Machine, o *vmm.Options) { o.QEMU.Path = "/no/such/qemu" }, []string{"start /no/such/qemu"}},
		{"no emulator", t.Context(), func(_ *vmm.Machine, o *vmm.Options) { o.QEMU.Path = "/bin/true" }, []string{"the emulator failed"}},
		{"invalid", t.Context(), func(m *vmm.Machine, _ *vmm.Options) { m.VCPUs = 0 }, []string{"vcpus"}},
		{"old QEMU", t.Context(), func(m *vmm.Machine, o *vmm.Options) {
			m.Accelerator, m.Confidential = vmm.KVM, &vmm.SNP{CBitPos: 51, ReducedPhysBits: 1}
			o.QEMU.Major, o.QEMU.Minor = 7, 2
		}, []string{"needs QEMU 9.1 or newer"}},
		{"ended context", ended, func(*vmm.Machine, *vmm.Options) {}, []string{"context canceled"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, o := guest(junk, vmm.Input{Path: junk}, "echo"), options(t, nil)
			tc.change(m, &o)
			vm, err := vmm.Start(tc.ctx, m, o)
			if err == nil {
				_ = vm.Close()
				t.Fatal("it started")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error does not say %q: %v", want, err)
				}
			}
			if after := hosttest.Descriptors(t); after > before {
				t.Errorf("%d descriptors, %d before", after, before)
			}
		})
	}
}

// TestDiesWithItsParent kills a process that runs a machine.
func TestDiesWithItsParent(t *testing.T) {
	kernel := hosttest.Kernel(t)
	initrd := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(initrd, hosttest.Initrd(t), 0o600); err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), helperVariable+"="+initrd, hosttest.KernelVariable+"="+kernel)
	parent.Stderr = os.Stderr
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	pid, convErr := strconv.Atoi(strings.TrimSpace(line))
	if err != nil || convErr != nil {
		t.Fatalf("helper said %q: %v, %v", line, err, convErr)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	// A pidfd is readable once its process has ended.
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 10_000)
	if n != 1 || err != nil {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		t.Errorf("the emulator outlived its parent: %d, %v", n, err)
	}
}

func helper(initrd string) {
	q, err := vmm.FindQEMU(context.Background(), "")
	if err == nil {
		var vm *vmm.VM
		vm, err = vmm.Start(context.Background(), guest(os.Getenv(hosttest.KernelVariable), vmm.Input{Path: initrd}, "hang"),
			vmm.Options{QEMU: q, Logger: discard})
		if err == nil {
			fmt.Println(vm.PID())
			<-vm.Done()
			err = vm.End()
		}
	}
	_, _ = fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
