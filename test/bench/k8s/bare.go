package main

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/guestimage/cpio"
	"github.com/coffer-project/coffer/internal/guestimage/manifest"
	"github.com/coffer-project/coffer/internal/host/accel"
	"github.com/coffer-project/coffer/internal/host/network"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

//go:embed guest/bare.c
var bareSource []byte

// upLine is what the bare guest prints when it has nothing more to do.
const upLine = "bare guest up"

// bareMachine measures a machine like the pod's, whose init does nothing. want
// is the pod's command line: it must be the same but for name and hardware
// address.
func (b *bench) bareMachine(ctx context.Context, want []string) (f footprint, err error) {
	b.world.pods++
	netns, err := podNetwork(ctx, workDir, b.world.pods)
	if err != nil {
		return f, err
	}
	net, err := network.Attach(ctx, netns, network.Options{})
	if err != nil {
		return f, err
	}
	defer net.Close() //nolint:errcheck // it goes with this program's namespaces
	image, err := manifest.Load(b.guest)
	if err != nil {
		return f, err
	}
	m := &vmm.Machine{
		Name: "bare", Accelerator: vmm.TCG, CPU: accel.CPU(vmm.TCG), VCPUs: runtimeconfig.Default().DefaultVCPUs, MemoryMiB: machineMemory,
		Cmdline: sandbox.Cmdline(image.Cmdline, sandbox.None, true), DiskSlots: runtimeconfig.Default().DiskSlots,
		Ports: []vmm.Port{{Name: channel.SerialPort}}, Cards: net.Cards,
	}
	if image.Firmware == nil {
		return f, fmt.Errorf("the guest image has no firmware")
	}
	initrd, err := bareInitrd(ctx)
	if err != nil {
		return f, err
	}
	if m.Initrd.File, err = vmm.Sealed("initrd", initrd); err != nil {
		return f, err
	}
	defer m.Initrd.File.Close() //nolint:errcheck // anonymous memory
	// As a pod's machine has them: from the image's files.
	if m.Firmware.File, err = image.Firmware.Open(b.guest); err != nil {
		return f, err
	}
	defer m.Firmware.File.Close() //nolint:errcheck // only read
	if m.Kernel.File, err = image.Kernel.Open(b.guest); err != nil {
		return f, err
	}
	defer m.Kernel.File.Close() //nolint:errcheck // only read
	return b.runBare(ctx, m, want)
}

func (b *bench) runBare(ctx context.Context, m *vmm.Machine, want []string) (f footprint, err error) {
	qemu, err := vmm.FindQEMU(ctx, "")
	if err != nil {
		return f, err
	}
	up := make(chan struct{}, 1)
	vm, err := vmm.Start(ctx, m, vmm.Options{QEMU: qemu, Logger: slog.New(slog.DiscardHandler), ConsoleLine: func(line string) {
		if strings.Contains(line, upLine) {
			up <- struct{}{}
		}
	}})
	if err != nil {
		return f, err
	}
	defer vm.Close() //nolint:errcheck // the end of the measurement
	select {
	case <-up:
	case <-vm.Done():
		return f, vm.End()
	case <-time.After(5 * time.Minute):
		return f, fmt.Errorf("the bare machine does not come up: %s", strings.Join(vm.Console(), "\n"))
	}
	got, err := argumentsOf(uint32(vm.PID()))
	if err != nil {
		return f, err
	}
	if !slices.Equal(got, want) {
		return f, fmt.Errorf("the bare machine is not the pod's:\n%s\n%s", strings.Join(got, " "), strings.Join(want, " "))
	}
	if err := pause(ctx, settle); err != nil {
		return f, err
	}
	return memoryOf(uint32(vm.PID()), b.guest)
}

var individual = regexp.MustCompile(`mac=[0-9a-f:]+|guest=[^,]+`)

// argumentsOf is a process's command line without what tells machines apart.
func argumentsOf(pid uint32) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil, err
	}
	return strings.Split(individual.ReplaceAllString(string(text), "-"), "\x00"), nil
}

// bareInitrd has one program and the console that it starts with.
func bareInitrd(ctx context.Context) ([]byte, error) {
	program, err := compile(ctx, bareSource)
	if err != nil {
		return nil, err
	}
	return archive("init", program)
}

// archive returns an initrd with one program, and the console it starts with.
func archive(name string, program []byte) ([]byte, error) {
	var out bytes.Buffer
	w := cpio.NewWriter(&out)
	for _, e := range []cpio.Entry{
		{Name: "dev", Mode: cpio.TypeDir | 0o755},
		{Name: "dev/console", Mode: cpio.TypeChar | 0o600, Major: 5, Minor: 1},
		{Name: name, Mode: cpio.TypeRegular | 0o755, Data: program},
	} {
		if err := w.Add(e); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}

// compile returns the static program that a C source makes.
func compile(ctx context.Context, source []byte) ([]byte, error) {
	out := filepath.Join(workDir, "program")
	cmd := exec.CommandContext(ctx, "gcc", "-O2", "-static", "-s", "-Wall", "-x", "c", "-o", out, "-")
	cmd.Stdin = bytes.NewReader(source)
	if _, err := command(ctx, cmd); err != nil {
		return nil, fmt.Errorf("%w (needs Debian's gcc and libc6-dev)", err)
	}
	return os.ReadFile(out)
}
