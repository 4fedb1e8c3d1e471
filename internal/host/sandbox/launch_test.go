package sandbox_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guestimage/manifest"
	"github.com/coffer-project/coffer/internal/host/accel"
	"github.com/coffer-project/coffer/internal/host/hosttest"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/softtee"
)

// imageDir writes a guest image whose guest is the test guest in mode agent.
func imageDir(t *testing.T) string {
	t.Helper()
	kernel, err := os.ReadFile(hosttest.Kernel(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string, data []byte) manifest.File {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(data)
		return manifest.File{Name: name, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(data))}
	}
	zero := strings.Repeat("0", 64)
	m := manifest.Manifest{
		Version: manifest.Version, Architecture: "amd64",
		Kernel:  file("vmlinuz", kernel),
		Initrd:  manifest.Initrd{File: file("initrd.img", hosttest.Initrd(t)), Compression: "none", Files: []manifest.Entry{}},
		Cmdline: hosttest.Cmdline + "agent",
		Agent:   manifest.Agent{Version: "test", SHA256: zero, Size: 1}, Inputs: zero,
		Packages: []manifest.Package{},
	}
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, manifest.FileName), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func config(t *testing.T, image string, p *softtee.Processor) sandbox.Config {
	t.Helper()
	return sandbox.Config{
		Image: image, TEE: sandbox.Soft, Processor: p, Accelerator: accel.TCG, VCPUs: 1, MemoryMiB: 256,
		Logger: slog.New(slog.DiscardHandler), AccelCache: t.TempDir(), BootTimeout: time.Minute,
	}
}

// nothingLeft checks descriptors now and the temporary directory at the end.
func nothingLeft(t *testing.T) func() {
	t.Helper()
	hosttest.NoFiles(t)
	before := hosttest.Descriptors(t)
	return func() {
		t.Helper()
		if after := hosttest.Descriptors(t); after > before {
			t.Errorf("%d descriptors, %d before", after, before)
		}
	}
}

