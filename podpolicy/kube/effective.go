package kube

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/podpolicy"
)

// compare finds what a host does not propose: the guest has the policy's way
// with it, whatever the workload says.
func (h *host) compare(c, own *podpolicy.Container) {
	differ := func(what string, want, got any) {
		if fmt.Sprint(want) != fmt.Sprint(got) {
			h.add(Finding{Rule: "effective." + what, Container: c.Name, Path: what, Expected: fmt.Sprint(want), Got: fmt.Sprint(got), Help: "the guest runs the container as the policy says"})
		}
	}
	differ("role", own.Role, c.Role)
	differ("target", own.Target, c.Target)
	refused := slices.ContainsFunc(h.findings, func(f Finding) bool { return f.Rule == podpolicy.RuleContainerUser && f.Container == c.Name })
	if own.User != nil && c.User != nil && !refused {
		differ("user", compact(own.User), compact(c.User))
	}
	if own.Seccomp != podpolicy.SeccompUnconfined {
		// A node without a filter by default looks alike: the guest has its own.
		differ("seccomp", own.Seccomp, c.Seccomp)
	}
	if own.Limits != c.Limits && c.Limits.Memory.Bytes == 0 && c.Limits.CPUs.Millis == 0 {
		differ("limits", compact(own.Limits), compact(c.Limits))
	}
	for _, name := range slices.Sorted(maps.Keys(own.Env)) {
		// What the trustee has, the host does not name.
		if uri := own.Env[name].Resource; uri != "" {
			differ("env."+name, uri, c.Env[name].Resource)
		}
	}
	h.compareAllow(c, own)
	for _, m := range c.Mounts {
		h.compareVolume(m.Volume)
	}
	for _, d := range c.Devices {
		h.compareVolume(d.Volume)
	}
}

// compareAllow finds what the workload needs and the policy does not permit.
func (h *host) compareAllow(c, own *podpolicy.Container) {
	need := func(what string, missing bool, got any) {
		if missing {
			h.add(Finding{Rule: "effective.allow." + what, Container: c.Name, Path: "allow." + what, Got: fmt.Sprint(got), Help: "the policy does not permit it"})
		}
	}
	a, b := c.Allow, own.Allow
	need("logs", a.Logs && !b.Logs && !b.Attach, true)
	need("attach", a.Attach && !b.Attach, true)
	need("restarts", a.Restarts != b.Restarts, a.Restarts)
	for _, p := range a.PortForward {
		need("portForward", !slices.Contains(b.PortForward, p), p)
	}
	for _, p := range a.Copy.From {
		need("copy.from", !slices.Contains(b.Copy.From, p), p)
	}
	for _, p := range a.Copy.To {
		need("copy.to", !slices.Contains(b.Copy.To, p), p)
	}
	for _, s := range a.Signals {
		need("signals", !slices.Contains(b.Signals, s), s)
	}
}

// compareVolume finds what distinguishes volumes beside their host's files.
func (h *host) compareVolume(name string) {
	want, got := h.policy.Volumes[name], h.want.Policy.Volumes[name]
	if _, ok := h.policy.Volumes[name]; !ok {
		return // the mount was refused
	}
	want.Pinned, got.Pinned, want.Host, got.Host = nil, nil, nil, nil
	if a, b := compact(want), compact(got); a != b {
		h.add(Finding{Rule: "effective.volume", Path: "volumes." + name, Expected: a, Got: b, Help: "the guest makes the volume as the policy says"})
	}
}

func compact(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// files puts a volume of the workload as its host does.
func (h *host) files(c *podpolicy.Container, name string) {
	v := h.want.Policy.Volumes[name]
	if own, ok := h.policy.Volumes[name]; !ok || v.Kind != podpolicy.VolumeFiles || own.Kind != v.Kind || h.put[name] > 0 {
		return
	}
	contents := maps.Clone(v.Pinned)
	if contents == nil {
		contents = map[string]string{}
	}
	for file, text := range v.Sealed {
		contents[file] = sha256Of([]byte(text))
	}
	h.send(c.Name, name, contents, v.Host, true)
}

// fillFiles completes a volume that could not be put, so that the container can
// start.
func (h *host) fillFiles(name string) {
	v := h.policy.Volumes[name]
	if v.Kind == podpolicy.VolumeFiles && h.put[name] == 0 {
		h.send("", name, v.Pinned, v.Host, false)
	}
}

// send puts one version of a volume. With note, what is refused is a finding.
func (h *host) send(container, name string, contents map[string]string, host *podpolicy.HostFiles, note bool) {
	judge := func(err error) {
		if note {
			h.note(container, err)
		}
	}
	version := h.put[name] + 1
	u, err := h.guard.PutFiles(name, version)
	if err != nil {
		judge(err)
		return
	}
	put := func(file, digest string) bool {
		if _, err := u.File(file, 1); err != nil {
			judge(err)
			return false
		}
		raw, err := hex.DecodeString(strings.TrimPrefix(digest, "sha256:"))
		if err != nil || len(raw) != sha256.Size {
			h.err = errors.Join(h.err, fmt.Errorf("volume %s: file %s: expected a digest", name, file))
			return false
		}
		if err := u.Content(file, 1, [sha256.Size]byte(raw)); err != nil {
			judge(err)
			return false
		}
		return true
	}
	ok := true
	for _, file := range slices.Sorted(maps.Keys(contents)) {
		ok = put(file, contents[file]) && ok
	}
	if host != nil {
		for _, file := range host.Names {
			// Its content is the host's choice.
			ok = put(file, sha256Of([]byte(file))) && ok
		}
	}
	if !ok {
		return
	}
	if err := u.Commit(func() error { return nil }); err != nil {
		judge(err)
		return
	}
	h.put[name] = version
}
