// Package accel decides how guests are executed: by hardware virtualisation
// (KVM) or by QEMU's translator (TCG).
//
// That /dev/kvm opens proves little: on nested hosts it may open and stock
// guests still do not run. So a small guest is booted once, and the verdict
// is cached for this QEMU, kernel and boot of the host. A verdict says why.
package accel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/host/vmm"
)

// Mode is what the user asks for.
type Mode string

const (
	// Auto probes KVM and falls back to TCG.
	Auto Mode = "auto"
	// KVM is used without a probe; it is an error where it cannot be opened.
	KVM Mode = "kvm"
	// TCG works everywhere.
	TCG Mode = "tcg"
)

// ParseMode reads a mode; empty is Auto.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case "":
		return Auto, nil
	case Auto, KVM, TCG:
		return m, nil
	}
	return "", fmt.Errorf("accelerator: expected auto, kvm or tcg, got %q", s)
}

// CPU is the CPU model for guests that no hardware measures.
func CPU(a vmm.Accelerator) string {
	if a == vmm.KVM {
		return "host"
	}
	return "max"
}

// Verdict is how guests are executed, and why.
type Verdict struct {
	Accelerator vmm.Accelerator `json:"accelerator"`
	// Reason is for people.
	Reason string `json:"reason"`
	// Cached tells that the probe ran earlier.
	Cached bool `json:"cached"`
	// Took is how long this decision took.
	Took time.Duration `json:"took_ns"`
}

// Options are what a decision depends on.
type Options struct {
	QEMU vmm.QEMU
	// Kernel and Firmware are paths of what guests boot.
	Kernel, Firmware string
	// KernelDigest identifies the kernel in the cache; empty: the file is read.
	KernelDigest string
	Logger       *slog.Logger
	// CacheDir holds verdicts; empty is coffer/accel in the user's cache
	// directory.
	CacheDir string
	// Refresh probes again whatever the cache says.
	Refresh bool
	// Device and BootID are /dev/kvm and the host's boot id where empty;
	// tests change them.
	Device, BootID string
	// Probe is how KVM is tried; nil boots a guest. It returns nil when the
	// guest ran; see Unusable for a conclusive no.
	Probe func(context.Context) error
}

// Unusable returns the error of a probe that has found out that the
// accelerator does not run guests. Only this and success are cached.
func Unusable(reason string) error { return &unusable{reason} }

const (
	device     = "/dev/kvm"
	bootIDFile = "/proc/sys/kernel/random/boot_id"
)

// Decide chooses an accelerator. In mode Auto it takes at most half a minute
// the first time and next to nothing later.
func Decide(ctx context.Context, mode Mode, opts Options) (Verdict, error) {
	start := time.Now()
	if opts.Device == "" {
		opts.Device = device
	}
	v, err := decide(ctx, mode, opts)
	v.Took = time.Since(start)
	if err == nil {
		opts.Logger.InfoContext(ctx, "accelerator chosen", "accelerator", string(v.Accelerator), "reason", v.Reason, "cached", v.Cached)
	}
	return v, err
}

func decide(ctx context.Context, mode Mode, opts Options) (Verdict, error) {
	if mode == TCG {
		return Verdict{Accelerator: vmm.TCG, Reason: "asked for"}, nil
	}
	openErr := tryOpen(opts.Device)
	switch {
	case mode == KVM && openErr != nil:
		return Verdict{}, fmt.Errorf("accelerator kvm: %w (load the kvm modules, join the group that owns the device, or use --accel auto)", openErr)
	case mode == KVM:
		return Verdict{Accelerator: vmm.KVM, Reason: "asked for"}, nil
	case mode != Auto:
		return Verdict{}, fmt.Errorf("accelerator: expected auto, kvm or tcg, got %q", mode)
	case openErr != nil:
		// Quick to find out, and it may change at any time: not cached.
		return Verdict{Accelerator: vmm.TCG, Reason: "KVM is not available: " + openErr.Error()}, nil //nolint:nilerr // the reason for TCG
	}
	return opts.probed(ctx)
}

func (o Options) probed(ctx context.Context) (Verdict, error) {
	key, err := o.key()
	if err != nil {
		return Verdict{}, err
	}
	cache, err := o.cache()
	if err != nil {
		o.Logger.WarnContext(ctx, "the accelerator's verdict cannot be cached", "error", err)
	}
	if v, ok := cache.load(key); ok && !o.Refresh {
		return v, nil
	}
	o.Logger.InfoContext(ctx, "trying KVM with a small guest, once", "limit", bootLimit)
	try := o.Probe
	if try == nil {
		try = func(ctx context.Context) error { return probe(ctx, o, o.Logger) }
	}
	v := Verdict{Accelerator: vmm.KVM, Reason: "a probe guest booted under KVM"}
	if err := try(ctx); err != nil {
		no, conclusive := errors.AsType[*unusable](err)
		if !conclusive {
			return Verdict{}, err
		}
		v = Verdict{Accelerator: vmm.TCG, Reason: "KVM opens, but a probe guest does not run under it: " + no.reason}
	}
	if err := cache.store(key, v); err != nil {
		o.Logger.WarnContext(ctx, "the accelerator's verdict was not cached", "error", err)
	}
	return v, nil
}

// tryOpen opens the device and closes it.
func tryOpen(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// key names everything a verdict depends on.
func (o Options) key() (string, error) {
	if o.BootID == "" {
		b, err := os.ReadFile(bootIDFile)
		if err != nil {
			return "", fmt.Errorf("the host's boot id: %w", err)
		}
		o.BootID = strings.TrimSpace(string(b))
	}
	if o.KernelDigest == "" {
		b, err := os.ReadFile(o.Kernel)
		if err != nil {
			return "", fmt.Errorf("guest kernel: %w", err)
		}
		sum := sha256.Sum256(b)
		o.KernelDigest = hex.EncodeToString(sum[:])
	}
	h := sha256.New()
	for _, part := range []string{"coffer accel 1", o.QEMU.Path, o.QEMU.Version, o.KernelDigest, o.Firmware, o.BootID, CPU(vmm.KVM)} {
		_, _ = fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (o Options) cache() (cache, error) {
	if o.CacheDir != "" {
		return cache{o.CacheDir}, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return cache{}, err
	}
	return cache{filepath.Join(dir, "coffer", "accel")}, nil
}
