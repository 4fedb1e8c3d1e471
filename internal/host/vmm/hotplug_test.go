package vmm_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/host/hosttest"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// nodes are the block nodes of a machine that have a name of their own.
func nodes(t *testing.T, vm *vmm.VM) map[string]bool {
	t.Helper()
	var list []struct {
		Name     string `json:"node-name"`
		ReadOnly bool   `json:"ro"`
	}
	if err := vm.Monitor().Execute(t.Context(), "query-named-block-nodes", nil, &list); err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, n := range list {
		if !strings.HasPrefix(n.Name, "#") {
			named[n.Name] = n.ReadOnly
		}
	}
	return named
}

// sets is how many sets of descriptors the emulator holds.
func sets(t *testing.T, vm *vmm.VM) int {
	t.Helper()
	var list []any
	if err := vm.Monitor().Execute(t.Context(), "query-fdsets", nil, &list); err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestHotplug attaches disks to a running machine and takes them out again,
// which its kernel has to allow.
func TestHotplug(t *testing.T) {
	kernel := hosttest.Kernel(t)
	m := guest(kernel, vmm.Input{File: sealedInitrd(t)}, "echo")
	m.DiskSlots = 2
	dir := t.TempDir()
	image := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 8<<20); err != nil {
			t.Fatal(err)
		}
		return path
	}
	m.Disks = []vmm.Disk{{Serial: "scratch", Image: vmm.Input{Path: image("scratch")}}}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	vm, err := vmm.Start(ctx, m, options(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = vm.Close() }()
	port, err := vm.Port(testPort)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Fprintln(port, "up")
	if _, err := bufio.NewReader(port).ReadString('\n'); err != nil {
		t.Fatal(err)
	}

	attach := func(serial string) error {
		return vm.AttachDisk(ctx, vmm.Disk{Serial: serial, Image: vmm.Input{Path: image(serial)}})
	}
	refused := func(err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	if err := attach("one"); err != nil {
		t.Fatal(err)
	}
	// By an open file that has no name any more, and that may only be read.
	unlinked, err := vmm.Unlinked(dir, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.AttachDisk(ctx, vmm.Disk{Serial: "two", Image: vmm.Input{File: unlinked}, ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	_ = unlinked.Close()
	if got := nodes(t, vm); len(got) != 3 || got["hot0"] || !got["hot1"] {
		t.Errorf("block nodes, read-only: %v", got)
	}
	refused(attach("three"), "takes 2 disks while it runs, and has them")
	refused(attach("one"), "has a disk with that serial number already")
	refused(attach("scratch"), "has a disk with that serial number already")
	refused(attach("a,b=c"), "expected 1 to 20 characters")
	refused(vm.DetachDisk(ctx, "scratch"), "was started with it")
	if err := vm.DetachDisk(ctx, "four"); !errors.Is(err, vmm.ErrNoDisk) {
		t.Errorf("detaching what is not there: %v", err)
	}

	began := time.Now()
	if err := vm.DetachDisk(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	t.Logf("the guest let go after %v", time.Since(began))
	refused(vm.AttachDisk(ctx, vmm.Disk{Serial: "dir", Image: vmm.Input{Path: dir}, ReadOnly: true}), "expected a regular file")
	refused(vm.AttachDisk(ctx, vmm.Disk{Serial: "none", Image: vmm.Input{Path: "/no/such/image"}}), "no such file")
	refused(vm.AttachDisk(ctx, vmm.Disk{Serial: "dev", Image: vmm.Input{Path: unlinked.Name()}, BlockDevice: true}), "no such file")
	ended, end := context.WithCancel(ctx)
	end()
	refused(vm.AttachDisk(ended, vmm.Disk{Serial: "late", Image: vmm.Input{Path: image("late")}}), "context canceled")
	// The slot that is free now takes another disk.
	if err := attach("three"); err != nil {
		t.Fatal(err)
	}
	if n := sets(t, vm); n != 2 {
		t.Errorf("%d sets of descriptors for 2 disks", n)
	}
	for _, serial := range []string{"two", "three"} {
		if err := vm.DetachDisk(ctx, serial); err != nil {
			t.Error(err)
		}
	}
	if got, n := nodes(t, vm), sets(t, vm); len(got) != 1 || n != 0 {
		t.Errorf("left in the machine: block nodes %v, %d sets of descriptors", got, n)
	}
}

// sealedInitrd is the test guest's.
func sealedInitrd(t *testing.T) *os.File {
	t.Helper()
	f, err := vmm.Sealed("initrd", hosttest.Initrd(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestKilled kills the emulator: that is known at once, and the error has what
// the guest said last.
func TestKilled(t *testing.T) {
	kernel := hosttest.Kernel(t)
	hung := make(chan struct{}, 1)
	m := guest(kernel, vmm.Input{File: sealedInitrd(t)}, "hang")
	m.DiskSlots = 1
	vm, err := vmm.Start(t.Context(), m, options(t, func(line string) {
		if strings.HasPrefix(line, "testguest: mode hang") {
			hung <- struct{}{}
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = vm.Close() }()
	select {
	case <-hung:
	case <-vm.Done():
		t.Fatal(vm.End())
	}
	began := time.Now()
	if err := unix.Kill(vm.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-vm.Done()
	if took := time.Since(began); took > time.Second {
		t.Errorf("noticed after %v", took)
	} else {
		t.Logf("noticed after %v", took)
	}
	end := vm.End()
	if end.Cause != vmm.Failed || !strings.Contains(end.Detail, "killed") || !strings.Contains(end.Error(), "testguest: mode hang") {
		t.Errorf("end: %v", end)
	}
	err = vm.AttachDisk(t.Context(), vmm.Disk{Serial: "late", Image: vmm.Input{Path: kernel}, ReadOnly: true})
	if got, ok := errors.AsType[*vmm.End](err); !ok || got != end {
		t.Errorf("attaching to a dead machine: %v", err)
	}
}
