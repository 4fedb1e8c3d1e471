package podpolicy

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
)

// MaxBytes is the greatest size of a policy document.
const MaxBytes = 512 << 10

// jsonLimits bound a policy and every part of it; no legal policy nests deeper.
var jsonLimits = strictjson.Limits{Bytes: MaxBytes, Depth: 8}

// Parse reads a policy document (JSON, UTF-8) and validates it. What it does
// not know, or finds twice, is an error that names the path. Semantic problems
// are reported all at once, by an [*InvalidError].
func Parse(data []byte) (*Policy, error) {
	var p Policy
	if err := strictjson.Decode(data, &p, jsonLimits); err != nil {
		return nil, fmt.Errorf("pod policy: %w", err)
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	p.normalise()
	return &p, nil
}

// Canonical is the one encoding of a valid policy: members in the order of the
// reference, maps and sets sorted, defaults in full, quantities reduced, two
// spaces of indentation and a final newline. Policies that mean the same have
// the same canonical bytes.
func (p *Policy) Canonical() ([]byte, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	c, err := p.clone()
	if err != nil {
		return nil, err
	}
	c.normalise()
	data, err := encode(c, "  ")
	if err != nil {
		return nil, fmt.Errorf("pod policy: %w", err)
	}
	if len(data) >= MaxBytes {
		return nil, fmt.Errorf("pod policy: %d bytes, the limit is %d", len(data), MaxBytes)
	}
	return append(data, '\n'), nil
}

// Digest is the SHA-256 of the canonical bytes.
func (p *Policy) Digest() ([sha256.Size]byte, error) {
	data, err := p.Canonical()
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	return sha256.Sum256(data), nil
}

// encode is json.Marshal without the escaping for HTML.
func encode(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// normalise spells out defaults and sorts what has no order.
func (p *Policy) normalise() {
	for i := range p.Containers {
		c := &p.Containers[i]
		c.Role = orDefault(c.Role, RoleApp)
		c.Seccomp = orDefault(c.Seccomp, SeccompDefault)
		c.Allow.Restarts = orDefault(c.Allow.Restarts, RestartNever)
		if c.TerminationMessagePath == DefaultTerminationPath {
			c.TerminationMessagePath = ""
		}
		slices.Sort(c.Capabilities)
		slices.Sort(c.ServiceEnv)
		slices.Sort(c.Allow.PortForward)
		slices.Sort(c.Allow.Signals)
		slices.SortFunc(c.Mounts, func(a, b Mount) int { return compareMountPaths(a.Path, b.Path) })
		slices.SortFunc(c.Devices, func(a, b Device) int { return strings.Compare(a.Path, b.Path) })
		slices.SortFunc(c.Allow.Exec, compareExecRules)
		sortedOrNil(&c.Allow.Copy.From)
		sortedOrNil(&c.Allow.Copy.To)
		if c.User != nil {
			slices.Sort(c.User.Groups)
		}
	}
	// Empty and absent lists mean the same and are written the same.
	for _, list := range []*[]string{&p.Network.DNS.Servers, &p.Network.DNS.Searches, &p.Network.DNS.Options} {
		if len(*list) == 0 {
			*list = nil
		}
	}
	if len(p.Network.Hosts.Entries) == 0 {
		p.Network.Hosts.Entries = nil
	}
	for name, v := range p.Volumes {
		if v.Kind == VolumeEphemeral {
			v.Medium = orDefault(v.Medium, MediumDisk)
		}
		if v.Host != nil {
			v.Host.Mode = orDefault(v.Host.Mode, defaultFileMode)
			slices.Sort(v.Host.Names)
		}
		normaliseFiles(&v)
		p.Volumes[name] = v
	}
}

// normaliseFiles spells out the mode of files that have no rule of their own,
// and leaves out exceptions that are none.
func normaliseFiles(v *Volume) {
	if v.Kind != VolumeFiles {
		return
	}
	v.Mode = fourDigits(orDefault(v.Mode, defaultFileMode))
	if len(v.Pinned)+len(v.Sealed)+len(v.Resources) == 0 {
		v.Mode = "" // nothing that it would be the mode of
	}
	if v.Host != nil {
		v.Host.Mode = fourDigits(v.Host.Mode)
	}
	for name, mode := range v.Modes {
		usual := v.Mode
		if v.Host != nil && slices.Contains(v.Host.Names, name) {
			usual = v.Host.Mode
		}
		if v.Modes[name] = fourDigits(mode); v.Modes[name] == usual {
			delete(v.Modes, name)
		}
	}
}

func fourDigits(mode string) string {
	if len(mode) == 3 {
		return "0" + mode
	}
	return mode
}

func sortedOrNil(list *[]string) {
	slices.Sort(*list)
	if len(*list) == 0 {
		*list = nil
	}
}

func compareExecRules(a, b ExecRule) int {
	if c := slices.Compare(a.Args, b.Args); c != 0 {
		return c
	}
	return boolsToInt(a.Output, a.Stdin, a.Terminal) - boolsToInt(b.Output, b.Stdin, b.Terminal)
}

func boolsToInt(bits ...bool) int {
	n := 0
	for _, b := range bits {
		n <<= 1
		if b {
			n |= 1
		}
	}
	return n
}

func orDefault[T ~string](v, def T) T {
	if v == "" {
		return def
	}
	return v
}
