package podpolicy_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
)

// A workload whose rights were changed beside its policy is refused by the
// field, in either direction: a host that claims less than the policy runs
// another manifest, too.
func TestHoleRightsAreComparedWithThePolicy(t *testing.T) {
	t.Parallel()
	p := simplePolicy()
	c := &p.Containers[0]
	c.Capabilities, c.Seccomp, c.NoNewPrivileges = []string{"CAP_CHOWN", "CAP_KILL"}, podpolicy.SeccompUnconfined, podpolicy.OnUnlessOff{Off: true}
	own := func() *podpolicy.Security {
		return &podpolicy.Security{Capabilities: []string{"CAP_KILL", "CAP_CHOWN"}, SeccompUnconfined: true}
	}
	for path, tt := range map[string]struct {
		rule   string
		change func(*podpolicy.Security)
	}{
		"security.capabilities":      {podpolicy.RuleContainerCapabilities, func(s *podpolicy.Security) { s.Capabilities = s.Capabilities[:1] }},
		"security.noNewPrivileges":   {podpolicy.RuleContainerNoNewPrivileges, func(s *podpolicy.Security) { s.NoNewPrivileges = true }},
		"security.readOnlyRoot":      {podpolicy.RuleContainerReadOnlyRoot, func(s *podpolicy.Security) { s.ReadOnlyRoot = true }},
		"security.seccompUnconfined": {podpolicy.RuleContainerSeccomp, func(s *podpolicy.Security) { s.SeccompUnconfined = false }},
		"security.unmasked":          {podpolicy.RuleContainerUnmasked, func(s *podpolicy.Security) { s.Unmasked = true }},
	} {
		g := podpolicy.NewGuard(p)
		must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
		q := podpolicy.ContainerProposal{ID: "c", Name: "one", Security: own()}
		tt.change(q.Security)
		_, err := g.Admit(q)
		refused(t, err, tt.rule, path)
		// As the policy has it, and with nothing claimed, it runs with the policy's.
		for i, s := range []*podpolicy.Security{own(), nil} {
			q := podpolicy.ContainerProposal{ID: fmt.Sprint("c", i), Name: "one", Security: s}
			got := start(t, g, q, podpolicy.ImageConfig{Digest: webDigest})
			if !slices.Equal(got.Capabilities, []string{"CAP_CHOWN", "CAP_KILL"}) || got.NoNewPrivileges || got.Seccomp != podpolicy.SeccompUnconfined || got.Unmasked || got.RLimits != nil {
				t.Errorf("got %+v", got)
			}
			ok(t, g.Exited(q.ID, "", 0))
			p := simplePolicy()
			p.Containers[0] = *c
			g = podpolicy.NewGuard(p)
			must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
		}
	}
	// A node without a filter by default does not lift the policy's.
	p = simplePolicy()
	p.Containers[0].Capabilities = nil
	g := podpolicy.NewGuard(p)
	must[*podpolicy.SandboxConfig](t)(g.Sandbox(podpolicy.SandboxProposal{ID: "s"}))
	got := start(t, g, podpolicy.ContainerProposal{ID: "c", Name: "one", Security: &podpolicy.Security{
		NoNewPrivileges: true, SeccompUnconfined: true, RLimits: map[string]podpolicy.RLimit{"RLIMIT_NOFILE": {Soft: 1, Hard: 2}},
	}}, podpolicy.ImageConfig{Digest: webDigest})
	if got.Seccomp != podpolicy.SeccompDefault || got.RLimits != nil {
		t.Errorf("got %+v", got)
	}
}