func TestLaunch(t *testing.T) {
	dir := imageDir(t)
	processor, err := softtee.LoadOrCreate(filepath.Join(t.TempDir(), "tee"), rand.Reader, time.Now())
	if err != nil {
		t.Fatal(err)
	}

	t.Run("life", func(t *testing.T) {
		check := nothingLeft(t)
		digest := sha256.Sum256([]byte("initdata"))
		c := config(t, dir, processor)
		c.ID, c.InitDataDigest = "pod-1", digest[:]
		var stages []sandbox.Stage
		c.Progress = func(s sandbox.Stage) { stages = append(stages, s) }
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		s, err := sandbox.Launch(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		info := s.Info()
		if stages[0] != sandbox.StageImage || stages[len(stages)-1] != sandbox.StageReady {
			t.Errorf("stages %q", stages)
		}
		if h := info.Hello; h.GetBuild() != "testguest" || !h.GetSealed() || !bytes.Equal(h.GetInitdataDigest(), digest[:]) {
			t.Errorf("hello %v: the guest must find the initdata digest %x in its report", h, digest)
		}
		image, err := sandbox.LoadImage(dir, sandbox.Soft, "")
		if err != nil {
			t.Fatal(err)
		}
		want, err := measure.SNP(image.Launch(sandbox.Soft, 1, false))
		if err := errors.Join(err, image.Close()); err != nil || !bytes.Equal(info.Measurement, want[:]) {
			t.Errorf("measurement %x, predicted %x, %v", info.Measurement, want, err)
		}
		if changes := sandbox.Explain(info.Launched, info.Expected); len(changes) != 0 {
			t.Errorf("changes %v", changes)
		}
		if n := s.Network(); len(n.GetHosts()) != 1 || n.GetHosts()[0].GetAddress() != vmm.HostAddress || n.GetHosts()[0].GetNames()[0] != sandbox.HostName {
			t.Errorf("network %v", n)
		}
		var events []uint64
		for e, err := range s.Events(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			events = append(events, e.GetSequence())
		}
		if !slices.Equal(events, []uint64{0, 1, 2}) {
			t.Errorf("events %v", events)
		}
		stream, err := s.Open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_STDIN})
		if err != nil {
			t.Fatal(err)
		}
		sent := bytes.Repeat([]byte("0123456789abcdef"), 20_000)
		go func() { _, _ = stream.Write(sent) }()
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(stream, got); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("stream: %v", err)
		}
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		<-s.Done()
		if end := s.End(); end.Cause != vmm.PoweredOff {
			t.Errorf("end: %v", end)
		}
		_, err = s.Agent().Hello(ctx, &agentapi.HelloRequest{})
		if end, ok := errors.AsType[*vmm.End](err); !ok {
			t.Errorf("a call to a dead machine must say how it died: %v, %v", end, err)
		}
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Error(err)
		}
		check()
	})

	t.Run("guest dies in boot", func(t *testing.T) {
		check := nothingLeft(t)
		c := config(t, dir, processor)
		c.Override.AppendCmdline = "coffer.test=panic"
		_, err := sandbox.Launch(t.Context(), c)
		if end, ok := errors.AsType[*vmm.End](err); !ok || end.Cause != vmm.Reset || !strings.Contains(err.Error(), "testguest: about to exit") {
			t.Errorf("error: %v", err)
		}
		check()
	})

	t.Run("image is written to", func(t *testing.T) {
		check := nothingLeft(t)
		c := config(t, dir, processor)
		kernel := filepath.Join(dir, "vmlinuz")
		c.Progress = func(s sandbox.Stage) {
			if s != sandbox.StageBoot {
				return
			}
			// The same bytes, so that the machine boots.
			f, err := os.OpenFile(kernel, os.O_RDWR, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			first := make([]byte, 1)
			if _, err := f.ReadAt(first, 0); err != nil {
				t.Error(err)
			}
			if _, err := f.WriteAt(first, 0); err != nil {
				t.Error(err)
			}
		}
		if _, err := sandbox.Launch(t.Context(), c); err == nil || !strings.Contains(err.Error(), kernel+" was written to") {
			t.Errorf("error: %v", err)
		}
		check()
	})

	t.Run("agent keeps silent", func(t *testing.T) {
		check := nothingLeft(t)
		c := config(t, dir, nil)
		c.TEE = sandbox.None
		c.Override.AppendCmdline = "coffer.test=hang"
		// A busy machine may need longer until the guest has come to its silence.
		for _, limit := range []time.Duration{6 * time.Second, time.Minute} {
			c.BootTimeout = limit
			_, err := sandbox.Launch(t.Context(), c)
			if err == nil || !strings.Contains(err.Error(), "did not answer within "+limit.String()) {
				t.Fatalf("error: %v", err)
			}
			if strings.Contains(err.Error(), "testguest: mode hang") {
				break
			}
			if limit == time.Minute {
				t.Errorf("error: expected the console's tail, got %v", err)
			}
		}
		check()
	})

	t.Run("context ends", func(t *testing.T) {
		check := nothingLeft(t)
		cause := errors.New("the user pressed Ctrl-C")
		// During the boot.
		ctx, cancel := context.WithCancelCause(t.Context())
		c := config(t, dir, processor)
		c.ConsoleLine = func(string) { cancel(cause) }
		if _, err := sandbox.Launch(ctx, c); !errors.Is(err, cause) {
			t.Errorf("launch: %v", err)
		}
		check()
		// And later. Nobody calls Close here until everything is gone.
		ctx, cancel = context.WithCancelCause(t.Context())
		s, err := sandbox.Launch(ctx, config(t, dir, processor))
		if err != nil {
			t.Fatal(err)
		}
		pid := s.PID()
		cancel(cause)
		<-s.Done()
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("the emulator is still there: %v", err)
		}
		if _, err := s.Open(t.Context(), &agentapi.StreamHeader{Kind: agentapi.StreamHeader_EVENTS}); !errors.Is(err, cause) {
			t.Errorf("open: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		check()
	})
}

// TestLaunchRefuses shows what fails before anything is started.
func TestLaunchRefuses(t *testing.T) {
	dir := imageDir(t)
	processor, err := softtee.LoadOrCreate(filepath.Join(t.TempDir(), "tee"), rand.Reader, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	damaged := imageDir(t)
	initrd := filepath.Join(damaged, "initrd.img")
	data, err := os.ReadFile(initrd)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(initrd, data, 0o600); err != nil {
		t.Fatal(err)
	}
	check := nothingLeft(t)
	for _, tc := range []struct {
		name   string
		change func(*sandbox.Config)
		want   string
	}{
		{"no image", func(c *sandbox.Config) { c.Image = filepath.Join(dir, "none") }, "coffer guest build"},
		{"damaged image", func(c *sandbox.Config) { c.Image = damaged }, "initrd.img: the manifest says sha256"},
		{"no software TEE", func(c *sandbox.Config) { c.Processor = nil }, "no software TEE is configured"},
		{"no such QEMU", func(c *sandbox.Config) { c.QEMU = "no-such-qemu" }, "apt-get install"},
		{"long command line", func(c *sandbox.Config) { c.Override.AppendCmdline = strings.Repeat("x", 2048) }, "cmdline: expected at most 2047"},
		{"unknown TEE", func(c *sandbox.Config) { c.TEE = "sgx" }, "expected auto, soft"},
		{"bad id", func(c *sandbox.Config) { c.ID = "a,b" }, "name: expected"},
		{"no such firmware", func(c *sandbox.Config) { c.Firmware = "/no/such/ovmf" }, "firmware: open /no/such/ovmf"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := config(t, dir, processor)
			tc.change(&c)
			s, err := sandbox.Launch(t.Context(), c)
			if err == nil {
				_ = s.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if strings.Contains(fmt.Sprint(err), "\x1b") {
				t.Errorf("control characters in %q", err)
			}
		})
	}
	check()
}
