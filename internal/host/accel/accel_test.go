package accel

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coffer-project/coffer/internal/host/hosttest"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// options answer without a guest; count is how often the probe ran.
func options(t *testing.T, result error) (Options, *int) {
	t.Helper()
	dev := filepath.Join(t.TempDir(), "kvm")
	if err := os.WriteFile(dev, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	count := new(int)
	return Options{
		QEMU: vmm.QEMU{Path: "/qemu", Version: "QEMU 7.2"}, Kernel: "/kernel", KernelDigest: "abc", Firmware: "/bios",
		Logger: slog.New(slog.DiscardHandler), CacheDir: filepath.Join(t.TempDir(), "cache"),
		Device: dev, BootID: "boot-1",
		Probe: func(context.Context) error { *count++; return result },
	}, count
}

func TestAutoProbesOnce(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		result error
		want   vmm.Accelerator
		reason string
	}{
		{"runs", nil, vmm.KVM, "booted under KVM"},
		{"does not run", Unusable("the kernel printed nothing"), vmm.TCG, "does not run under it: the kernel printed nothing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			opts, count := options(t, tc.result)
			for i := range 3 {
				v, err := Decide(t.Context(), Auto, opts)
				if err != nil || v.Accelerator != tc.want || !strings.Contains(v.Reason, tc.reason) || v.Cached != (i > 0) {
					t.Errorf("call %d: %+v, %v", i, v, err)
				}
			}
			if *count != 1 {
				t.Errorf("%d probes", *count)
			}
			again := opts
			again.Refresh = true
			if v, err := Decide(t.Context(), Auto, again); err != nil || v.Cached || *count != 2 {
				t.Errorf("refresh: %+v, %v, %d probes", v, err, *count)
			}
			for _, change := range []func(*Options){
				func(o *Options) { o.BootID = "boot-2" },
				func(o *Options) { o.KernelDigest = "def" },
				func(o *Options) { o.QEMU.Version = "QEMU 9.1" },
			} {
				changed := opts
				change(&changed)
				if v, err := Decide(t.Context(), Auto, changed); err != nil || v.Cached {
					t.Errorf("changed host: %+v, %v", v, err)
				}
			}
		})
	}
}

func TestInconclusiveIsNotCached(t *testing.T) {
	t.Parallel()
	opts, count := options(t, errors.New("interrupted"))
	for range 2 {
		if _, err := Decide(t.Context(), Auto, opts); err == nil {
			t.Error("an open question was answered")
		}
	}
	if *count != 2 {
		t.Errorf("%d probes", *count)
	}
}

func TestDamagedCacheIsReplaced(t *testing.T) {
	t.Parallel()
	opts, count := options(t, nil)
	if _, err := Decide(t.Context(), Auto, opts); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(opts.CacheDir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("cache: %v, %v", files, err)
	}
	for _, damage := range []string{"", "{", `{"accelerator":"xen","reason":""}`, `{"accelerator":"kvm","reason":"","x":1}`, strings.Repeat("x", maxEntryBytes+1)} {
		if err := os.WriteFile(files[0], []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if v, err := Decide(t.Context(), Auto, opts); err != nil || v.Cached {
			t.Errorf("%.20q: %+v, %v", damage, v, err)
		}
		if v, err := Decide(t.Context(), Auto, opts); err != nil || !v.Cached {
			t.Errorf("after %.20q: %+v, %v", damage, v, err)
		}
	}
	if *count != 6 {
		t.Errorf("%d probes", *count)
	}
}

func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	c := cache{t.TempDir()}
	for i := range 3 * maxEntries {
		if err := c.store(strings.Repeat("k", i+1), Verdict{Accelerator: vmm.TCG}); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(c.dir)
	if err != nil || len(files) > maxEntries {
		t.Errorf("%d files, %v", len(files), err)
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	opts, count := options(t, nil)
	missing := opts
	missing.Device = filepath.Join(t.TempDir(), "kvm")
	for _, tc := range []struct {
		name string
		mode Mode
		opts Options
		want vmm.Accelerator
		text string
	}{
		{"tcg", TCG, opts, vmm.TCG, "asked for"},
		{"kvm", KVM, opts, vmm.KVM, "asked for"},
		{"kvm without device", KVM, missing, "", "no such file"},
		{"auto without device", Auto, missing, vmm.TCG, "KVM is not available"},
		{"unknown", "xen", opts, "", "expected auto, kvm or tcg"},
	} {
		v, err := Decide(t.Context(), tc.mode, tc.opts)
		text := v.Reason
		if err != nil {
			text = err.Error()
		}
		if v.Accelerator != tc.want || !strings.Contains(text, tc.text) {
			t.Errorf("%s: %+v, %v", tc.name, v, err)
		}
	}
	if *count != 0 {
		t.Errorf("%d probes", *count)
	}
	if m, err := ParseMode(""); m != Auto || err != nil {
		t.Errorf("ParseMode: %v, %v", m, err)
	}
	if _, err := ParseMode("xen"); err == nil {
		t.Error("ParseMode takes anything")
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	closed := make(chan struct{})
	close(closed)
	after := func(d time.Duration) chan struct{} {
		c := make(chan struct{})
		time.AfterFunc(d, func() { close(c) })
		return c
	}
	for _, tc := range []struct {
		name  string
		start func() (spoke, booted, done chan struct{})
		want  outcome
		took  time.Duration
	}{
		{"up", func() (a, b, c chan struct{}) { return after(time.Second), after(2 * time.Second), nil }, up, 2 * time.Second},
		{"up and gone", func() (a, b, c chan struct{}) { return nil, closed, closed }, up, 0},
		{"silent", func() (a, b, c chan struct{}) { return nil, nil, nil }, silent, silenceLimit},
		{"slow", func() (a, b, c chan struct{}) { return after(time.Second), nil, nil }, slow, bootLimit},
		{"ended", func() (a, b, c chan struct{}) { return nil, nil, after(time.Second) }, ended, time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				spoke, booted, done := tc.start()
				if got, took := watch(spoke, booted, done), time.Since(start); got != tc.want || took != tc.took {
					t.Errorf("%d after %s, want %d after %s", got, took, tc.want, tc.took)
				}
			})
		})
	}
}

