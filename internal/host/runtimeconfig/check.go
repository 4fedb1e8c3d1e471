package runtimeconfig

import (
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/host/accel"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// AnnotationPrefix begins every annotation of this project.
const AnnotationPrefix = "coffer-project.io/"

const (
	// minScratch is less than any image needs, maxScratch more than any node has.
	minScratch, maxScratch = 32 << 20, 1 << 44
	maxAnnotations         = 64
	maxTimeout             = 24 * time.Hour
)

func (c *Config) problems() []error {
	var errs []error
	bad := func(key, expected string, got any) {
		errs = append(errs, fmt.Errorf("%s: expected %s, got %v", key, expected, got))
	}
	between := func(key string, got, low, high int64, unit string) {
		if got < low || got > high {
			bad(key, fmt.Sprintf("%d to %d%s", low, high, unit), got)
		}
	}
	if _, err := sandbox.ParseKind(c.TEE); err != nil || c.TEE == "" {
		bad("tee", "auto, soft, soft-tdx, snp, tdx or none", fmt.Sprintf("%q", c.TEE))
	}
	if _, err := accel.ParseMode(c.Accelerator); err != nil {
		bad("accelerator", "auto, kvm or tcg", fmt.Sprintf("%q", c.Accelerator))
	}
	between("max_vcpus", int64(c.MaxVCPUs), 1, vmm.MaxVCPUs, "")
	between("default_vcpus", int64(c.DefaultVCPUs), 1, int64(c.MaxVCPUs), " (max_vcpus)")
	between("max_memory", int64(c.MaxMemory), vmm.MinMemoryMiB, vmm.MaxMemoryMiB, " MiB")
	between("overhead_memory", int64(c.OverheadMemory), vmm.MinMemoryMiB, int64(c.MaxMemory), " MiB (max_memory)")
	between("default_memory", int64(c.DefaultMemory), 1, max(1, int64(c.MaxMemory)-int64(c.OverheadMemory)), " MiB (max_memory less overhead_memory)")
	for key, d := range map[string]Duration{"boot_timeout": c.BootTimeout, "create_timeout": c.CreateTimeout, "shutdown_timeout": c.ShutdownTimeout, "linger": c.Linger} {
		if d.D() < time.Second || d.D() > maxTimeout {
			bad(key, fmt.Sprintf("1s to %s", maxTimeout), d.D())
		}
	}
	if c.Scratch != 0 {
		between("scratch", c.Scratch, minScratch, maxScratch, " bytes, or 0 for none")
		if c.Scratch%4096 != 0 {
			bad("scratch", "a multiple of 4096", c.Scratch)
		}
	}
	between("blob_cache_size", c.BlobCacheSize, 1<<20, maxScratch, " bytes")
	between("disk_slots", int64(c.DiskSlots), 0, vmm.MaxDiskSlots, "")
	if c.HostPath != HostPathCopy && c.HostPath != HostPathRefuse {
		bad("host_path", "copy or refuse", fmt.Sprintf("%q", c.HostPath))
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return slices.Concat(errs, c.pathProblems(), c.annotationProblems(), c.trusteeProblems(), c.driverProblems())
}

func (c *Config) pathProblems() []error {
	var errs []error
	for _, p := range []struct {
		key, path string
		optional  bool
	}{
		{"guest_image", c.GuestImage, c.Driver == DriverProcess}, {"firmware", c.Firmware, true}, {"scratch_directory", c.ScratchDirectory, c.Scratch == 0},
		{"blob_cache", c.BlobCache, true}, {"state_dir", c.StateDir, false}, {"softtee_state", c.SoftTEEState, false},
		{"kubelet_root", c.KubeletRoot, false}, {"agent", c.Agent, true}, {"unsealed_trustee.ca", c.UnsealedTrustee.CA, true},
		{"unsealed_registries.ca", c.UnsealedRegistries.CA, true}, {"unsealed_registries.config", c.UnsealedRegistries.Config, true},
		{"unsealed_registries.auth", c.UnsealedRegistries.Auth, true},
	} {
		if p.path == "" && p.optional {
			continue
		}
		if !filepath.IsAbs(p.path) || filepath.Clean(p.path) != p.path {
			errs = append(errs, fmt.Errorf("%s: expected a clean absolute path, got %q", p.key, p.path))
		}
	}
	// A name is looked for on the PATH.
	if strings.ContainsRune(c.QEMU, '/') && !filepath.IsAbs(c.QEMU) {
		errs = append(errs, fmt.Errorf("qemu: expected a program's name or an absolute path, got %q", c.QEMU))
	}
	return errs
}

func (c *Config) annotationProblems() []error {
	var errs []error
	if len(c.Annotations) > maxAnnotations {
		errs = append(errs, fmt.Errorf("annotations: expected at most %d, got %d", maxAnnotations, len(c.Annotations)))
	}
	for i, a := range c.Annotations {
		if !slices.Contains(Settable(), a) {
			errs = append(errs, fmt.Errorf("annotations[%d]: expected one of %s, got %q", i, strings.Join(Settable(), ", "), a))
		}
	}
	return errs
}

func (c *Config) trusteeProblems() []error {
	t := c.UnsealedTrustee
	if t.URL == "" {
		if t.CA != "" {
			return []error{fmt.Errorf("unsealed_trustee.ca: expected a url beside it")}
		}
		return nil
	}
	u, err := url.Parse(t.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return []error{fmt.Errorf("unsealed_trustee.url: expected https://HOST, got %q", t.URL)}
	}
	return nil
}

func (c *Config) driverProblems() []error {
	switch c.Driver {
	case DriverQEMU:
		return nil
	case DriverProcess:
		var errs []error
		if !c.Development {
			errs = append(errs, fmt.Errorf("driver: process isolates nothing and is for development only; it needs development = true"))
		}
		if c.Agent == "" {
			errs = append(errs, fmt.Errorf("agent: expected the path of coffer-agent, which driver process runs"))
		}
		if c.TEE != string(sandbox.None) {
			errs = append(errs, fmt.Errorf("tee: driver process has none; expected none, got %q", c.TEE))
		}
		return errs
	}
	return []error{fmt.Errorf("driver: expected qemu or process, got %q", c.Driver)}
}

// Annotations that a handler may let pods set.
const (
	// AnnotationVCPUs is the number of virtual CPUs.
	AnnotationVCPUs = AnnotationPrefix + "vcpus"
	// AnnotationMemory is the machine's memory in MiB, all of it.
	AnnotationMemory = AnnotationPrefix + "memory"
	// AnnotationVolumes names the volumes of claims, see package volumes.
	AnnotationVolumes = AnnotationPrefix + "volumes"
)

// Settable lists the annotations that a file may allow.
func Settable() []string { return []string{AnnotationMemory, AnnotationVCPUs, AnnotationVolumes} }