// What an unsealed pod's host says of rights, volumes and devices is what the
// guest has.
func TestUnsealedTakesTheClaims(t *testing.T) {
	t.Parallel()
	g := unsealedGuard(t)
	ok(t, g.Attach("disk", "disk1"))
	u := must[*podpolicy.FilesUpdate](t)(g.PutFiles("conf", 1))
	putHello(t, u, "any")
	if !u.Attributes("any") {
		t.Error("modes and owners are not the host's")
	}
	ok(t, u.Commit(published))
	q := podpolicy.ContainerProposal{
		ID: "c", Name: "c", Image: "busybox@" + webDigest, Args: &[]string{"/x"},
		Security: &podpolicy.Security{
			Capabilities: []string{"CAP_SYS_ADMIN", "CAP_CHOWN"}, NoNewPrivileges: true, ReadOnlyRoot: true, SeccompUnconfined: true, Unmasked: true,
			RLimits: map[string]podpolicy.RLimit{"RLIMIT_NOFILE": {Soft: 5, Hard: 6}},
		},
		Mounts: []podpolicy.Mount{{Path: "/m", Volume: "mem"}, {Path: "/d", Volume: "dir"}, {Path: "/f", Volume: "conf", ReadOnly: true}},
		Volumes: []podpolicy.VolumeClaim{
			{Name: "mem", Kind: podpolicy.ClaimMemory, SizeBytes: 1 << 20}, {Name: "dir", Kind: podpolicy.ClaimEphemeral, Group: new(uint32(7))},
			{Name: "conf", Kind: podpolicy.ClaimFiles, Group: new(uint32(8))}, {Name: "disk", Kind: podpolicy.ClaimBlock},
		},
		Devices: []podpolicy.Device{{Path: "/dev/xvda", Volume: "disk"}}, TerminationPath: "/var/last words",
	}
	c := start(t, g, q, podpolicy.ImageConfig{Digest: webDigest})
	if !slices.Equal(c.Capabilities, []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}) || !c.NoNewPrivileges || !c.ReadOnlyRoot || c.Seccomp != podpolicy.SeccompUnconfined ||
		!c.Unmasked || c.RLimits["RLIMIT_NOFILE"].Hard != 6 || c.TerminationPath != "/var/last words" {
		t.Errorf("got %+v", c)
	}
	want := []podpolicy.MountConfig{
		{Path: "/d", Volume: "dir", Kind: podpolicy.VolumeEphemeral, Medium: podpolicy.MediumDisk},
		{Path: "/f", Volume: "conf", Kind: podpolicy.VolumeFiles, ReadOnly: true},
		{Path: "/m", Volume: "mem", Kind: podpolicy.VolumeEphemeral, Medium: podpolicy.MediumMemory, SizeBytes: 1 << 20},
		{Path: "/dev/xvda", Volume: "disk", Kind: podpolicy.VolumeBlock, Device: true},
	}
	if !slices.Equal(c.Mounts, want) {
		t.Errorf("got %+v", c.Mounts)
	}
	for name, group := range map[string]uint32{"dir": 7, "conf": 8} {
		if v := must[podpolicy.VolumeConfig](t)(g.Volume(name)); v.Group == nil || *v.Group != group {
			t.Errorf("%s: %+v", name, v)
		}
	}
	if !g.TerminationMessage("c") || g.TerminationMessage("other") {
		t.Error("last words")
	}
	// What a volume is has been said.
	for path, v := range map[string]podpolicy.VolumeClaim{
		"volumes[0].kind":      {Name: "dir", Kind: podpolicy.ClaimMemory, Group: new(uint32(7))},
		"volumes[0].sizeBytes": {Name: "mem", Kind: podpolicy.ClaimMemory, SizeBytes: 2 << 20},
		"volumes[0].group":     {Name: "dir", Kind: podpolicy.ClaimEphemeral},
	} {
		other := podpolicy.ContainerProposal{ID: "d", Name: "d", Image: "busybox@" + webDigest, Volumes: []podpolicy.VolumeClaim{v}}
		_, err := g.Admit(other)
		refused(t, err, podpolicy.RuleContainerVolumes, path)
	}
	same := podpolicy.ContainerProposal{ID: "d", Name: "d", Image: "busybox@" + webDigest, Volumes: q.Volumes, Mounts: q.Mounts}
	must[*podpolicy.Admission](t)(g.Admit(same))
}

