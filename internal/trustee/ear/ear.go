// Package ear holds the EAT Attestation Result (EAR) in the profile of
// Confidential Containers' Trustee: what an appraisal found about each part
// of an environment, as the payload of an attestation token.
package ear

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/kbs"
)

// Profile is the eat_profile of tokens, for relying parties of the ecosystem.
const Profile = "tag:github.com,2024:confidential-containers/Trustee"

// Status is a trust tier (draft-ietf-rats-ar4si).
type Status string

// The tiers, best first; None says that there is nothing to say.
const (
	None            Status = "none"
	Affirming       Status = "affirming"
	Warning         Status = "warning"
	Contraindicated Status = "contraindicated"
)

// Tier is the tier of one trustworthiness claim: −1..1 none, −32..31
// affirming, −96..95 warning, everything else contraindicated.
func Tier(v int8) Status {
	switch {
	case -1 <= v && v <= 1:
		return None
	case -32 <= v && v <= 31:
		return Affirming
	case -96 <= v && v <= 95:
		return Warning
	}
	return Contraindicated
}

func (s Status) rank() int {
	return slices.Index([]Status{None, Affirming, Warning, Contraindicated}, s)
}

// Worse returns the worse of two tiers.
func Worse(a, b Status) Status {
	if a.rank() < b.rank() {
		return b
	}
	return a
}

// Vector is the trustworthiness vector. Values are AR4SI codes, for example
// 2 (genuine hardware), 3 (approved executables), 33 (executables that no
// reference value knows).
type Vector struct {
	InstanceIdentity int8 `json:"instance-identity"`
	Configuration    int8 `json:"configuration"`
	Executables      int8 `json:"executables"`
	FileSystem       int8 `json:"file-system"`
	Hardware         int8 `json:"hardware"`
	RuntimeOpaque    int8 `json:"runtime-opaque"`
	StorageOpaque    int8 `json:"storage-opaque"`
	SourcedData      int8 `json:"sourced-data"`
}

func (v *Vector) fields() map[string]*int8 {
	return map[string]*int8{
		"instance-identity": &v.InstanceIdentity, "configuration": &v.Configuration, "executables": &v.Executables,
		"file-system": &v.FileSystem, "hardware": &v.Hardware, "runtime-opaque": &v.RuntimeOpaque,
		"storage-opaque": &v.StorageOpaque, "sourced-data": &v.SourcedData,
	}
}

// Names are the components of a vector, sorted.
func Names() []string { return slices.Sorted(maps.Keys((&Vector{}).fields())) }

// ParseVector reads the trust_claims a policy computed. A name that is not in
// the vector or a value that is no signed byte is an error.
func ParseVector(claims map[string]json.Number) (Vector, error) {
	var v Vector
	fields := v.fields()
	for name, n := range claims {
		f, ok := fields[name]
		if !ok {
			return Vector{}, fmt.Errorf("trust claim %q: expected one of the eight names of the trustworthiness vector", name)
		}
		i, err := n.Int64()
		if err != nil || i < -128 || i > 127 {
			return Vector{}, fmt.Errorf("trust claim %q: expected an integer from -128 to 127, got %s", name, n)
		}
		*f = int8(i)
	}
	return v, nil
}

// Component is one entry of a vector.
type Component struct {
	Name   string
	Value  int8
	Status Status
}

// Components lists the vector's entries by name.
func (v Vector) Components() []Component {
	var out []Component
	for name, f := range v.fields() {
		out = append(out, Component{name, *f, Tier(*f)})
	}
	slices.SortFunc(out, func(a, b Component) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out
}

// Status is the worst tier in the vector.
func (v Vector) Status() Status {
	s := None
	for _, c := range v.Components() {
		s = Worse(s, c.Status)
	}
	return s
}

// Finding is why a component is not affirming: Coffer's addition, so that a
// token explains itself.
type Finding struct {
	// Affects is the vector's component, for example "executables".
	Affects string `json:"affects,omitempty"`
	// Line is the line of the policy that found it, for example "snp.rego:42".
	Line string `json:"line,omitempty"`
	kbs.Reason
}

// Submod is the appraisal of one part: "cpu0", "gpu0", ….
type Submod struct {
	Status   Status `json:"ear.status"`
	Vector   Vector `json:"ear.trustworthiness-vector"`
	PolicyID string `json:"ear.appraisal-policy-id"`
	// Policy is the version that judged, for example "default_cpu@3" or
	// "default_cpu (built in)"; empty where there was none. Coffer's addition.
	Policy string `json:"ear.coffer.policy,omitempty"`
	// Evidence is the annotated evidence the policy judged, a JSON object.
	Evidence json.RawMessage `json:"ear.veraison.annotated-evidence"`
	Findings []Finding       `json:"ear.coffer.findings,omitempty"`
	// Extensions are further members that the policy computed.
	Extensions map[string]json.RawMessage `json:"-"`
}

// MarshalJSON adds the extensions beside the named members.
func (s Submod) MarshalJSON() ([]byte, error) {
	type plain Submod
	b, err := json.Marshal(plain(s))
	if err != nil || len(s.Extensions) == 0 {
		return b, err
	}
	ext, err := json.Marshal(s.Extensions)
	if err != nil {
		return nil, err
	}
	return append(append(b[:len(b)-1], ','), ext[1:]...), nil
}

// reserved are the members an extension must not replace.
var reserved = []string{"ear.status", "ear.trustworthiness-vector", "ear.appraisal-policy-id", "ear.veraison.annotated-evidence", "ear.coffer.findings", "ear.coffer.policy"}

// CheckExtension refuses names that would shadow the appraisal's own members,
// for readers that do not care for letter case too: encoding/json is one.
func CheckExtension(name string) error {
	if name == "" || slices.ContainsFunc(reserved, func(r string) bool { return strings.EqualFold(r, name) }) {
		return fmt.Errorf("extension %q: the name is empty or taken", name)
	}
	return nil
}

// VerifierID names the software that appraised.
type VerifierID struct {
	Developer string `json:"developer"`
	Build     string `json:"build"`
}

// Claims are a token's payload.
type Claims struct {
	Profile    string            `json:"eat_profile"`
	Issuer     string            `json:"iss"`
	Audience   Audience          `json:"aud"`
	IssuedAt   int64             `json:"iat"`
	NotBefore  int64             `json:"nbf"`
	Expires    int64             `json:"exp"`
	ID         string            `json:"jti"`
	VerifierID VerifierID        `json:"ear.verifier-id"`
	Submods    map[string]Submod `json:"submods"`
	// Protocol is the KBS protocol version of the handshake: it decides the
	// form of the responses that the token's bearer can read.
	Protocol string `json:"coffer.kbs-protocol"`
	// Tenant is whose trustee judged: a token is good for this tenant alone.
	Tenant string `json:"coffer.tenant"`
}

// Audience is who a token is for. One string stands for a list of one (RFC
// 7519, section 4.1.3).
type Audience []string

// UnmarshalJSON reads either form.
func (a *Audience) UnmarshalJSON(doc []byte) error {
	if len(doc) > 0 && doc[0] == '"' {
		*a = make(Audience, 1)
		return json.Unmarshal(doc, &(*a)[0])
	}
	return json.Unmarshal(doc, (*[]string)(a))
}

// CPU is the name of the submodule whose evidence is bound to the TEE key.
const CPU = "cpu0"

// Status is the worst status of all submodules.
func (c *Claims) Status() Status {
	s := None
	for _, m := range c.Submods {
		s = Worse(s, m.Status)
	}
	return s
}
