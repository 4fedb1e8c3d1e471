package kube

import (
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/podpolicy"
)

// validate checks the policy as the guest will, and says where what is wrong
// comes from.
func (g *generator) validate() {
	err := g.policy.Validate()
	invalid, ok := errors.AsType[*podpolicy.InvalidError](err)
	if err != nil && !ok {
		g.bad("", "", "%s", err)
		return
	}
	if err == nil {
		if data, err := g.policy.Canonical(); err != nil {
			g.bad("", "", "%s", err)
		} else if p, err := podpolicy.Parse(data); err != nil {
			g.bad("", "", "%s", err)
		} else {
			g.policy = p
		}
		return
	}
	for _, p := range invalid.Problems {
		g.problems.add(g.w.tree.at(g.origin(p.Path), "", "the policy could not be valid: %s: %s", p.Path, p.Problem))
	}
}

// origin is the path in the object that a path in the policy comes from.
func (g *generator) origin(path string) string {
	var i int
	if _, err := fmt.Sscanf(path, "containers[%d]", &i); err == nil && i < len(g.places) {
		_, rest, _ := strings.Cut(path, "].")
		for _, same := range []struct{ policy, spec string }{
			{"image", "image"}, {"args", "args"}, {"cwd", "workingDir"}, {"name", "name"}, {"user", "securityContext"}, {"capabilities", "securityContext.capabilities"},
			{"limits", "resources.limits"}, {"env", "env"}, {"mounts", "volumeMounts"}, {"devices", "volumeDevices"}, {"target", "targetContainerName"},
			{"terminationMessagePath", "terminationMessagePath"},
		} {
			if strings.HasPrefix(rest, same.policy) {
				return g.w.path(g.places[i] + "." + same.spec)
			}
		}
		return g.w.path(g.places[i])
	}
	for name, v := range g.volumes {
		if path == "volumes."+name || strings.HasPrefix(path, "volumes."+name+".") {
			return g.w.path(v.field)
		}
	}
	for _, same := range []struct{ policy, object string }{
		{"pod.sysctls", g.w.path("securityContext.sysctls")}, {"pod.hostname", g.w.path("hostname")}, {"pod.name", "metadata.name"}, {"pod.namespace", "metadata.namespace"},
		{"network.dns", g.w.path("dnsConfig")}, {"network.hosts", g.w.path("hostAliases")},
	} {
		if strings.HasPrefix(path, same.policy) {
			return same.object
		}
	}
	return ""
}
