// Package runtimeconfig reads the file that configures a runtime handler: one
// TOML file for each handler of containerd, named in the handler's option
// ConfigPath. A pod cannot change what is in it, but for the annotations that
// the file allows.
//
// [Load] is strict: an unknown key, a value out of its range and keys that
// contradict each other are errors, all of them reported at once. [Sample] is a
// file with every key, its default and what it is for.
package runtimeconfig

import (
	_ "embed" // the sample
	"slices"
	"time"
)

// DefaultPath is read when containerd names no file.
const DefaultPath = "/etc/coffer/runtime.toml"

// Sample is a file with every key, as it stands in the documentation.
//
//go:embed sample.toml
var Sample string

// Drivers are what a pod can run in.
const (
	// DriverQEMU is a virtual machine.
	DriverQEMU = "qemu"
	// DriverProcess is the guest agent as a process of the host, for
	// development: nothing is isolated or confidential.
	DriverProcess = "process"
)

// What becomes of hostPath volumes.
const (
	// HostPathCopy copies a directory into the guest, with a warning.
	HostPathCopy = "copy"
	// HostPathRefuse refuses the container.
	HostPathRefuse = "refuse"
)

// Config is the configuration of a handler. Paths are absolute.
type Config struct {
	// TEE is auto, soft, soft-tdx, snp, tdx or none.
	TEE string `toml:"tee"`
	// GuestImage is the directory of the guest image.
	GuestImage string `toml:"guest_image"`
	// Firmware replaces the image's or, without one, the host's.
	Firmware string `toml:"firmware"`
	// QEMU is the emulator's name or path; empty: the usual one.
	QEMU string `toml:"qemu"`
	// Accelerator is auto, kvm or tcg.
	Accelerator string `toml:"accelerator"`

	// DefaultVCPUs is the number of virtual CPUs of every pod, unless its
	// annotation is allowed to say otherwise. SEV-SNP measures it.
	DefaultVCPUs int `toml:"default_vcpus"`
	// MaxVCPUs bounds the annotation.
	MaxVCPUs int `toml:"max_vcpus"`
	// DefaultMemory is the memory in MiB that a pod's containers have together
	// when the pod does not say.
	DefaultMemory int `toml:"default_memory"`
	// OverheadMemory is the memory in MiB that a machine has besides: kernel,
	// agent, page tables.
	OverheadMemory int `toml:"overhead_memory"`
	// MaxMemory bounds a machine's memory, in MiB, with the overhead.
	MaxMemory int `toml:"max_memory"`

	// BootTimeout bounds the boot of a machine, CreateTimeout the creation of a
	// container, with the pull of its image.
	BootTimeout   Duration `toml:"boot_timeout"`
	CreateTimeout Duration `toml:"create_timeout"`
	// ShutdownTimeout bounds the orderly end of a machine; then it is stopped.
	ShutdownTimeout Duration `toml:"shutdown_timeout"`
	// Linger is how long a shim outlives a pod that has ended, or whose bundle is
	// gone, while no containerd is connected with it.
	Linger Duration `toml:"linger"`

	// Scratch is the size in bytes of a sparse disk, encrypted by the guest, for
	// images and what containers write; 0: they are kept in memory.
	Scratch int64 `toml:"scratch"`
	// ScratchDirectory holds it. The file has no name and ends with the machine.
	ScratchDirectory string `toml:"scratch_directory"`
	// BlobCache is the directory of the node's cache of image blobs; empty: none.
	BlobCache string `toml:"blob_cache"`
	// BlobCacheSize bounds it in bytes.
	BlobCacheSize int64 `toml:"blob_cache_size"`
	// DiskSlots is how many block volumes can be given to a running machine.
	DiskSlots int `toml:"disk_slots"`
	// StateDir holds what a clean-up after a crash needs to know.
	StateDir string `toml:"state_dir"`
	// SoftTEEState is the directory with the key of the node's software TEE.
	SoftTEEState string `toml:"softtee_state"`
	// KubeletRoot is the kubelet's --root-dir.
	KubeletRoot string `toml:"kubelet_root"`
	// HostPath is copy or refuse.
	HostPath string `toml:"host_path"`
	// NodeName is told to guests; empty: it is not.
	NodeName string `toml:"node_name"`
	// Annotations lists the annotations of this project that pods may set.
	Annotations []string `toml:"annotations"`
	// UnsealedTrustee is the trustee that pods without initdata are told of.
	UnsealedTrustee Trustee `toml:"unsealed_trustee"`
	// UnsealedRegistries is how pods without initdata reach registries.
	UnsealedRegistries Registries `toml:"unsealed_registries"`

	// Driver is qemu or process; process needs Development and Agent, the
	// path of the agent's program.
	Driver      string `toml:"driver"`
	Agent       string `toml:"agent"`
	Development bool   `toml:"development"`
	// Debug logs more, among it the guest's console.
	Debug bool `toml:"debug"`
}

// Trustee is where a trustee is found.
type Trustee struct {
	// URL is https://…; empty: none.
	URL string `toml:"url"`
	// CA is a file of PEM certificates that vouch for it.
	CA string `toml:"ca"`
}

// DefaultAuthorities is where Debian and most others keep the certificates of
// public authorities.
const DefaultAuthorities = "/etc/ssl/certs/ca-certificates.crt"

// Registries are files that say how registries are reached; an empty path is
// none.
type Registries struct {
	// CA has PEM certificates that registries' certificates may chain to.
	CA string `toml:"ca"`
	// Config is a containers-registries.conf of version 2.
	Config string `toml:"config"`
	// Auth has credentials, as docker's config.json.
	Auth string `toml:"auth"`
}

// Duration is written as "90s" or "10m".
type Duration time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// D is d in the standard library's type.
func (d Duration) D() time.Duration { return time.Duration(d) }

// Default is the configuration of an empty file.
func Default() *Config {
	return &Config{
		TEE: "auto", GuestImage: "/opt/coffer/guest", Accelerator: "auto",
		DefaultVCPUs: 1, MaxVCPUs: 32, DefaultMemory: 512, OverheadMemory: 512, MaxMemory: 64 << 10,
		BootTimeout: Duration(90 * time.Second), CreateTimeout: Duration(20 * time.Minute), ShutdownTimeout: Duration(10 * time.Second), Linger: Duration(2 * time.Minute),
		ScratchDirectory: "/var/tmp", BlobCacheSize: 10 << 30, DiskSlots: 4,
		StateDir: "/run/coffer", SoftTEEState: "/var/lib/coffer/softtee", KubeletRoot: "/var/lib/kubelet", HostPath: HostPathCopy,
		Annotations:        []string{"coffer-project.io/vcpus", "coffer-project.io/memory", "coffer-project.io/volumes"},
		UnsealedRegistries: Registries{CA: DefaultAuthorities},
		Driver:             DriverQEMU,
	}
}

// Allows reports whether a pod may set an annotation of this project.
func (c *Config) Allows(annotation string) bool { return slices.Contains(c.Annotations, annotation) }
