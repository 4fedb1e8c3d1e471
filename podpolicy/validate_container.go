package podpolicy

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

func (v *validator) container(at string, c *Container) {
	if !isDNSLabel(c.Name) {
		v.bad(at+".name", "expected a DNS label of at most 63 characters, got %s", quote(c.Name))
	}
	oneOf(v, at+".role", c.Role, "", RoleApp, RoleInit, RoleSidecar, RoleEphemeral)
	v.target(at+".target", c)
	v.image(at+".image", c.Image)
	v.args(at+".args", c.Args)
	if c.ExpandArgs && c.Args == nil {
		v.bad(at+".expandArgs", "an image's own arguments are taken literally: set args")
	}
	if c.ExpandArgs {
		v.references(at+".args", strings.Join(c.Args, "\x00"))
	}
	if c.Cwd != "" && !isCleanAbsolute(c.Cwd) {
		v.bad(at+".cwd", "expected a clean absolute path, got %s", quote(c.Cwd))
	}
	if c.User != nil {
		v.user(at+".user", c.User)
	}
	v.env(at, c)
	v.set(at+".capabilities", c.Capabilities, len(capabilities()), func(s string) string {
		if _, ok := slices.BinarySearch(capabilities(), s); !ok {
			return "expected a Linux capability such as CAP_CHOWN, got " + quote(s)
		}
		return ""
	})
	oneOf(v, at+".seccomp", c.Seccomp, "", SeccompDefault, SeccompUnconfined)
	if !isTerminationPath(c.TerminationMessagePath) {
		v.bad(at+".terminationMessagePath", "expected %s, got %s", terminationForm, quote(c.TerminationMessagePath))
	}
	v.mounts(at+".mounts", c.Mounts)
	v.devices(at+".devices", c.Devices)
	v.allow(at+".allow", c)
	v.limits(at+".limits", c.Limits)
}

func (v *validator) limits(at string, l Limits) {
	if l.Memory.Bytes != 0 && l.Memory.Host != "" || l.Memory.Bytes > 1<<63-1 {
		v.bad(at+".memory", "expected a quantity or a slot")
	}
	if l.CPUs.Millis != 0 && l.CPUs.Host != "" || l.CPUs.Millis > maxCPUMillis {
		v.bad(at+".cpus", "expected at most %d CPUs or a slot", maxCPUMillis/1000)
	}
	if h := l.Memory.Host; h != "" && h != SlotMemory {
		v.bad(at+".memory.host", "expected slot type %s, got %s", SlotMemory, quote(string(h)))
	}
	if h := l.CPUs.Host; h != "" && h != SlotCPU {
		v.bad(at+".cpus.host", "expected slot type %s, got %s", SlotCPU, quote(string(h)))
	}
}

func (v *validator) image(at string, i Image) {
	if !isSHA256(i.Digest) && i.tag == "" {
		v.bad(at+".digest", "expected sha256: and 64 lower-case hex digits, got %s", quote(i.Digest))
	}
	if i.Stub != "" && (!isSHA256(i.Stub) || i.Stub == i.Digest) {
		v.bad(at+".stub", "expected sha256: and 64 lower-case hex digits of another image than digest, got %s", quote(i.Stub))
	}
	if len(i.From) == 0 {
		v.bad(at+".from", "expected at least one repository, for example registry.example/shop/web")
	}
	v.set(at+".from", i.From, maxFrom, func(s string) string {
		if ref, err := parseImage(s); err != nil || ref.Repository != s {
			return "expected a repository with its registry and without tag or digest, for example registry.example/shop/web, got " + quote(s)
		}
		return ""
	})
}

func (v *validator) args(at string, args []string) {
	if args == nil {
		return
	}
	if len(args) == 0 || args[0] == "" {
		v.bad(at, "expected a program; leave args out to take the image's")
		return
	}
	if r := checkArgs(at, args); r != nil {
		v.bad(r.Path, "expected %s, got %s", r.Expected, r.Got)
	}
}

func (v *validator) user(at string, u *User) {
	v.count(at+".groups", len(u.Groups), maxGroups)
	if u.UID > maxID {
		v.bad(at+".uid", "expected at most %d, got %d", uint32(maxID), u.UID)
	}
	if u.GID > maxID {
		v.bad(at+".gid", "expected at most %d, got %d", uint32(maxID), u.GID)
	}
	seen := map[uint32]bool{}
	for i, g := range u.Groups {
		if g > maxID || seen[g] {
			v.bad(indexPath(at+".groups", i), "expected different numbers of at most %d, got %d", uint32(maxID), g)
		}
		seen[g] = true
	}
}

func (v *validator) env(at string, c *Container) {
	if v.count(at+".env", len(c.Env), maxEnv) {
		for _, name := range slices.Sorted(maps.Keys(c.Env)) {
			v.envValue(keyPath(at+".env", name), name, c)
		}
	}
	v.set(at+".serviceEnv", c.ServiceEnv, maxServices, func(s string) string {
		if !isDNSLabel(s) {
			return "expected a service's name, a DNS label of at most 63 characters, got " + quote(s)
		}
		return ""
	})
}

