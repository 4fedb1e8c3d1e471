package cri

import (
	"errors"
	"fmt"
	"math"
	"path"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// The Sandbox API brings a pod as the CRI's message runtime.v1.PodSandboxConfig
// (k8s.io/cri-api@v0.36.3 pkg/apis/runtime/v1/api.proto). What is needed of it is
// read here by its field numbers.

// ConfigType is the type URL's last part of a pod's configuration.
const ConfigType = "runtime.v1.PodSandboxConfig"

// maxPodConfig bounds the message; ttrpc takes no longer one.
const maxPodConfig = 4 << 20

// Modes of a namespace.
const (
	modePod  = 0
	modeNode = 2
)

// podConfig is what is read of the message.
type podConfig struct {
	name, uid, namespace           string
	hostname, logDir               string
	cgroupParent                   string
	hasDNS                         bool
	servers, searches, options     []string
	annotations, sysctls           map[string]string
	network, pid, ipc              uint64
	hasUsers                       bool
	users                          uint64
	memory, quota, period, weights int64
}

// FromConfig reads the pod of the Sandbox API: the message PodSandboxConfig, the
// sandbox's id, and the path of its network namespace.
func FromConfig(message []byte, id, netns string) (*Sandbox, error) {
	if !idRE.MatchString(id) {
		return nil, fmt.Errorf("sandbox id: expected 1 to 64 characters of [A-Za-z0-9._-], got %.100q", id)
	}
	if len(message) > maxPodConfig {
		return nil, fmt.Errorf("%s: expected at most %d bytes, got %d", ConfigType, maxPodConfig, len(message))
	}
	var c podConfig
	if err := c.decode(message); err != nil {
		return nil, fmt.Errorf("%s: %w", ConfigType, err)
	}
	switch {
	case c.network == modeNode:
		return nil, errNetwork
	case c.pid == modeNode:
		return nil, errPID
	case c.ipc == modeNode:
		return nil, errIPC
	case c.hasUsers && c.users == modePod:
		return nil, errUsers
	case netns == "":
		return nil, errors.New("the pod has no network namespace: expected the path of the one that the CNI plugins set up")
	}
	s := &Sandbox{
		ID: id, Name: c.name, Namespace: c.namespace, UID: c.uid, Hostname: c.hostname, NetNS: netns, LogDir: c.logDir,
		Cgroup: cgroupOf(c.cgroupParent, id), SharePID: c.pid == modePod, SharePIDKnown: true, Sysctls: c.sysctls, Resources: resources(c.memory, c.quota, c.period, c.weights),
	}
	if err := s.take(c.annotations); err != nil {
		return nil, err
	}
	if c.hasDNS {
		d, warnings := dns(c.servers, c.searches, c.options, s.Initdata != nil)
		s.DNS, s.Warnings = d, append(s.Warnings, warnings...)
	}
	return s, nil
}

// cgroupOf is what containerd makes of a pod's group for a container that is in it
// (containerd v2.2.9 internal/cri/server/podsandbox, getCgroupsPath).
func cgroupOf(parent, id string) string {
	switch base := path.Base(parent); {
	case parent == "":
		return ""
	case strings.HasSuffix(base, ".slice"):
		return base + ":cri-containerd:" + id
	}
	return strings.TrimSuffix(parent, "/") + "/" + id
}

func (c *podConfig) decode(b []byte) error {
	c.annotations, c.sysctls = map[string]string{}, map[string]string{}
	return fields(b, func(n protowire.Number, f field) error {
		switch n {
		case 1:
			return f.message("metadata", c.metadata)
		case 2:
			return f.text("hostname", &c.hostname)
		case 3:
			return f.text("log_directory", &c.logDir)
		case 4:
			c.hasDNS = true
			return f.message("dns_config", c.dns)
		case 7:
			return f.entry("annotations", c.annotations)
		case 8:
			return f.message("linux", c.linux)
		}
		return nil
	})
}

func (c *podConfig) metadata(n protowire.Number, f field) error {
	switch n {
	case 1:
		return f.text("name", &c.name)
	case 2:
		return f.text("uid", &c.uid)
	case 3:
		return f.text("namespace", &c.namespace)
	}
	return nil
}

// maxList bounds a repeated field; a guest takes fewer.
const maxList = 256

func (c *podConfig) dns(n protowire.Number, f field) error {
	lists := map[protowire.Number]*[]string{1: &c.servers, 2: &c.searches, 3: &c.options}
	list := lists[n]
	if list == nil {
		return nil
	}
	if len(*list) == maxList {
		return fmt.Errorf("expected at most %d of a kind", maxList)
	}
	var s string
	err := f.text("element", &s)
	*list = append(*list, s)
	return err
}

func (c *podConfig) linux(n protowire.Number, f field) error {
	switch n {
	case 1:
		return f.text("cgroup_parent", &c.cgroupParent)
	case 2:
		return f.message("security_context", func(n protowire.Number, f field) error {
			if n != 1 {
				return nil
			}
			return f.message("namespace_options", c.namespaces)
		})
	case 3:
		return f.entry("sysctls", c.sysctls)
	case 5:
		return f.message("resources", c.resources)
	}
	return nil
}

func (c *podConfig) namespaces(n protowire.Number, f field) error {
	switch n {
	case 1:
		return f.number("network", &c.network)
	case 2:
		return f.number("pid", &c.pid)
	case 3:
		return f.number("ipc", &c.ipc)
	case 5:
		c.hasUsers = true
		return f.message("userns_options", func(n protowire.Number, f field) error {
			if n != 1 {
				return nil
			}
			return f.number("mode", &c.users)
		})
	}
	return nil
}

func (c *podConfig) resources(n protowire.Number, f field) error {
	numbers := map[protowire.Number]*int64{1: &c.period, 2: &c.quota, 3: &c.weights, 4: &c.memory}
	to := numbers[n]
	if to == nil {
		return nil
	}
	var v uint64
	err := f.number("resource", &v)
	if *to = int64(v); v > math.MaxInt64 { // negative: none
		*to = 0
	}
	return err
}

// field is the value of a field.
type field struct {
	typ   protowire.Type
	value uint64
	bytes []byte
}

// fields calls f for every field of a message.
func fields(b []byte, f func(protowire.Number, field) error) error {
	for len(b) > 0 {
		n, typ, size := protowire.ConsumeTag(b)
		if size < 0 {
			return protowire.ParseError(size)
		}
		b = b[size:]
		v := field{typ: typ}
		switch typ {
		case protowire.VarintType:
			v.value, size = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			v.bytes, size = protowire.ConsumeBytes(b)
		default:
			size = protowire.ConsumeFieldValue(n, typ, b)
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		b = b[size:]
		if err := f(n, v); err != nil {
			return err
		}
	}
	return nil
}

func (v field) number(name string, to *uint64) error {
	if v.typ != protowire.VarintType {
		return fmt.Errorf("%s: expected a number", name)
	}
	*to = v.value
	return nil
}

func (v field) text(name string, to *string) error {
	if v.typ != protowire.BytesType || !utf8.Valid(v.bytes) {
		return fmt.Errorf("%s: expected text in UTF-8", name)
	}
	*to = string(v.bytes)
	return nil
}

func (v field) message(name string, f func(protowire.Number, field) error) error {
	if v.typ != protowire.BytesType {
		return fmt.Errorf("%s: expected a message", name)
	}
	if err := fields(v.bytes, f); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// entry reads an entry of a map.
func (v field) entry(name string, to map[string]string) error {
	var key, value string
	err := v.message(name, func(n protowire.Number, f field) error {
		switch n {
		case 1:
			return f.text("key", &key)
		case 2:
			return f.text("value", &value)
		}
		return nil
	})
	to[key] = value
	return err
}
