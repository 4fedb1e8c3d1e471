// Package goldens_test follows one pod for each kind of TEE from what `coffer
// install` writes for its handler to the command line of QEMU, through the same
// code as on a node: the handler's file, the pod's size, the sandbox, the machine.
//
// The command lines of SEV-SNP (QEMU 9.1 and newer) and TDX (10.1 and newer) have
// not been run: no machine with either was at hand. What QEMU calls their options is
// its documentation's. That of the software TEE is run by every end-to-end test.
package goldens_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guestimage/manifest"
	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/platform"
	"github.com/coffer-project/coffer/internal/host/pod"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/internal/install"
)

var update = flag.Bool("update", false, "write the golden files")

// world is a node with a guest image, firmware, and a QEMU that only writes down
// how it is called.
type world struct {
	dir, root string
	options   install.Options
}

func newWorld(t *testing.T, qemuVersion string) *world {
	t.Helper()
	w := &world{dir: t.TempDir()}
	w.root = filepath.Join(w.dir, "node")
	w.put(t, map[string]string{
		"guest/vmlinuz": "kernel", "guest/initrd.img": "initrd", "guest/firmware.bin": strings.Repeat("\x00", 64<<10), "shim": "shim", "coffer": "coffer",
		"node/etc/containerd/config.toml": "version = 3\n", "node/usr/share/ovmf/OVMF.amdsev.fd": "snp", "node/usr/share/ovmf/OVMF.inteltdx.fd": "tdx",
		"qemu": "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'QEMU emulator version " + qemuVersion + "'; exit; fi\nprintf '%s\\n' \"$@\" >" + w.dir + "/args\nexit 1\n",
	})
	if err := os.Chmod(filepath.Join(w.dir, "qemu"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.image(t)
	w.options = install.Options{
		Root: w.root, Version: "2.2.9", Shim: filepath.Join(w.dir, "shim"), Program: filepath.Join(w.dir, "coffer"), GuestImage: filepath.Join(w.dir, "guest"),
		Handlers: []string{"coffer-qemu-snp", "coffer-qemu-tdx", "coffer-qemu-soft"},
		// What the sandbox runs is this machine's, not the node's below the root.
		Extra: fmt.Appendf(nil, "qemu = %q\nstate_dir = %q\nsofttee_state = %q\n", filepath.Join(w.dir, "qemu"), filepath.Join(w.dir, "state"), filepath.Join(w.dir, "softtee")),
		Check: func(text []byte) error { _, err := runtimeconfig.Parse(text); return err },
	}
	return w
}

func (w *world) put(t *testing.T, files map[string]string) {
	t.Helper()
	// A process that is forked while a program is written has it open, and the
	// program cannot be run then.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	for name, text := range files {
		p := filepath.Join(w.dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// image writes the guest image's manifest.
func (w *world) image(t *testing.T) {
	t.Helper()
	file := func(name string) manifest.File {
		data, err := os.ReadFile(filepath.Join(w.dir, "guest", name))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(data)
		return manifest.File{Name: name, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(data))}
	}
	bios := file("firmware.bin")
	m := manifest.Manifest{
		Version: manifest.Version, Architecture: "amd64", Cmdline: "console=ttyS0 quiet panic=-1", Inputs: strings.Repeat("0", 64),
		Kernel: file("vmlinuz"), Initrd: manifest.Initrd{File: file("initrd.img"), Compression: "none"}, Firmware: &bios,
		Agent: manifest.Agent{SHA256: strings.Repeat("0", 64)},
	}
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	w.put(t, map[string]string{"guest/manifest.json": string(text)})
}

// config is what is installed for a handler, read as the shim reads it, with the
// node's paths made this machine's.
func (w *world) config(t *testing.T, handler string) *runtimeconfig.Config {
	t.Helper()
	p, err := install.Prepare(t.Context(), w.options)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Apply(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	c, err := runtimeconfig.Load(filepath.Join(w.root, "opt/coffer/etc", handler+".toml"))
	if err != nil {
		t.Fatal(err)
	}
	c.GuestImage = filepath.Join(w.root, c.GuestImage)
	if c.Firmware != "" {
		c.Firmware = filepath.Join(w.root, c.Firmware)
	}
	return c
}

// cards is a network of one card.
type cards struct{ tap *os.File }

func (c cards) Machine() *sandbox.Network {
	return &sandbox.Network{Cards: []vmm.Card{{MAC: net.HardwareAddr{0x0a, 0x58, 0x0a, 0xf4, 0, 7}, Tap: c.tap, MTU: 1450}}, Guest: &agentapi.Network{}}
}

func (c cards) Close() error { return nil }

var errTaken = errors.New("the command line was written down")

// command boots a pod until QEMU is called.
func (w *world) command(t *testing.T, config *runtimeconfig.Config, facts platform.Facts, change func(*cri.Sandbox)) (string, error) {
	t.Helper()
	tap, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	s := &cri.Sandbox{ID: "pod-1", Name: "web", Namespace: "shop", NetNS: "/proc/self/ns/net", Resources: cri.Resources{MemoryBytes: 1 << 30}, SharePIDKnown: true}
	if s.Initdata, err = initdata.Compress([]byte("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"x\" = \"y\"\n")); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(s)
	}
	p := pod.New(pod.Options{
		ID: s.ID, Namespace: "k8s.io", Config: config,
		Network: func(context.Context, string) (pod.Network, error) { return cards{tap}, nil },
		Launch: func(ctx context.Context, plan *pod.Plan) (pod.Machine, error) {
			plan.Sandbox.Facts = &facts
			m, err := sandbox.Launch(ctx, plan.Sandbox)
			if err == nil {
				_ = m.Close()
				return nil, errTaken
			}
			return nil, err
		},
	})
	defer func() { _ = p.Close(context.WithoutCancel(t.Context())) }()
	bootErr := p.Boot(t.Context(), s)
	args, err := os.ReadFile(filepath.Join(w.dir, "args"))
	if err != nil {
		return "", bootErr
	}
	return strings.ReplaceAll(strings.ReplaceAll(string(args), w.root, ""), w.dir, "DIR"), nil
}

func TestCommandLines(t *testing.T) {
	t.Parallel()
	missing := errors.New("not on this node")
	snp := platform.Facts{TDX: missing, CBitPos: 51, ReducedPhysBits: 1}
	tdx := platform.Facts{SNP: missing}
	none := platform.Facts{SNP: missing, TDX: missing, KVM: missing}
	for _, tc := range []struct {
		name, handler, qemu string
		facts               platform.Facts
		change              func(*cri.Sandbox)
	}{
		{"snp", "coffer-qemu-snp", "9.1.0", snp, nil},
		{"snp-annotated", "coffer-qemu-snp", "10.0.2", snp, func(s *cri.Sandbox) {
			s.Annotations = map[string]string{runtimeconfig.AnnotationVCPUs: "4", runtimeconfig.AnnotationMemory: "4096"}
		}},
		{"tdx", "coffer-qemu-tdx", "10.1.0", tdx, nil},
		{"tdx-unsealed", "coffer-qemu-tdx", "10.1.0", tdx, func(s *cri.Sandbox) { s.Initdata = nil }},
		{"soft", "coffer-qemu-soft", "7.2.22", none, nil},
		{"soft-no-limits", "coffer-qemu-soft", "7.2.22", none, func(s *cri.Sandbox) { s.Resources = cri.Resources{} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, tc.qemu)
			config := w.config(t, tc.handler)
			if tc.handler == "coffer-qemu-soft" {
				config.Accelerator = "tcg" // whatever this machine can do
			}
			got, err := w.command(t, config, tc.facts, tc.change)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", tc.name+".args")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("the command line has changed (run with -update if it should):\n%s", diff)
			}
		})
	}
}

// TestTooOld: what would be started without protection is not started.
func TestTooOld(t *testing.T) {
	t.Parallel()
	missing := errors.New("not on this node")
	for _, tc := range []struct {
		handler, qemu string
		facts         platform.Facts
		want          string
	}{
		{"coffer-qemu-snp", "9.0.4", platform.Facts{TDX: missing, CBitPos: 51, ReducedPhysBits: 1}, "a snp guest needs QEMU 9.1 or newer, this is 9.0"},
		{"coffer-qemu-tdx", "10.0.3", platform.Facts{SNP: missing}, "a tdx guest needs QEMU 10.1 or newer, this is 10.0"},
		{"coffer-qemu-snp", "10.1.0", platform.Facts{SNP: missing, TDX: missing}, "tee snp: not on this node"},
		{"coffer-qemu-tdx", "10.1.0", platform.Facts{SNP: missing, TDX: missing}, "tee tdx: not on this node"},
	} {
		w := newWorld(t, tc.qemu)
		args, err := w.command(t, w.config(t, tc.handler), tc.facts, nil)
		if args != "" || err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s with QEMU %s: %q, %v", tc.handler, tc.qemu, args, err)
		}
	}
}
