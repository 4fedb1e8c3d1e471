// Package policytest runs a Rego policy against cases in a file, before the
// policy is stored: what a resource policy decides on recorded or made-up
// claims, what an attestation policy says of evidence. It decides with the
// trustee's own engine and reports which lines of the policy no case reached.
package policytest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/internal/trustee/audit"
)

// Limits of a file of cases and of the documents it names.
const (
	maxFile  = 8 << 20
	maxCases = 10000
)

// Kinds of policy.
const (
	KindResource    = "resource"
	KindAttestation = "attestation"
)

// File is a file of cases, in TOML or, by its name's ending .json, in JSON.
type File struct {
	// Kind is [KindResource] or [KindAttestation]; empty means the former.
	Kind  string `toml:"kind" json:"kind,omitempty"`
	Cases []Case `toml:"case" json:"case"`
}

// Case is one question to a policy and the answer that is expected.
type Case struct {
	Name string `toml:"name" json:"name"`

	// Claims are the attestation token's (kind resource): see [Document].
	Claims Document `toml:"claims" json:"claims,omitzero"`
	// Resource is a URI, kbs:///repository/type/tag or kbs+plugin:///path.
	Resource string            `toml:"resource" json:"resource,omitempty"`
	Query    map[string]string `toml:"query" json:"query,omitempty"`
	// RegisteredInitData are whole digests in hex.
	RegisteredInitData []string `toml:"registered_initdata" json:"registered_initdata,omitempty"`
	AllowSimulated     bool     `toml:"allow_simulated" json:"allow_simulated,omitempty"`
	// Tenant is "default" where it is empty.
	Tenant string `toml:"tenant" json:"tenant,omitempty"`
	// Expect is "allow" or "deny".
	Expect string `toml:"expect" json:"expect,omitempty"`

	// Evidence is the annotated evidence (kind attestation): what the policy
	// sees as input. Of a token's claims, the part Submod ("cpu0") is taken.
	Evidence Document `toml:"evidence" json:"evidence,omitzero"`
	Submod   string   `toml:"submod" json:"submod,omitempty"`
	// ReferenceValues are what is registered: lists or scalars by name.
	ReferenceValues map[string]Value `toml:"reference_values" json:"reference_values,omitempty"`
	// ExpectTrustClaims are components of the trustworthiness vector; those not
	// named are not looked at.
	ExpectTrustClaims map[string]int `toml:"expect_trust_claims" json:"expect_trust_claims,omitempty"`
	// ExpectStatus is the worst tier, for example "affirming".
	ExpectStatus string `toml:"expect_status" json:"expect_status,omitempty"`

	// ExpectRule is a rule that must be among the reasons or findings.
	ExpectRule string `toml:"expect_rule" json:"expect_rule,omitempty"`
}

// Document is JSON: written out as a table or in a string, or the name of a
// file, relative to the file of cases. A file may hold the JSON itself, a
// compact JWS, whose payload is taken without looking at the signature, or an
// audit record or entry, whose claims are taken.
type Document struct {
	// JSON is the document itself, File a file's name; one is empty.
	JSON json.RawMessage
	File string
}

// IsZero reports whether nothing was given.
func (d Document) IsZero() bool { return d.JSON == nil && d.File == "" }

// UnmarshalTOML implements toml.Unmarshaler.
func (d *Document) UnmarshalTOML(v any) error {
	doc, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return d.set(doc)
}

// UnmarshalJSON implements json.Unmarshaler.
func (d *Document) UnmarshalJSON(doc []byte) error { return d.set(bytes.Clone(doc)) }

func (d *Document) set(doc []byte) error {
	*d = Document{JSON: doc}
	var s string
	if len(doc) == 0 || doc[0] != '"' {
		return nil
	}
	if err := json.Unmarshal(doc, &s); err != nil {
		return err
	}
	if t := strings.TrimSpace(s); strings.HasPrefix(t, "{") {
		if !json.Valid([]byte(t)) {
			return errors.New("begins like JSON and is none")
		}
		*d = Document{JSON: json.RawMessage(t)}
		return nil
	}
	d.File = s
	return nil
}

// Value is a JSON value.
type Value struct{ JSON json.RawMessage }

// UnmarshalTOML implements toml.Unmarshaler.
func (v *Value) UnmarshalTOML(x any) error {
	var err error
	v.JSON, err = json.Marshal(x)
	return err
}

// UnmarshalJSON implements json.Unmarshaler.
func (v *Value) UnmarshalJSON(doc []byte) error {
	v.JSON = bytes.Clone(doc)
	return nil
}