// TestProbeInit reads the hand-made program with a real reader.
func TestProbeInit(t *testing.T) {
	t.Parallel()
	f, err := elf.NewFile(bytes.NewReader(probeInit()))
	if err != nil {
		t.Fatal(err)
	}
	p := f.Progs[0]
	if f.Type != elf.ET_EXEC || f.Machine != elf.EM_X86_64 || p.Flags != elf.PF_R|elf.PF_X ||
		f.Entry != p.Vaddr+elfHeaderSize+programHeaderSize {
		t.Errorf("%+v, %+v", f.FileHeader, p.ProgHeader)
	}
	// The lea's displacement leads to the text behind the code.
	code := probeCode()
	const leaEnd = 17
	text := string(code[leaEnd+int(code[13]):])
	if text != marker+"\n" || int(code[18]) != len(text) {
		t.Errorf("the code's text is %q of %d bytes", text, code[18])
	}
}

// TestRealHost boots the probe on this machine, whatever comes out: it must
// end in time, with a reason, and leave nothing. Then the same guest runs
// under the accelerator that was chosen.
func TestRealHost(t *testing.T) {
	kernel := hosttest.Kernel(t)
	hosttest.NoFiles(t)
	q, err := vmm.FindQEMU(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	bios, err := vmm.FindSeaBIOS()
	if err != nil {
		t.Fatal(err)
	}
	before := hosttest.Descriptors(t)
	opts := Options{QEMU: q, Kernel: kernel, Firmware: bios, Logger: slog.New(slog.DiscardHandler), CacheDir: filepath.Join(t.TempDir(), "c")}
	v, err := Decide(t.Context(), Auto, opts)
	if err != nil || v.Reason == "" || v.Took > bootLimit+10*time.Second {
		t.Fatalf("%+v, %v", v, err)
	}
	t.Logf("%s in %s: %s", v.Accelerator, v.Took.Round(time.Millisecond), v.Reason)
	if tryOpen(device) == nil {
		if v, err := Decide(t.Context(), Auto, opts); err != nil || !v.Cached {
			t.Errorf("second call: %+v, %v", v, err)
		}
	}
	initrd, err := probeInitrd()
	if err != nil {
		t.Fatal(err)
	}
	archive, err := vmm.Sealed("initrd", initrd)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = archive.Close() }()
	said := false
	vm, err := vmm.Start(t.Context(), &vmm.Machine{
		Name: "accel-test", Accelerator: v.Accelerator, CPU: CPU(v.Accelerator), VCPUs: 1, MemoryMiB: 256,
		Firmware: vmm.Input{Path: bios}, Kernel: vmm.Input{Path: kernel}, Initrd: vmm.Input{File: archive}, Cmdline: probeCmdline,
	}, vmm.Options{QEMU: q, Logger: slog.New(slog.DiscardHandler), ConsoleLine: func(l string) { said = said || strings.Contains(l, marker) }})
	if err != nil {
		t.Fatal(err)
	}
	<-vm.Done()
	if end := vm.End(); !said || end.Cause != vmm.PoweredOff {
		t.Errorf("the probe guest under %s: %v", v.Accelerator, end)
	}
	_ = vm.Close()
	_ = archive.Close()
	if after := hosttest.Descriptors(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add([]byte(`{"accelerator":"kvm","reason":"x"}`))
	f.Add([]byte(`{"accelerator":"kvm","accelerator":"tcg"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := parseEntry(data)
		if err == nil && e.Accelerator != vmm.KVM && e.Accelerator != vmm.TCG {
			t.Fatalf("%+v", e)
		}
	})
}
