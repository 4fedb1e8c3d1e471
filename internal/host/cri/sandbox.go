package cri

import (
	"fmt"
	"maps"
	"regexp"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// Annotations of a bundle that is of no pod.
const (
	// AnnotationImage is the image's reference.
	AnnotationImage = prefix + "image"
	// AnnotationContainer is the container's name in the policy.
	AnnotationContainer = prefix + "container"
	// defaultContainer is the name without one.
	defaultContainer = "main"
)

// sandbox reads the pod out of a bundle.
func sandbox(spec *specs.Spec, id string, single bool, read fileReader) (*Sandbox, error) {
	a := annotations(spec.Annotations)
	s := &Sandbox{
		ID: id, Name: a.first(criSandboxName, crioSandboxName), Namespace: a.first(criNamespace, crioNamespace), UID: a.uid(),
		Hostname: spec.Hostname, Cgroup: spec.Linux.CgroupsPath, LogDir: a.first(criLogDir, crioLogPath), Sysctls: maps.Clone(spec.Linux.Sysctl), Resources: a.resources(),
	}
	if err := s.namespaces(spec.Linux.Namespaces, single); err != nil {
		return nil, err
	}
	if err := checkOOMScore(spec.Process); err != nil {
		return nil, err
	}
	if p := spec.Process; p != nil && p.OOMScoreAdj != nil {
		s.OOMScore = *p.OOMScoreAdj
	}
	if spec.Hooks != nil && !single {
		return nil, errHooks
	}
	if single {
		s.SharePIDKnown = true
		s.Name, s.Hostname = dnsName(id), dnsName(spec.Hostname)
		if r := spec.Linux.Resources; r != nil {
			s.Resources = specResources(r)
		}
	}
	if err := s.take(spec.Annotations); err != nil {
		return nil, err
	}
	if single {
		// They are the container's.
		delete(s.Annotations, AnnotationImage)
		delete(s.Annotations, AnnotationContainer)
	}
	dns, warnings, err := mountedDNS(spec.Mounts, s.Initdata != nil, read)
	if err != nil {
		return nil, err
	}
	s.DNS, s.Warnings = dns, append(s.Warnings, warnings...)
	return s, nil
}

// namespaces finds the pod's network namespace, and refuses those of the node.
func (s *Sandbox) namespaces(list []specs.LinuxNamespace, single bool) error {
	has := map[specs.LinuxNamespaceType]bool{}
	for _, n := range list {
		has[n.Type] = true
		switch n.Type {
		case specs.NetworkNamespace:
			s.NetNS = n.Path
		case specs.UserNamespace:
			return errUsers
		default:
		}
	}
	switch {
	case !has[specs.NetworkNamespace]:
		return errNetwork
	case !single && s.NetNS == "":
		return fmt.Errorf("the pod has a network namespace without a path: expected the one that the CNI plugins set up")
	case !has[specs.PIDNamespace]:
		return errPID
	case !has[specs.IPCNamespace]:
		return errIPC
	}
	return nil
}

// take reads the annotations that are the pod's own.
func (s *Sandbox) take(all map[string]string) error {
	own, initdata, warnings, err := podAnnotations(all)
	s.Annotations, s.Initdata = own, initdata
	s.Warnings = append(s.Warnings, warnings...)
	return err
}

// mountedDNS reads the file that the pod has as /etc/resolv.conf.
func mountedDNS(mounts []specs.Mount, sealed bool, read fileReader) (*agentapi.DNS, []string, error) {
	text, err := mounted(mounts, "/etc/resolv.conf", read)
	if err != nil || text == nil {
		return nil, nil, err
	}
	dns, warnings := parseResolvConf(text, sealed)
	return dns, warnings, nil
}

// mounted reads the host's file that is mounted at a path; nil: there is none.
func mounted(mounts []specs.Mount, path string, read fileReader) ([]byte, error) {
	for i := len(mounts) - 1; i >= 0; i-- { // the last covers the others
		if m := mounts[i]; m.Destination == path && m.Source != "" {
			text, err := read(m.Source)
			if err != nil {
				return nil, fmt.Errorf("%s of the pod: %w", path, err)
			}
			return text, nil
		}
	}
	return nil, nil
}

var notDNS = regexp.MustCompile(`[^a-z0-9-]+`)

// dnsName makes a name that a pod can have of any id; empty stays empty.
func dnsName(id string) string {
	name := strings.Trim(notDNS.ReplaceAllString(strings.ToLower(id), "-"), "-")
	if len(name) > 63 {
		name = strings.Trim(name[:63], "-")
	}
	if name == "" && id != "" {
		return defaultContainer
	}
	return name
}
