package podpolicy

import (
	"fmt"
	"slices"
	"strings"
)

// Source is the image that FromImage writes a policy for.
type Source struct {
	// Name of pod and container; it is made into a DNS label.
	Name string
	// Digest of the index or platform manifest.
	Digest string
	// From lists repositories as in [Image].
	From []string
	// Config is the image's configuration; Digest, Passwd and Group are not
	// used.
	Config ImageConfig
}

// Flags are a user's wishes for one container.
type Flags struct {
	// Args replaces the image's command, after its entrypoint; nil keeps it.
	Args *[]string
	// Env is added to the image's environment, literally.
	Env map[string]string
	// Secrets are variables whose values are sealed secrets (sealed.…) or
	// KBS URIs (kbs:///…, or kbs://TRUSTEE/…).
	Secrets map[string]string
	// User as numbers; nil takes the image's.
	User *User
	// Cwd; empty takes the image's.
	Cwd string
	// Terminal and Stdin of the main process, and whether the host may read
	// its output.
	Terminal, Stdin, Logs bool
	// MemoryBytes, CPUMillis and PIDs; 0 is no limit.
	MemoryBytes uint64
	CPUMillis   uint32
	PIDs        uint32
	// Exec lists commands that may be run inside.
	Exec []ExecRule
	// Signals that the host may send besides the stop signals.
	Signals []string
	// Capabilities; nil gives DefaultCapabilities.
	Capabilities []string
	// NewPrivileges lets set-uid programs work.
	NewPrivileges bool
	ReadOnlyRoot  bool
	Restarts      Restarts
}

// FromImage writes the policy of a pod with one container: the image by digest,
// its arguments spelled out, nothing open to the host but the network's DNS and
// hosts, and of what may be done with it only what flags say. The result is
// valid.
func FromImage(src Source, f Flags) (*Policy, error) {
	args := slices.Concat(src.Config.Entrypoint, src.Config.Cmd)
	if f.Args != nil {
		args = slices.Concat(src.Config.Entrypoint, *f.Args)
	}
	if len(args) == 0 {
		return nil, fmt.Errorf("image %s has neither entrypoint nor command: give a command", quote(src.Name))
	}
	name := labelFrom(src.Name)
	c := Container{
		Name: name, Role: RoleApp, Image: Image{Digest: src.Digest, From: slices.Clone(src.From)},
		Args: args, Cwd: f.Cwd, User: f.User, Env: map[string]EnvValue{},
		Capabilities:    DefaultCapabilities(),
		NoNewPrivileges: OnUnlessOff{Off: f.NewPrivileges}, ReadOnlyRoot: f.ReadOnlyRoot, Terminal: f.Terminal,
		Allow:  Allow{Exec: slices.Clone(f.Exec), Logs: f.Logs, Stdin: f.Stdin, Signals: slices.Clone(f.Signals), Restarts: f.Restarts},
		Limits: Limits{Memory: Memory{Bytes: f.MemoryBytes}, CPUs: CPUs{Millis: f.CPUMillis}, PIDs: f.PIDs},
	}
	if f.Capabilities != nil {
		c.Capabilities = slices.Clone(f.Capabilities)
	}
	for k, v := range f.Env {
		c.Env[k] = Literal(v)
	}
	for k, v := range f.Secrets {
		if _, twice := c.Env[k]; twice {
			return nil, fmt.Errorf("variable %s is given as a literal and as a secret", quote(k))
		}
		switch {
		case strings.HasPrefix(v, "sealed."):
			c.Env[k] = EnvValue{Sealed: v}
		case strings.HasPrefix(v, "kbs://"):
			c.Env[k] = EnvValue{Resource: v}
		default:
			// The value is not quoted: it may be the secret itself.
			return nil, fmt.Errorf("secret variable %s: expected kbs:///REPOSITORY/TYPE/TAG, kbs://TRUSTEE/REPOSITORY/TYPE/TAG or a sealed secret (sealed.…)", quote(k))
		}
	}
	p := &Policy{
		APIVersion: APIVersion, Kind: Kind, Pod: Pod{Name: Name{Value: name}}, Containers: []Container{c},
		Network: Network{DNS: DNS{Host: SlotDNS}, Hosts: Hosts{Host: SlotHosts}},
	}
	if err := p.Validate(); err != nil {
		return nil, err
	}
	// A copy, so that the policy shares nothing with flags.
	p, err := p.clone()
	if err != nil {
		return nil, err
	}
	p.normalise()
	return p, nil
}

// DefaultCapabilities is what a container gets when nobody says otherwise:
// enough for images that start as root and then become another user, without
// raw sockets, device nodes and writing of audit records.
func DefaultCapabilities() []string {
	return []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE",
		"CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"}
}

// labelFrom makes a DNS label of the last part of an image's name.
func labelFrom(name string) string {
	name, _, _ = strings.Cut(name, "@")
	name = name[strings.LastIndexByte(name, '/')+1:]
	name, _, _ = strings.Cut(name, ":")
	label := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '-'
	}, name)
	label = strings.Trim(label, "-")
	if len(label) > 63 {
		label = strings.Trim(label[:63], "-")
	}
	return orDefault(label, "container")
}