func (v *validator) envValue(at, name string, c *Container) {
	e := c.Env[name]
	if !isEnvName(name) {
		v.bad(at, "a variable's name has 1 to 256 printable characters, no = and no blank")
	}
	if e.kinds() != 1 {
		v.bad(at, "expected exactly one of value, host, match, sealed, resource and expand")
		return
	}
	switch {
	case e.Value != nil:
		if len(*e.Value) > maxEnvBytes || strings.ContainsRune(*e.Value, 0) {
			v.bad(at+".value", "expected at most %d bytes without NUL", maxEnvBytes)
		}
		if strings.HasPrefix(*e.Value, "sealed.") {
			v.bad(at+".value", `this looks like a sealed secret; write {"sealed": …}, or it would be given to the container as it is`)
		}
	case e.Host != "":
		if s := e.Host.spec(); s == nil || !s.env {
			v.bad(at+".host", "expected a slot type for environment variables (%s), got %s", slotList(envSlots()), quote(string(e.Host)))
		}
	case e.Match != "":
		if err := checkPattern(e.Match); err != nil {
			v.bad(at+".match", "%s", err)
		}
	case e.Sealed != "":
		if err := checkSealed(e.Sealed); err != nil {
			v.bad(at+".sealed", "%s", err)
		}
	case e.Resource != "":
		if err := checkResourceURI(e.Resource); err != nil {
			v.bad(at+".resource", "%s", err)
		}
	default:
		v.expand(at+".expand", e.Expand, c)
	}
}

// expand checks a literal with references. They lead to variables that have a
// value of their own, so that no order and no circle of them exists.
func (v *validator) expand(at, s string, c *Container) {
	if len(s) > maxEnvBytes || strings.ContainsRune(s, 0) {
		v.bad(at, "expected at most %d bytes without NUL", maxEnvBytes)
		return
	}
	for _, name := range v.references(at, s) {
		if c.Env[name].Expand != "" {
			v.bad(at, "$(%s) is a variable with references itself: write out what it stands for", clip(name))
		}
	}
}

// references bounds how many there are, and with them what a string can grow to.
func (v *validator) references(at, s string) []string {
	var names []string
	_ = Expand(s, func(name string) (string, bool) {
		if len(names) <= maxReferences {
			names = append(names, name)
		}
		return "", false
	})
	v.count(at, len(names), maxReferences)
	return names
}

// set checks a list of strings without order: length, duplicates, members.
func (v *validator) set(at string, list []string, limit int, judge func(string) string) {
	if !v.count(at, len(list), limit) {
		return
	}
	seen := map[string]bool{}
	for i, s := range list {
		if why := judge(s); why != "" {
			v.bad(indexPath(at, i), "%s", why)
		} else if seen[s] {
			v.bad(indexPath(at, i), "%s is listed twice", quote(s))
		}
		seen[s] = true
	}
}

func oneOf[T ~string](v *validator, at string, got T, legal ...T) {
	if slices.Contains(legal, got) {
		return
	}
	names := make([]string, 0, len(legal))
	for _, l := range legal {
		if l != "" {
			names = append(names, string(l))
		}
	}
	v.bad(at, "expected %s, got %s", strings.Join(names, " or "), quote(string(got)))
}

// maxID leaves out 2³²-1, which system calls take for "no change".
const maxID = 1<<32 - 2

// checkArgs holds for policies and proposals: what execve can take.
func checkArgs(at string, args []string) *Refusal {
	if len(args) > maxArgs {
		return refuse(RuleProposalForm, at, fmt.Sprintf("at most %d arguments", maxArgs), fmt.Sprint(len(args)), "")
	}
	total := 0
	for i, a := range args {
		total += len(a)
		if strings.ContainsRune(a, 0) {
			return refuse(RuleProposalForm, indexPath(at, i), "no NUL in an argument", quote(a), "")
		}
	}
	if total > maxArgsBytes {
		return refuse(RuleProposalForm, at, fmt.Sprintf("at most %d bytes of arguments", maxArgsBytes), fmt.Sprint(total), "")
	}
	return nil
}

func isEnvName(s string) bool {
	return s != "" && len(s) <= 256 && strings.IndexByte(s, '=') < 0 && strings.IndexByte(s, ' ') < 0 && printable(s)
}

func isCleanAbsolute(p string) bool {
	return len(p) <= maxPath && strings.HasPrefix(p, "/") && path.Clean(p) == p && printable(p)
}

// reservedMountPath: a volume there would stand in for what the kernel tells.
func reservedMountPath(p string) bool {
	if p == "/" {
		return true
	}
	if p == "/dev/shm" || strings.HasPrefix(p, "/dev/shm/") {
		return false
	}
	for _, root := range []string{"/proc", "/sys", "/dev"} {
		if p == root || strings.HasPrefix(p, root+"/") {
			return true
		}
	}
	return false
}

// compareMountPaths puts a directory before what is mounted inside it.
func compareMountPaths(a, b string) int {
	return cmp.Or(cmp.Compare(strings.Count(a, "/"), strings.Count(b, "/")), strings.Compare(a, b))
}

// capabilities of Linux (include/uapi/linux/capability.h), sorted.
func capabilities() []string {
	return []string{
		"CAP_AUDIT_CONTROL", "CAP_AUDIT_READ", "CAP_AUDIT_WRITE", "CAP_BLOCK_SUSPEND", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
		"CAP_KILL", "CAP_LEASE", "CAP_LINUX_IMMUTABLE", "CAP_MAC_ADMIN", "CAP_MAC_OVERRIDE", "CAP_MKNOD", "CAP_NET_ADMIN",
		"CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_RAW", "CAP_PERFMON", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP",
		"CAP_SETUID", "CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_CHROOT", "CAP_SYS_MODULE", "CAP_SYS_NICE",
		"CAP_SYS_PACCT", "CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_WAKE_ALARM",
	}
}
