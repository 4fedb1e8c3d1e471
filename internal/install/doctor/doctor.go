// Package doctor finds out what a node can do for confidential pods, and what
// would help it do more.
//
// [Inspect] looks at the hardware and the kernel (internal/host/platform), tries
// whether KVM runs guests (internal/host/accel), asks QEMU and containerd for
// their versions, makes a tap device with the filters that a pod's network
// needs in a network namespace that ends with the attempt, and compares what is
// installed with its record. A [Report] has a check for each, with what to do
// about it, and what all of it comes to as labels of a Kubernetes node.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/coffer-project/coffer/internal/guestimage/manifest"
	"github.com/coffer-project/coffer/internal/host/accel"
	"github.com/coffer-project/coffer/internal/host/platform"
	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/internal/install"
)

// Level of a check.
type Level string

const (
	// OK: it is there and works.
	OK Level = "ok"
	// Optional: it is not there, and something is slower or cannot be had.
	Optional Level = "optional"
	// Missing: pods of this runtime cannot run.
	Missing Level = "missing"
)

// Check is one thing that was looked at.
type Check struct {
	Name  string `json:"name"`
	Level Level  `json:"level"`
	// Detail is what was found, Help what to do about it.
	Detail string `json:"detail"`
	Help   string `json:"help,omitempty"`
}

// Report is what a node can do.
type Report struct {
	Checks []Check `json:"checks"`
	// Runtime: installed, as recorded, and containerd imports it.
	Runtime bool `json:"runtime"`
	// Soft, SNP and TDX: machines of that kind can be launched.
	Soft bool `json:"soft"`
	SNP  bool `json:"snp"`
	TDX  bool `json:"tdx"`
	// KVM: guests run at the processor's speed.
	KVM bool `json:"kvm"`
	// Handlers that are installed.
	Handlers []string `json:"handlers,omitempty"`
}

// Options say what to look at. All of it is the machine that this program runs
// on.
type Options struct {
	// Install names the installation: its prefix.
	Install install.Options
	// QEMU is the emulator's name or path.
	QEMU string
	// GuestImage has the kernel that KVM is tried with; empty: an installed one.
	GuestImage string
	// CacheDir keeps the verdict about KVM.
	CacheDir string
	Logger   *slog.Logger

	// Root of devices, /sys and /proc; empty is "/".
	Root string
	// CPUID, FindQEMU, Accelerator and Network look; nil: at this machine.
	CPUID       platform.CPUID
	FindQEMU    func(context.Context, string) (vmm.QEMU, error)
	Accelerator func(context.Context, accel.Options) (accel.Verdict, error)
	Network     func() error
}

