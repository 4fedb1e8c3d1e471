//go:build kata_policy

package katapolicy

import (
	"maps"
	"path"
	"slices"

	"github.com/coffer-project/coffer/podpolicy"
)

// bundles is where containerd keeps the bundles of its containers: rules take a
// container's id from a path there.
const bundles = "/run/containerd/io.containerd.runtime.v2.task/k8s.io"

// containerInput is the container as the guest will run it, before its secrets
// are opened: a sealed variable has its sealed text, and one of a resource its
// URI.
func containerInput(q podpolicy.Question) object {
	c := q.Config
	image := c.Image.String()
	return object{
		"container_id": q.Container, "exec_id": q.Container, "string_user": nil, "devices": devices(c.Mounts), "shared_mounts": []any{}, "sandbox_pidns": c.SharePID,
		"storages": []any{object{
			"driver": "image_guest_pull", "driver_options": []string{}, "source": image, "fstype": "overlay", "options": []string{},
			"mount_point": path.Join("/run/kata-containers", q.Container, "rootfs"), "fs_group": nil, "shared": false,
		}},
		"OCI": object{
			"Version": "1.2.0", "Process": process(c.Terminal, c.User, c.Args, c.Env, c.Cwd, c.Capabilities, c.NoNewPrivileges, c.RLimits),
			"Root":     object{"Path": path.Join("/run/kata-containers", q.Container, "rootfs"), "Readonly": c.ReadOnlyRoot},
			"Hostname": "", "Mounts": mounts(c.Mounts), "Hooks": nil, "Solaris": nil, "Windows": nil,
			"Annotations": object{
				"io.kubernetes.cri.container-type": "container", "io.katacontainers.pkg.oci.container_type": "pod_container",
				"io.kubernetes.cri.container-name": c.Name, "io.kubernetes.cri.image-name": image,
				"io.kubernetes.cri.sandbox-id": q.SandboxID, "io.kubernetes.cri.sandbox-name": q.Sandbox.Name, "io.kubernetes.cri.sandbox-namespace": q.Sandbox.Namespace,
				"io.katacontainers.pkg.oci.bundle_path": path.Join(bundles, q.Container),
			},
			"Linux": linux(c, q.Sandbox),
		},
	}
}

func linux(c *podpolicy.ContainerConfig, s *podpolicy.SandboxConfig) object {
	sysctls := object{}
	for name, value := range s.Sysctls {
		sysctls[name] = value
	}
	var namespaces []object
	// Those that Kata's shim leaves in a container's specification.
	for _, t := range []string{"ipc", "uts", "mount"} {
		namespaces = append(namespaces, object{"Type": t, "Path": ""})
	}
	var seccomp any
	if c.Seccomp == podpolicy.SeccompDefault {
		seccomp = object{"DefaultAction": "SCMP_ACT_ERRNO", "Architectures": []string{}, "Flags": []string{}, "Syscalls": []any{}}
	}
	masked, readOnly := maskedPaths(), readonlyPaths()
	if c.Unmasked {
		masked, readOnly = []string{}, []string{}
	}
	return object{
		"UIDMappings": []any{}, "GIDMappings": []any{}, "Sysctl": sysctls, "Resources": resources(c.Limits), "CgroupsPath": "", "Namespaces": namespaces,
		"Devices": []any{}, "Seccomp": seccomp, "RootfsPropagation": "", "MaskedPaths": masked, "ReadonlyPaths": readOnly, "MountLabel": "", "IntelRdt": nil,
	}
}

// maskedPaths and readonlyPaths are hidden from, and read-only in, every
// container that internal/guest/container builds; it hides more.
func maskedPaths() []string {
	return []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware"}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// mounts are the container's volumes, beside what every container has.
func mounts(list []podpolicy.MountConfig) []object {
	out := []object{}
	for _, m := range list {
		if m.Device {
			continue
		}
		access := "rw"
		if m.ReadOnly {
			access = "ro"
		}
		out = append(out, object{
			"destination": m.Path, "source": path.Join(sharedFiles, m.Volume, m.SubPath), "type_": "bind", "options": []string{"rbind", "rprivate", access},
		})
	}
	return out
}

func devices(list []podpolicy.MountConfig) []object {
	out := []object{}
	for _, m := range list {
		if m.Device {
			out = append(out, object{"id": m.Volume, "type_": "blk", "vm_path": "", "container_path": m.Path, "options": []string{}})
		}
	}
	return out
}

func commandInput(c *podpolicy.ExecConfig) object {
	return process(c.Terminal, c.User, c.Args, c.Env, c.Cwd, c.Capabilities, c.NoNewPrivileges, nil)
}

func process(terminal bool, u podpolicy.User, args []string, vars []podpolicy.EnvVar, cwd string, capabilities []string, noNewPrivileges bool, limits map[string]podpolicy.RLimit) object {
	env := make([]string, len(vars))
	for i, v := range vars {
		// At most one of them is there; the names of secrets are no secrets.
		env[i] = v.Name + "=" + v.Value + v.Sealed + v.Resource + v.Expand
	}
	caps := list(capabilities)
	rlimits := []object{}
	for _, name := range slices.Sorted(maps.Keys(limits)) {
		rlimits = append(rlimits, object{"Type": name, "Soft": limits[name].Soft, "Hard": limits[name].Hard})
	}
	return object{
		"Terminal": terminal, "ConsoleSize": nil, "Args": list(args), "Env": env, "Cwd": cwd, "Rlimits": rlimits, "NoNewPrivileges": noNewPrivileges,
		"User":            object{"UID": u.UID, "GID": u.GID, "AdditionalGids": list(u.Groups), "Username": ""},
		"Capabilities":    object{"Bounding": caps, "Effective": caps, "Permitted": caps, "Inheritable": []string{}, "Ambient": []string{}},
		"ApparmorProfile": "", "OOMScoreAdj": 0, "SelinuxLabel": "",
	}
}
