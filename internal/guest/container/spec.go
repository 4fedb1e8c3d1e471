package container

import (
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Config is what a container is, in the guest's terms: everything in it was
// decided by the pod policy or by this package.
type Config struct {
	// Rootfs is the directory that becomes its root.
	Rootfs string
	Args   []string
	Env    []string // KEY=VALUE
	Cwd    string
	UID    uint32
	GID    uint32
	Groups []uint32
	// Capabilities are names such as CAP_NET_BIND_SERVICE.
	Capabilities    []string
	NoNewPrivileges bool
	ReadOnlyRoot    bool
	// Unconfined leaves the system call filter out.
	Unconfined bool
	// Unmasked leaves the kernel's files as they are: nothing is hidden, or made
	// read-only.
	Unmasked bool
	// Privileged lets the container use every device of the guest, and write
	// below /sys.
	Privileged bool
	// RLimits by name, such as RLIMIT_NOFILE.
	RLimits  map[string]RLimit
	Terminal bool
	Mounts   []Mount
	Devices  []Device
	Limits   Limits
	// Nodes are further devices, which only a privileged container may use.
	Nodes []Node
	// PIDNamespace is the path of the namespace to join; empty: its own.
	PIDNamespace string
	// WithoutDeviceRules leaves the device cgroup open. For tests only, on
	// machines that may not load the filter.
	WithoutDeviceRules bool
}

// RLimit is a limit of setrlimit(2).
type RLimit struct{ Soft, Hard uint64 }

// Mount puts a directory or file of the guest into the container.
type Mount struct {
	Source   string
	Path     string
	ReadOnly bool
	// Exec permits programs on it.
	Exec bool
}

// Device gives a block device of the guest to the container, as a node that the
// container's user owns.
type Device struct {
	// Path in the container.
	Path         string
	Major, Minor uint32
	ReadOnly     bool
}

// Node is a device node of the guest's, as it is there.
type Node struct {
	// Path in the container; Type is b or c.
	Path, Type   string
	Major, Minor uint32
	Mode         os.FileMode
	GID          uint32
}

// Kernel interfaces that reach beyond the container, hidden or read only.
// The lists are those of the OCI runtimes in common use.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
		// The agent's own: reports and modules are no business of a container.
		"/sys/kernel/config", "/sys/class/virtio-ports", "/sys/kernel/security",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// Spec builds the runtime's configuration. It has nothing that c does not
// name, apart from the fixed set of kernel file systems.
func Spec(c Config) (*specs.Spec, error) {
	caps, err := capabilities(c.Capabilities)
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: c.Rootfs, Readonly: c.ReadOnlyRoot},
		Process: process(c, caps),
		Mounts:  append(kernelMounts(c.Privileged), bindMounts(c.Mounts)...),
		Linux: &specs.Linux{
			// No network, UTS or IPC namespace: the virtual machine is the
			// pod, and its containers share these.
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace},
				{Type: specs.PIDNamespace, Path: c.PIDNamespace},
				{Type: specs.CgroupNamespace},
			},
			Devices:   devices(c),
			Resources: resources(c),
		},
	}
	if !c.Unmasked {
		spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = maskedPaths, readonlyPaths
	}
	if !c.Unconfined {
		spec.Linux.Seccomp = defaultSeccomp(c.Capabilities)
	}
	return spec, nil
}

// ExecProcess builds the configuration of another process in the container
// that c describes; args, env, cwd and terminal are the process's own.
func ExecProcess(c Config, args, env []string, cwd string, terminal bool) (*specs.Process, error) {
	caps, err := capabilities(c.Capabilities)
	if err != nil {
		return nil, err
	}
	c.Args, c.Env, c.Cwd, c.Terminal = args, env, cwd, terminal
	return process(c, caps), nil
}

func process(c Config, caps []string) *specs.Process {
	p := &specs.Process{
		Terminal:        c.Terminal,
		User:            specs.User{UID: c.UID, GID: c.GID, AdditionalGids: c.Groups},
		Args:            c.Args,
		Env:             c.Env,
		Cwd:             c.Cwd,
		NoNewPrivileges: c.NoNewPrivileges,
		Capabilities: &specs.LinuxCapabilities{
			Bounding: caps, Permitted: caps, Effective: caps,
		},
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	for _, name := range slices.Sorted(maps.Keys(c.RLimits)) {
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: name, Soft: c.RLimits[name].Soft, Hard: c.RLimits[name].Hard})
	}
	if c.UID != 0 {
		// As with setuid(2), a user who is not root starts with none in
		// force; file capabilities may bring back what is in the bounding set.
		p.Capabilities.Permitted, p.Capabilities.Effective = nil, nil
	}
	return p
}

// kernelMounts are the file systems every container has.
func kernelMounts(privileged bool) []specs.Mount {
	access := "ro"
	if privileged {
		access = "rw"
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "strictatime", "mode=755", "size=64k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=64m"}},
	}
}

// bindMounts sorts by depth, so that a mount does not hide an earlier one.
func bindMounts(in []Mount) []specs.Mount {
	sorted := slices.SortedStableFunc(slices.Values(in), func(a, b Mount) int {
		return strings.Count(a.Path, "/") - strings.Count(b.Path, "/")
	})
	var out []specs.Mount
	for _, m := range sorted {
		options := []string{"bind", "nosuid", "nodev", "private"}
		if !m.Exec {
			options = append(options, "noexec")
		}
		if m.ReadOnly {
			options = append(options, "ro")
		}
		out = append(out, specs.Mount{Destination: m.Path, Type: "bind", Source: m.Source, Options: options})
	}
	return out
}

func devices(c Config) []specs.LinuxDevice {
	var out []specs.LinuxDevice
	for _, d := range c.Devices {
		mode := os.FileMode(0o600)
		if d.ReadOnly {
			mode = 0o400
		}
		out = append(out, specs.LinuxDevice{
			Path: d.Path, Type: "b", Major: int64(d.Major), Minor: int64(d.Minor), FileMode: &mode, UID: &c.UID, GID: &c.GID,
		})
	}
	for _, n := range c.Nodes {
		if slices.ContainsFunc(c.Devices, func(d Device) bool { return d.Path == n.Path }) {
			continue
		}
		out = append(out, specs.LinuxDevice{Path: n.Path, Type: n.Type, Major: int64(n.Major), Minor: int64(n.Minor), FileMode: &n.Mode, UID: new(uint32), GID: &n.GID})
	}
	return out
}

func resources(c Config) *specs.LinuxResources {
	r := &specs.LinuxResources{}
	if !c.WithoutDeviceRules {
		// The runtime adds the harmless ones (null, zero, terminals, …).
		r.Devices = []specs.LinuxDeviceCgroup{{Allow: c.Privileged, Access: "rwm"}}
		for _, d := range c.Devices {
			access := "rw" // and no mknod: the node is made from outside
			if d.ReadOnly {
				access = "r"
			}
			major, minor := int64(d.Major), int64(d.Minor)
			r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "b", Major: &major, Minor: &minor, Access: access})
		}
	}
	if n := c.Limits.MemoryBytes; n != 0 {
		limit := int64(min(n, 1<<62))
		r.Memory = &specs.LinuxMemory{Limit: &limit}
	}
	if n := c.Limits.CPUMillis; n != 0 {
		quota, period := int64(cpuQuota(n)), uint64(cpuPeriod)
		r.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}
	if n := c.Limits.PIDs; n != 0 {
		limit := int64(n)
		r.Pids = &specs.LinuxPids{Limit: &limit}
	}
	return r
}
