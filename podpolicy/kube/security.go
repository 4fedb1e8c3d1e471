package kube

import (
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/coffer-project/coffer/podpolicy"
)

// defaultCapabilities is what containerd gives a container
// (containerd/containerd v2.3.7, pkg/oci, defaultUnixCaps).
func defaultCapabilities() []string {
	return []string{"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"}
}

// guestCapabilities reach beyond the container, to the guest itself.
func guestCapabilities() []string {
	return []string{"CAP_BPF", "CAP_DAC_READ_SEARCH", "CAP_MAC_ADMIN", "CAP_PERFMON", "CAP_SYSLOG", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_MODULE",
		"CAP_SYS_PTRACE", "CAP_SYS_RAWIO", "CAP_SYS_TIME"}
}

func (g *generator) security(field string, c *corev1.Container, img *Image, out *podpolicy.Container) {
	sc := c.SecurityContext
	if sc == nil {
		sc = &corev1.SecurityContext{}
	}
	out.Capabilities = g.capabilities(field+".securityContext.capabilities", sc.Capabilities)
	out.ReadOnlyRoot = sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem
	out.NoNewPrivileges.Off = sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation
	profile := sc.SeccompProfile
	if profile == nil && g.spec.SecurityContext != nil {
		profile = g.spec.SecurityContext.SeccompProfile
	}
	out.Seccomp = podpolicy.SeccompDefault
	if profile != nil && profile.Type == corev1.SeccompProfileTypeUnconfined {
		out.Seccomp = podpolicy.SeccompUnconfined
	}
	out.User = g.user(field, c, img)
}

// capabilities follow containerd: ALL first, then what is added, then what is
// dropped.
func (g *generator) capabilities(field string, caps *corev1.Capabilities) []string {
	set := defaultCapabilities()
	if caps == nil {
		return set
	}
	if containsAll(caps.Add) {
		g.bad(field+".add", "name those that are needed", "a container with all capabilities has its machine")
		return set
	}
	if containsAll(caps.Drop) {
		set = nil
	}
	for i, name := range caps.Add {
		name := capability(name)
		if slices.Contains(guestCapabilities(), name) {
			g.note(element(field+".add", i), "", "with %s the container has a hold on the guest, and so on its other containers", clip(name))
		}
		set = append(set, name)
	}
	set = slices.DeleteFunc(set, func(name string) bool {
		return slices.ContainsFunc(caps.Drop, func(d corev1.Capability) bool { return capability(d) == name })
	})
	slices.Sort(set)
	return slices.Compact(set)
}

// capability is a name with its prefix, which Kubernetes leaves out.
func capability(c corev1.Capability) string {
	return "CAP_" + strings.TrimPrefix(strings.ToUpper(string(c)), "CAP_")
}

func containsAll(list []corev1.Capability) bool {
	return slices.ContainsFunc(list, func(c corev1.Capability) bool { return capability(c) == "CAP_ALL" })
}

// maxID is the greatest number of a user or group in a policy.
const maxID = 1<<32 - 2

func (g *generator) id(field string, n int64) *uint32 {
	if n < 0 || n > maxID {
		g.bad(field, "", "expected 0 to %d, got %d", int64(maxID), n)
		return new(uint32)
	}
	return new(uint32(n))
}

// identity is what the manifest says about a container's user.
type identity struct {
	uid, gid *uint32
	// groups are the supplementary ones.
	groups  []uint32
	strict  bool
	nonRoot bool
}

func (g *generator) identity(field string, c *corev1.Container) identity {
	var who identity
	set := func(at string, user, group *int64, nonRoot *bool) {
		if user != nil {
			who.uid = g.id(at+".runAsUser", *user)
		}
		if group != nil {
			who.gid = g.id(at+".runAsGroup", *group)
		}
		if nonRoot != nil {
			who.nonRoot = *nonRoot
		}
	}
	if p := g.spec.SecurityContext; p != nil {
		set("securityContext", p.RunAsUser, p.RunAsGroup, p.RunAsNonRoot)
		for i, n := range p.SupplementalGroups {
			who.groups = append(who.groups, *g.id(element("securityContext.supplementalGroups", i), n))
		}
		if p.FSGroup != nil {
			who.groups = append(who.groups, *g.id("securityContext.fsGroup", *p.FSGroup))
		}
		who.strict = p.SupplementalGroupsPolicy != nil && *p.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict
	}
	if sc := c.SecurityContext; sc != nil {
		set(field+".securityContext", sc.RunAsUser, sc.RunAsGroup, sc.RunAsNonRoot)
	}
	return who
}

// user is the container's identity as the kubelet and containerd make it; nil
// leaves it to the image, which the guest resolves itself.
func (g *generator) user(field string, c *corev1.Container, img *Image) *podpolicy.User {
	who := g.identity(field, c)
	name, group, _ := strings.Cut(img.Config.User, ":")
	if who.nonRoot && who.uid == nil && (name == "" || strings.Trim(name, "0123456789") != "") {
		g.bad(field+".securityContext.runAsNonRoot", "write runAsUser", "the image's user is %q, which is not known to be another than root", clip(img.Config.User))
		return nil
	}
	if who.uid == nil && who.gid == nil && len(who.groups) == 0 && !who.strict && group == "" {
		if who.nonRoot && strings.Trim(name, "0") == "" {
			g.bad(field+".securityContext.runAsNonRoot", "write runAsUser", "the image's user is root")
		}
		return nil
	}
	user, err := g.resolve(field, c, img, who)
	if err != nil {
		g.bad(field+".securityContext", "write runAsUser and runAsGroup", "image %s: %s", clip(c.Image), err)
		return nil
	}
	if who.nonRoot && user.UID == 0 {
		g.bad(field+".securityContext.runAsNonRoot", "write another runAsUser", "the user is root")
	}
	slices.Sort(user.Groups)
	user.Groups = slices.DeleteFunc(slices.Compact(user.Groups), func(g uint32) bool { return g == user.GID })
	return user
}

func (g *generator) resolve(field string, c *corev1.Container, img *Image, who identity) (*podpolicy.User, error) {
	if who.strict && who.uid != nil && who.gid != nil {
		return &podpolicy.User{UID: *who.uid, GID: *who.gid, Groups: who.groups}, nil
	}
	passwd, group, err := img.Accounts(g.ctx)
	if err != nil {
		if who.uid == nil || who.gid == nil {
			return nil, err
		}
		g.note(field+".securityContext", "", "the groups that image %s may give user %d are not known and left out: %s", clip(c.Image), *who.uid, err)
	}
	// The user's name decides on memberships, whatever the group is.
	name, groupName, hasGroup := strings.Cut(img.Config.User, ":")
	if who.uid != nil {
		name = strconv.FormatUint(uint64(*who.uid), 10)
	}
	user, err := podpolicy.ResolveUser(name, passwd, group)
	if err != nil {
		return nil, err
	}
	switch {
	case who.gid != nil:
		user.GID = *who.gid
	case who.uid == nil && hasGroup:
		withGroup, err := podpolicy.ResolveUser(name+":"+groupName, passwd, group)
		if err != nil {
			return nil, err
		}
		user.GID = withGroup.GID
	}
	if who.strict {
		user.Groups = nil
	}
	user.Groups = append(user.Groups, who.groups...)
	return &user, nil
}