// Load reads a file of cases and the documents it names. Keys that are not
// known are refused.
func Load(path string) (*File, error) {
	doc, err := readFile(path)
	if err != nil {
		return nil, err
	}
	f, err := Parse(doc, strings.EqualFold(filepath.Ext(path), ".json"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for i := range f.Cases {
		c := &f.Cases[i]
		if err := c.load(filepath.Dir(path)); err != nil {
			return nil, fmt.Errorf("%s: case %q: %w", path, c.Name, err)
		}
	}
	return f, nil
}

// Parse reads cases without the files they name.
func Parse(doc []byte, isJSON bool) (*File, error) {
	var f File
	if isJSON {
		if err := strictjson.Decode(doc, &f, strictjson.Limits{Bytes: maxFile, Depth: 64}); err != nil {
			return nil, err
		}
	} else {
		meta, err := toml.Decode(string(doc), &f)
		if err != nil {
			return nil, err
		}
		if unknown := undecoded(meta); unknown != "" {
			return nil, fmt.Errorf("unknown key %q", unknown)
		}
	}
	if f.Kind == "" {
		f.Kind = KindResource
	}
	if f.Kind != KindResource && f.Kind != KindAttestation {
		return nil, fmt.Errorf("kind: expected %q or %q, got %.40q", KindResource, KindAttestation, f.Kind)
	}
	if len(f.Cases) == 0 || len(f.Cases) > maxCases {
		return nil, fmt.Errorf("case: expected 1 to %d cases, got %d", maxCases, len(f.Cases))
	}
	seen := map[string]bool{}
	for i, c := range f.Cases {
		if c.Name == "" || seen[c.Name] {
			return nil, fmt.Errorf("case %d: name: expected one that no other case has, got %q", i+1, c.Name)
		}
		seen[c.Name] = true
		if err := c.validate(f.Kind); err != nil {
			return nil, fmt.Errorf("case %q: %w", c.Name, err)
		}
	}
	return &f, nil
}

// undecoded is the first unknown key. What is below a document is the
// document's.
func undecoded(meta toml.MetaData) string {
	for _, key := range meta.Undecoded() {
		if len(key) > 2 && key[0] == "case" && (key[1] == "claims" || key[1] == "evidence" || key[1] == "reference_values") {
			continue
		}
		return key.String()
	}
	return ""
}

func (c *Case) validate(kind string) error {
	attestation := !c.Evidence.IsZero() || c.Submod != "" || len(c.ReferenceValues) > 0 || len(c.ExpectTrustClaims) > 0 || c.ExpectStatus != ""
	resource := !c.Claims.IsZero() || c.Resource != "" || len(c.Query) > 0 || len(c.RegisteredInitData) > 0 || c.AllowSimulated || c.Tenant != "" || c.Expect != ""
	switch {
	case kind == KindResource && attestation:
		return errors.New("evidence, submod, reference_values, expect_trust_claims and expect_status belong to files of kind attestation")
	case kind == KindAttestation && resource:
		return errors.New("claims, resource, query, registered_initdata, allow_simulated, tenant and expect belong to files of kind resource")
	case kind == KindResource && c.Expect != "allow" && c.Expect != "deny":
		return fmt.Errorf("expect: expected \"allow\" or \"deny\", got %q", c.Expect)
	case kind == KindResource && (c.Claims.IsZero() || c.Resource == ""):
		return errors.New("expected claims and a resource")
	case kind == KindResource && c.Expect == "allow" && c.ExpectRule != "":
		return errors.New("expect_rule: what is allowed has no reasons")
	case kind == KindAttestation && c.Evidence.IsZero():
		return errors.New("expected evidence")
	case kind == KindAttestation && len(c.ExpectTrustClaims) == 0 && c.ExpectStatus == "" && c.ExpectRule == "":
		return errors.New("expected one of expect_trust_claims, expect_status and expect_rule")
	}
	return nil
}

func (c *Case) load(dir string) error {
	for name, d := range map[string]*Document{"claims": &c.Claims, "evidence": &c.Evidence} {
		if d.File == "" {
			continue
		}
		path := d.File
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		doc, err := readFile(path)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if d.JSON, err = Claims(doc); err != nil {
			return fmt.Errorf("%s: %s: %w", name, d.File, err)
		}
	}
	return nil
}

// Claims finds the JSON document in what a [Document]'s file may hold.
func Claims(doc []byte) (json.RawMessage, error) {
	doc = bytes.TrimSpace(doc)
	if parts := bytes.Split(doc, []byte(".")); len(parts) == 3 && len(doc) > 0 && doc[0] != '{' {
		payload, err := base64.RawURLEncoding.DecodeString(string(parts[1]))
		if err != nil {
			return nil, fmt.Errorf("token: payload: %w", err)
		}
		doc = payload
	}
	if !json.Valid(doc) || len(doc) == 0 || doc[0] != '{' {
		return nil, errors.New("expected a JSON object, a compact JWS or an audit record")
	}
	var e audit.Entry
	if json.Unmarshal(doc, &e) == nil && len(e.Body) > 0 && e.Seq > 0 {
		doc = e.Body
	}
	if r, err := audit.DecodeRecord(doc); err == nil {
		if len(r.Claims) == 0 {
			return nil, fmt.Errorf("the audit record is of kind %s and holds no claims: take the one of kind %s", r.Kind, audit.KindAttestation)
		}
		return r.Claims, nil
	}
	return doc, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	doc, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(doc) > maxFile {
		return nil, fmt.Errorf("%s: expected at most %d bytes", path, maxFile)
	}
	return doc, nil
}

// Result of one case.
type Result struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Failures say what was expected and what came, one line each.
	Failures []string      `json:"failures,omitempty"`
	Took     time.Duration `json:"took_ns"`
}

// Report of a whole file.
type Report struct {
	Policy   string   `json:"policy"`
	Kind     string   `json:"kind"`
	OK       bool     `json:"ok"`
	Passed   int      `json:"passed"`
	Failed   int      `json:"failed"`
	Results  []Result `json:"results"`
	Coverage Coverage `json:"coverage"`
}