func TestUnsealedRefusesBadClaims(t *testing.T) {
	t.Parallel()
	type q = *podpolicy.ContainerProposal
	claim := func(v podpolicy.VolumeClaim) func(q) { return func(p q) { p.Volumes = []podpolicy.VolumeClaim{v} } }
	for path, change := range map[string]func(q){
		"volumes[0].kind":      claim(podpolicy.VolumeClaim{Name: "v", Kind: "KIND_UNSPECIFIED"}),
		"volumes[0].name":      claim(podpolicy.VolumeClaim{Name: "../v", Kind: podpolicy.ClaimFiles}),
		"volumes[0].sizeBytes": claim(podpolicy.VolumeClaim{Name: "v", Kind: podpolicy.ClaimFiles, SizeBytes: 1}),
		"volumes[0].group":     claim(podpolicy.VolumeClaim{Name: "v", Kind: podpolicy.ClaimFiles, Group: new(uint32(1<<32 - 1))}),
		"volumes[1].name": func(p q) {
			p.Volumes = slices.Repeat([]podpolicy.VolumeClaim{{Name: "v", Kind: podpolicy.ClaimFiles}}, 2)
		},
		"volumes":                  func(p q) { p.Volumes = make([]podpolicy.VolumeClaim, 129) },
		"devices":                  func(p q) { p.Devices = make([]podpolicy.Device, 65) },
		"devices[0].path":          func(p q) { p.Devices = []podpolicy.Device{{Path: "/etc/passwd", Volume: "disk"}} },
		"devices[0].volume":        func(p q) { p.Devices = []podpolicy.Device{{Path: "/dev/xvda", Volume: "nothing"}} },
		"terminationMessagePath":   func(p q) { p.TerminationPath = "/proc/self/mem" },
		"security.capabilities[0]": func(p q) { p.Security = &podpolicy.Security{Capabilities: []string{"CAP_ALL"}} },
		"security.capabilities":    func(p q) { p.Security = &podpolicy.Security{Capabilities: make([]string, 100)} },
		"security.rlimits":         func(p q) { p.Security = &podpolicy.Security{RLimits: map[string]podpolicy.RLimit{"x": {}}} },
	} {
		g := unsealedGuard(t)
		p := podpolicy.ContainerProposal{ID: "c", Name: "c", Image: "busybox@" + webDigest}
		change(&p)
		_, err := g.Admit(p)
		if err == nil {
			t.Errorf("%s: accepted", path)
			continue
		}
		refused(t, err, ruleOf(err), path)
	}
	// A disk is a device only, and attached before it is used.
	g := unsealedGuard(t)
	p := podpolicy.ContainerProposal{ID: "c", Name: "c", Image: "busybox@" + webDigest, Volumes: []podpolicy.VolumeClaim{{Name: "disk", Kind: podpolicy.ClaimBlock}}}
	p.Devices = []podpolicy.Device{{Path: "/dev/xvda", Volume: "disk"}}
	_, err := g.Admit(p)
	refused(t, err, podpolicy.RuleVolumeAttach, "devices[0]")
	ok(t, g.Attach("disk", "disk1"))
	must[*podpolicy.Admission](t)(g.Admit(p))
	p = podpolicy.ContainerProposal{ID: "d", Name: "d", Image: "busybox@" + webDigest, Mounts: []podpolicy.Mount{{Path: "/d", Volume: "disk"}}}
	_, err = g.Admit(p)
	refused(t, err, ruleOf(err), "mounts[0].volume")
	refused(t, g.Attach("../x", "disk2"), podpolicy.RuleVolumeAttach, "volume")
	must[*podpolicy.FilesUpdate](t)(g.PutFiles("conf", 1))
	refused(t, g.Attach("conf", "disk2"), podpolicy.RuleVolumeAttach, "volume")
}
