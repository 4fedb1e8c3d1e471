package faults

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
)

// guestImage is the directory of the built guest image.
func guestImage(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("boots virtual machines; not with -short")
	}
	need(t)
	dir := os.Getenv(guestVariable)
	if dir == "" {
		dir = filepath.Join("..", "..", "build", "guest")
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		_, err = os.Stat(filepath.Join(dir, "manifest.json"))
	}
	if err == nil {
		_, err = exec.LookPath("qemu-system-x86_64")
	}
	if err != nil {
		unsupported(t, err.Error()+" (make guest-image builds the image)")
	}
	return dir
}

// newMachineNode is a node whose pods are virtual machines.
func newMachineNode(t *testing.T) *node {
	image := guestImage(t)
	n := newNode(t)
	n.asMachine(image)
	return n
}

// asMachine makes pods of the node virtual machines.
func (n *node) asMachine(image string) {
	machine(func(n *node) { n.veth() })(n)
	// A machine reaches what is beyond its interface.
	n.reg = newRegistry(n.t, n.peer, gateway)
	n.image = n.reg.reference("test/busybox")
	n.settings["guest_image"], n.settings["boot_timeout"] = quoted(image), `"4m"`
}

// TestMachineParts: what a virtual machine cannot be made of.
func TestMachineParts(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		set        func(t *testing.T, n *node)
	}{
		{"no QEMU", "no-qemu: no such file or directory (install it, on Debian: apt-get install qemu-system-x86; or correct its path where it is configured)", func(_ *testing.T, n *node) { n.settings["qemu"] = quoted(n.path("no-qemu")) }},
		{"QEMU refuses", "qemu says no", func(_ *testing.T, n *node) {
			n.script("qemu", "case \"$*\" in *version*) echo 'QEMU emulator version 9.2.0'; exit 0;; esac\necho 'qemu says no' >&2; exit 1\n")
			n.settings["qemu"] = quoted(n.path("qemu"))
		}},
		{"image altered", "guest image file initrd.img: the manifest says sha256 ", func(t *testing.T, n *node) { n.altered(t, "initrd.img") }},
		{"kernel missing", "vmlinuz: no such file or directory (the image is not whole: install it again, or make one with: coffer guest build)", func(t *testing.T, n *node) {
			n.altered(t, "vmlinuz")
			if err := os.Remove(n.path("guest", "vmlinuz")); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newMachineNode(t)
			tt.set(t, n)
			_, err := n.tryPod(input{})
			n.says(err, tt.want)
			n.conclude()
			n.expectClean()
		})
	}
}

func (n *node) script(name, text string) {
	n.t.Helper()
	if err := os.WriteFile(n.path(name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		n.t.Fatal(err)
	}
}

// altered makes a copy of the guest image in which a file has one other byte.
func (n *node) altered(t *testing.T, name string) {
	t.Helper()
	from := guestImage(t)
	if err := os.Mkdir(n.path("guest"), 0o755); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if e.Name() == name {
			data[len(data)/2] ^= 1
		}
		if err := os.WriteFile(n.path("guest", e.Name()), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n.settings["guest_image"] = quoted(n.path("guest"))
}

// TestMachineKilled: the emulator, or the shim, is killed before the agent
// answers, during a pull that takes long, and while the machine runs. Taps and
// qdiscs go, too.
func TestMachineKilled(t *testing.T) {
	for _, victim := range []string{"QEMU", "shim"} {
		for _, when := range []string{"boot", "pull", "running"} {
			t.Run(victim+"/"+when, func(t *testing.T) {
				n := newMachineNode(t)
				n.startPod(n.specOf(n.pod, "sandbox"))
				l := &life{pending: async(n.creation(n.pod)), what: "the sandbox's creation"}
				n.until("QEMU runs", func() bool { return strings.Contains(proc(n.machine(), "cmdline"), "\x00-kernel\x00") })
				if len(n.devices()) == 0 {
					t.Error("there is no tap: nothing is tested")
				}
				if when != "boot" {
					if err := n.answer(l, 4*time.Minute); err != nil {
						t.Fatal(err)
					}
					if got := strings.TrimSpace(proc(n.machine(), "oom_score_adj")); got != "0" {
						t.Errorf("QEMU has the OOM score %s of its shim", got)
					}
				}
				if when == "pull" {
					ctx, cancel := n.call()
					defer cancel()
					l = pulling(n, ctx)
				}
				if victim == "shim" {
					n.kill(n.shim)
					n.lost(l)
					n.abandon()
				} else {
					n.kill(n.machine())
					n.emulatorDied(l)
					n.conclude()
				}
				n.expectClean()
			})
		}
	}
}

// emulatorDied checks what is said.
func (n *node) emulatorDied(l *life) {
	n.t.Helper()
	if l.pending != nil {
		n.says(n.answer(l, soon), "(signal: killed); somebody on the node has killed it")
		return
	}
	ctx, cancel := n.call()
	defer cancel()
	if r, err := n.task.Wait(ctx, &taskapi.WaitRequest{ID: n.pod}); err != nil || r.GetExitStatus() != 137 {
		n.t.Errorf("wait: %v, %v", r, err)
	}
}