// Inspect looks at everything. It takes at most half a minute.
func Inspect(ctx context.Context, o Options) *Report {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.FindQEMU == nil {
		o.FindQEMU = vmm.FindQEMU
	}
	if o.Accelerator == nil {
		o.Accelerator = func(ctx context.Context, a accel.Options) (accel.Verdict, error) {
			return accel.Decide(ctx, accel.Auto, a)
		}
	}
	if o.Network == nil {
		o.Network = tryNetwork
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Report{}
	o.Install.Logger = o.Logger
	facts := platform.Inspect()
	if o.CPUID != nil {
		facts = platform.InspectRoot(o.Root, o.CPUID)
	}
	r.architecture()
	qemu, haveQEMU := r.qemu(ctx, o)
	r.installed(o)
	r.kvm(ctx, o, facts, qemu, haveQEMU)
	r.tee(o, "SEV-SNP", "snp", facts.SNP, qemu, haveQEMU, &vmm.SNP{})
	r.tee(o, "TDX", "tdx", facts.TDX, qemu, haveQEMU, &vmm.TDX{})
	r.network(o)
	r.vsock(facts)
	r.cgroups(o)
	r.inotify(o)
	return r
}

func (r *Report) add(name string, level Level, help, format string, args ...any) {
	detail := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	r.Checks = append(r.Checks, Check{Name: name, Level: level, Detail: detail, Help: help})
}

// Ready says whether pods of the runtime can run here at all.
func (r *Report) Ready() bool {
	for _, c := range r.Checks {
		if c.Level == Missing {
			return false
		}
	}
	return true
}

func (r *Report) architecture() {
	if runtime.GOARCH == "amd64" {
		r.add("processor", OK, "", "amd64")
		return
	}
	r.add("processor", Missing, "guest images are built for amd64", "%s", runtime.GOARCH)
}

func (r *Report) qemu(ctx context.Context, o Options) (vmm.QEMU, bool) {
	q, err := o.FindQEMU(ctx, o.QEMU)
	if err != nil {
		r.add("QEMU", Missing, "install it", "%v", err)
		return q, false
	}
	if _, err := vmm.FindSeaBIOS(); err != nil {
		r.add("firmware", Optional, "handlers of the software TEE need it, unless the guest image brings one", "%v", err)
	}
	r.Soft = true
	r.add("QEMU", OK, "", "%s at %s", q.Version, q.Path)
	return q, true
}

func (r *Report) installed(o Options) {
	record, problems, err := install.Verify(o.Install)
	switch {
	case err != nil:
		r.add("runtime", Missing, "repair or remove it", "%v", err)
	case record == nil:
		r.add("runtime", Missing, "run coffer install", "not installed")
	case len(problems) > 0:
		r.add("runtime", Missing, "run coffer install again", "%s", strings.Join(problems, "; "))
	default:
		r.Runtime, r.Handlers = true, record.Handlers
		r.add("runtime", OK, "", "coffer %s, handlers %s, containerd %s", record.Program, strings.Join(record.Handlers, ", "), record.Containerd.Version)
	}
}

func (r *Report) kvm(ctx context.Context, o Options, facts platform.Facts, qemu vmm.QEMU, haveQEMU bool) {
	const slow = "guests are emulated: ten to fifty times slower"
	if facts.KVM != nil {
		r.add("KVM", Optional, slow, "%v", facts.KVM)
		return
	}
	kernel, firmware, err := o.kernel()
	if !haveQEMU || err != nil {
		r.add("KVM", Optional, "it opens, but whether it runs guests was not tried", "%v", errors.Join(err))
		return
	}
	v, err := o.Accelerator(ctx, accel.Options{QEMU: qemu, Kernel: kernel, Firmware: firmware, Logger: o.Logger, CacheDir: o.CacheDir})
	switch {
	case err != nil:
		r.add("KVM", Optional, slow, "%v", err)
	case v.Accelerator != vmm.KVM:
		r.add("KVM", Optional, slow, "%s", v.Reason)
	default:
		r.KVM = true
		r.add("KVM", OK, "", "%s", v.Reason)
	}
}

// kernel is what KVM is tried with: that of the guest image.
func (o Options) kernel() (kernel, firmware string, err error) {
	dirs := []string{o.GuestImage}
	if o.GuestImage == "" {
		prefix := o.Install.Prefix
		if prefix == "" {
			prefix = install.DefaultPrefix
		}
		if dirs, err = filepath.Glob(filepath.Join(prefix, "guest", "*")); err != nil || len(dirs) == 0 {
			return "", "", errors.New("no guest image is installed")
		}
	}
	m, err := manifest.Load(dirs[0])
	if err != nil {
		return "", "", err
	}
	firmware, err = vmm.FindSeaBIOS()
	return filepath.Join(dirs[0], m.Kernel.Name), firmware, err
}

// tee judges a hardware TEE: the processor and the kernel, QEMU, firmware.
func (r *Report) tee(o Options, name, tee string, fact error, qemu vmm.QEMU, haveQEMU bool, c vmm.Confidential) {
	if fact != nil {
		r.add(name, Optional, "", "%v", fact)
		return
	}
	if !haveQEMU {
		r.add(name, Optional, "install QEMU", "the host has it, but there is no QEMU")
		return
	}
	if err := qemu.Supports(&vmm.Machine{Name: "any", Confidential: c}); err != nil {
		r.add(name, Optional, "", "the host has it, but %v", err)
		return
	}
	path := install.FindFirmware(o.Root, tee, o.Install.Firmware[tee])
	if path == "" {
		r.add(name, Optional, "install OVMF for it, or name it with --"+tee+"-firmware", "the host has it, but no firmware for its guests was found")
		return
	}
	if tee == "snp" {
		r.SNP = true
	} else {
		r.TDX = true
	}
	r.add(name, OK, "", "the host launches such guests, with firmware %s", path)
}

func (r *Report) network(o Options) {
	if err := o.Network(); err != nil {
		r.add("pod network", Missing, "load the kernel modules tun, sch_ingress, cls_u32 and act_mirred", "%v", err)
		return
	}
	r.add("pod network", OK, "", "tap devices, ingress queues, u32 filters and mirred redirection work")
}

func (r *Report) vsock(facts platform.Facts) {
	if facts.VhostVsock != nil {
		r.add("vhost-vsock", Optional, "", "%v", facts.VhostVsock)
		return
	}
	r.add("vhost-vsock", OK, "", "/dev/vhost-vsock opens")
}

func (r *Report) cgroups(o Options) {
	exists := func(name string) bool { _, err := os.Stat(filepath.Join(o.Root, name)); return err == nil }
	switch {
	case exists("sys/fs/cgroup/cgroup.controllers"):
		r.add("cgroups", OK, "", "version 2")
	case exists("sys/fs/cgroup/memory") && exists("sys/fs/cgroup/unified"):
		r.add("cgroups", OK, "", "version 1, with version 2 beside it")
	case exists("sys/fs/cgroup/memory"):
		r.add("cgroups", OK, "", "version 1")
	default:
		r.add("cgroups", Missing, "mount cgroup2 at /sys/fs/cgroup", "no memory controller at /sys/fs/cgroup")
	}
}

// LabelPrefix begins the labels of nodes.
const LabelPrefix = "coffer-project.io/"

// LabelNames are all the labels that a node can get.
func LabelNames() []string {
	return []string{LabelPrefix + "runtime", LabelPrefix + "soft", LabelPrefix + "snp", LabelPrefix + "tdx", LabelPrefix + "kvm"}
}

// Labels are what a scheduler has to know: "true" by name for what the node can
// do. A TEE counts only with its handler installed; other names have to be
// removed.
func (r *Report) Labels() map[string]string {
	out := make(map[string]string)
	has := func(handler string) bool {
		for _, h := range r.Handlers {
			if h == handler {
				return true
			}
		}
		return false
	}
	ready := r.Runtime && r.Ready()
	for name, can := range map[string]bool{
		"runtime": ready, "soft": ready && r.Soft && has("coffer-qemu-soft"), "kvm": ready && r.KVM,
		"snp": ready && r.SNP && has("coffer-qemu-snp"), "tdx": ready && r.TDX && has("coffer-qemu-tdx"),
	} {
		if can {
			out[LabelPrefix+name] = "true"
		}
	}
	return out
}
