package podpolicy

import (
	"slices"
	"strings"
)

func (v *validator) mounts(at string, mounts []Mount) {
	if !v.count(at, len(mounts), maxMounts) {
		return
	}
	seen := map[string]bool{}
	for i, m := range mounts {
		p := indexPath(at, i)
		if !isCleanAbsolute(m.Path) || reservedMountPath(m.Path) {
			v.bad(p+".path", "expected a clean absolute path that is not / and not in /proc, /sys or /dev (except /dev/shm), got %s", quote(m.Path))
		}
		if seen[m.Path] {
			v.bad(p+".path", "%s is mounted twice", quote(m.Path))
		}
		seen[m.Path] = true
		vol, ok := v.policy.Volumes[m.Volume]
		if !ok {
			v.bad(p+".volume", "no volume has the name %s", quote(m.Volume))
		}
		switch {
		case m.SubPath == "":
		case !isCleanAbsolute("/" + m.SubPath):
			v.bad(p+".subPath", "expected a clean relative path in the volume, got %s", quote(m.SubPath))
		case vol.Kind == VolumeFiles && !vol.Holds(m.SubPath):
			v.bad(p+".subPath", "expected a file that volume %s names, or a directory of such files, got %s", quote(m.Volume), quote(m.SubPath))
		}
		if vol.Kind == VolumeBlock && vol.Filesystem == "" {
			v.bad(p+".volume", "%s has no filesystem: say \"filesystem\": \"ext4\", or give it as a device", quote(m.Volume))
		}
		if vol.Kind == VolumeFiles && !m.ReadOnly {
			v.bad(p+".readOnly", "a files volume is mounted with readOnly true")
		}
	}
}

// devices are block volumes without a file system of ours: what lies on one
// that is mounted would change under the kernel's hands.
func (v *validator) devices(at string, devices []Device) {
	if !v.count(at, len(devices), maxDevices) {
		return
	}
	seen := map[string]bool{}
	for i, d := range devices {
		p := indexPath(at, i)
		if !isDevicePath(d.Path) {
			v.bad(p+".path", "expected a clean path below /dev that no runtime makes itself, for example /dev/xvda, got %s", quote(d.Path))
		}
		if seen[d.Path] {
			v.bad(p+".path", "%s is there twice", quote(d.Path))
		}
		seen[d.Path] = true
		switch vol, ok := v.policy.Volumes[d.Volume]; {
		case !ok:
			v.bad(p+".volume", "no volume has the name %s", quote(d.Volume))
		case vol.Kind != VolumeBlock || vol.Filesystem != "":
			v.bad(p+".volume", "expected a block volume without filesystem")
		}
	}
}

// isDevicePath leaves out the nodes and directories that every container has
// (OCI runtime specification, "Default Devices"; and /dev/console, /dev/fd and
// the standard streams).
func isDevicePath(p string) bool {
	rest, ok := strings.CutPrefix(p, "/dev/")
	first, _, _ := strings.Cut(rest, "/")
	taken := []string{"null", "zero", "full", "random", "urandom", "tty", "console", "pts", "ptmx", "shm", "mqueue", "fd", "stdin", "stdout", "stderr", "core"}
	return ok && isCleanAbsolute(p) && !slices.Contains(taken, first)
}

// copyPaths checks where files may be copied.
func (v *validator) copyPaths(at string, c Copy) {
	for _, side := range []struct {
		path string
		list []string
	}{{at + ".from", c.From}, {at + ".to", c.To}} {
		v.set(side.path, side.list, maxCopyPaths, func(s string) string {
			if !isCleanAbsolute(s) {
				return "expected a clean absolute path, got " + quote(s)
			}
			return ""
		})
	}
}

func (v *validator) allow(at string, c *Container) {
	a := &c.Allow
	if v.count(at+".exec", len(a.Exec), maxExecRules) {
		for i, r := range a.Exec {
			p := indexPath(at+".exec", i)
			if len(r.Args) == 0 || r.Args[0] == "" {
				v.bad(p, "expected a program and its arguments")
			} else if bad := checkArgs(p, r.Args); bad != nil {
				v.bad(bad.Path, "expected %s, got %s", bad.Expected, bad.Got)
			}
			if slices.ContainsFunc(a.Exec[:i], func(o ExecRule) bool { return slices.Equal(o.Args, r.Args) }) {
				v.bad(p, "%s is listed before", quoteList(r.Args))
			}
		}
	}
	if v.count(at+".portForward", len(a.PortForward), maxPorts) {
		for i, port := range a.PortForward {
			if port == 0 || slices.Contains(a.PortForward[:i], port) {
				v.bad(indexPath(at+".portForward", i), "expected different ports, 1 to 65535, got %d", port)
			}
		}
	}
	v.copyPaths(at+".copy", a.Copy)
	v.set(at+".signals", a.Signals, 64, func(s string) string {
		if signalNumber(s) == 0 {
			return "expected a signal's name such as SIGHUP, got " + quote(s)
		}
		return ""
	})
	oneOf(v, at+".restarts", a.Restarts, "", RestartNever, RestartOnFailure, RestartAlways)
	if a.Restarts == RestartAlways && c.Role == RoleInit {
		v.bad(at+".restarts", "an init container ends by success: expected never or onFailure; a container that keeps running is a sidecar")
	}
	if a.Restarts != "" && a.Restarts != RestartNever && c.Role == RoleEphemeral {
		v.bad(at+".restarts", "an ephemeral container is started once: expected never")
	}
}
