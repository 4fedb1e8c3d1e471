package podpolicy

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/coffer-project/coffer/internal/strictjson"
)

// Name is a name of the pod: pinned ("shop"), a slot ({"host":"hostname"}) or a
// pattern for names that a controller generates ({"match":"web-*"}). At most
// one field is set; the zero value leaves the name out of the pod.
type Name struct {
	Value string
	Host  Slot
	Match string
}

type nameObject struct {
	Host  Slot   `json:"host,omitempty"`
	Match string `json:"match,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (n Name) MarshalJSON() ([]byte, error) {
	if n.Host == "" && n.Match == "" {
		return marshal(n.Value)
	}
	return marshal(nameObject{n.Host, n.Match})
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *Name) UnmarshalJSON(data []byte) error {
	*n = Name{}
	if isJSONString(data) {
		return strictjson.Decode(data, &n.Value, jsonLimits)
	}
	var o nameObject
	if err := strictjson.Decode(data, &o, jsonLimits); err != nil {
		return err
	}
	if o == (nameObject{}) {
		return problem(`expected a string, {"host": TYPE} or {"match": PATTERN}`)
	}
	n.Host, n.Match = o.Host, o.Match
	return nil
}

// EnvValue is the value of an environment variable. Exactly one field is set.
type EnvValue struct {
	// Value is literal. It is a pointer because "" is a value.
	Value *string `json:"value,omitempty"`
	// Host is a slot, Match a pattern; both leave the value to the host.
	Host  Slot   `json:"host,omitempty"`
	Match string `json:"match,omitempty"`
	// Sealed is a sealed secret (sealed.…); Resource a KBS URI (kbs:///… of
	// the default trustee, kbs://NAME/… of one that initdata declares).
	// Their values come from the trustee, inside the guest.
	Sealed   string `json:"sealed,omitempty"`
	Resource string `json:"resource,omitempty"`
	// Expand is a literal in which $(NAME) stands for another variable of the
	// container, which must not be of this kind; $$ is a dollar sign.
	Expand string `json:"expand,omitempty"`
}

// Literal is a pinned environment value.
func Literal(s string) EnvValue { return EnvValue{Value: &s} }

func (v EnvValue) kinds() int {
	n := 0
	for _, set := range []bool{v.Value != nil, v.Host != "", v.Match != "", v.Sealed != "", v.Resource != "", v.Expand != ""} {
		if set {
			n++
		}
	}
	return n
}

// ExecRule is a command that the host may run inside a container. In JSON a
// rule that only allows to learn the exit code is the bare array of arguments.
type ExecRule struct {
	Args []string
	// Output lets the host read its standard output and standard error, Stdin
	// write its standard input, Terminal give it a terminal.
	Output, Stdin, Terminal bool
}

type execObject struct {
	Args     []string `json:"args"`
	Output   bool     `json:"output,omitempty"`
	Stdin    bool     `json:"stdin,omitempty"`
	Terminal bool     `json:"terminal,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (r ExecRule) MarshalJSON() ([]byte, error) {
	if !r.Output && !r.Stdin && !r.Terminal {
		return marshal(slices.Concat([]string{}, r.Args))
	}
	return marshal(execObject(r))
}

// UnmarshalJSON implements json.Unmarshaler.
func (r *ExecRule) UnmarshalJSON(data []byte) error {
	*r = ExecRule{}
	if len(data) > 0 && data[0] == '[' {
		return strictjson.Decode(data, &r.Args, jsonLimits)
	}
	var o execObject
	if err := strictjson.Decode(data, &o, jsonLimits); err != nil {
		return err
	}
	*r = ExecRule(o)
	return nil
}

// OnUnlessOff is a switch whose zero value is on; in JSON it is a boolean.
type OnUnlessOff struct{ Off bool }

// On reports the switch.
func (s OnUnlessOff) On() bool { return !s.Off }

// MarshalJSON implements json.Marshaler.
func (s OnUnlessOff) MarshalJSON() ([]byte, error) { return marshal(!s.Off) }

// UnmarshalJSON implements json.Unmarshaler.
func (s *OnUnlessOff) UnmarshalJSON(data []byte) error {
	var on bool
	if err := strictjson.Decode(data, &on, jsonLimits); err != nil {
		return err
	}
	s.Off = !on
	return nil
}

// Memory is a number of bytes ("512Mi"), or the host's choice
// ({"host":"memory"}).
type Memory struct {
	Bytes uint64
	Host  Slot
}

// CPUs is processor time in thousandths of a CPU ("1500m", "2", "0.5"), or the
// host's choice ({"host":"cpu"}).
type CPUs struct {
	Millis uint32
	Host   Slot
}

type slotObject struct {
	Host Slot `json:"host"`
}

// MarshalJSON implements json.Marshaler.
func (m Memory) MarshalJSON() ([]byte, error) {
	if m.Host != "" {
		return marshal(slotObject{m.Host})
	}
	return marshal(FormatBytes(m.Bytes))
}

// UnmarshalJSON implements json.Unmarshaler.
func (m *Memory) UnmarshalJSON(data []byte) error {
	*m = Memory{}
	return unmarshalQuantity(data, &m.Host, func(s string) (err error) {
		m.Bytes, err = ParseBytes(s)
		return err
	})
}

// MarshalJSON implements json.Marshaler.
func (c CPUs) MarshalJSON() ([]byte, error) {
	if c.Host != "" {
		return marshal(slotObject{c.Host})
	}
	return marshal(FormatCPUs(c.Millis))
}

// UnmarshalJSON implements json.Unmarshaler.
func (c *CPUs) UnmarshalJSON(data []byte) error {
	*c = CPUs{}
	return unmarshalQuantity(data, &c.Host, func(s string) (err error) {
		c.Millis, err = ParseCPUs(s)
		return err
	})
}

func unmarshalQuantity(data []byte, host *Slot, parse func(string) error) error {
	if !isJSONString(data) {
		var o slotObject
		if err := strictjson.Decode(data, &o, jsonLimits); err != nil {
			return err
		}
		if o.Host == "" {
			return problem(`expected a quantity in a string, or {"host": TYPE}`)
		}
		*host = o.Host
		return nil
	}
	var s string
	if err := strictjson.Decode(data, &s, jsonLimits); err != nil {
		return err
	}
	if err := parse(s); err != nil {
		return problem("%s", err)
	}
	return nil
}

func problem(format string, args ...any) error {
	return &strictjson.Error{Problem: fmt.Sprintf(format, args...)}
}

func isJSONString(data []byte) bool { return len(data) > 0 && data[0] == '"' }

// marshal encodes without escaping <, > and &, which arguments often hold; the
// result of a MarshalJSON is compacted by its caller, so the newline that the
// encoder adds does no harm, but it is cut all the same.
func marshal(v any) ([]byte, error) {
	return encode(v, "")
}

var _ json.Marshaler = Name{}
