package release

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/tpm"
)

// Binding is an initdata digest that a resource's owner has registered.
type Binding struct {
	// InitData is the whole digest in hex.
	InitData    string
	Description string
}

// Bindings looks up what is registered for any of the scopes.
type Bindings interface {
	BindingsFor(ctx context.Context, t tenant.Name, scopes []string) ([]Binding, error)
}

// maxRegistered bounds the digests that a policy sees and a record keeps. The
// one that the evidence holds is always among them.
const maxRegistered = 64

// describeMax is how many digests a denial lists.
const describeMax = 8

// Data is the document data of a resource policy. The first three members are
// the ecosystem's; coffer is our addition.
type Data struct {
	Plugin string `json:"plugin"`
	// Path are the segments of the resource.
	Path []string `json:"resource-path"`
	// Query are the URL's parameters. In records the values of those whose name
	// sounds like a credential's are [Redacted]: a policy that looks at them
	// is replayed without them.
	Query  map[string]string `json:"query"`
	Coffer Coffer            `json:"coffer"`
}

// Coffer is data.coffer.
type Coffer struct {
	Tenant tenant.Name `json:"tenant"`
	// RegisteredInitData are digests registered for the path or a prefix, in
	// lower-case hex, fitted to the evidence's field: at most 64 of them, the
	// evidence's own first where it is registered.
	RegisteredInitData []string `json:"registered_initdata"`
	// RegisteredDescription is the same for people.
	RegisteredDescription string `json:"registered_description"`
	// AllowSimulated is the trustee's configuration.
	AllowSimulated bool `json:"allow_simulated"`
}

// document is the same in Rego's values, without the detour of encoding it.
func (d Data) document() map[string]any {
	query := ast.NewObject()
	for k, v := range d.Query {
		query.Insert(ast.StringTerm(k), ast.StringTerm(v))
	}
	return map[string]any{
		"plugin": ast.String(d.Plugin), "resource-path": array(d.Path), "query": query,
		"coffer": ast.NewObject(
			ast.Item(ast.InternedTerm("tenant"), ast.StringTerm(string(d.Coffer.Tenant))),
			ast.Item(ast.InternedTerm("registered_initdata"), ast.NewTerm(array(d.Coffer.RegisteredInitData))),
			ast.Item(ast.InternedTerm("registered_description"), ast.StringTerm(d.Coffer.RegisteredDescription)),
			ast.Item(ast.InternedTerm("allow_simulated"), ast.InternedTerm(d.Coffer.AllowSimulated)),
		),
	}
}

func array(list []string) *ast.Array {
	out := make([]*ast.Term, len(list))
	for i, s := range list {
		out[i] = ast.StringTerm(s)
	}
	return ast.NewArray(out...)
}

func (e *Engine) data(ctx context.Context, r Request, scopes []string) (Data, error) {
	bindings, err := e.o.Bindings.BindingsFor(ctx, r.Tenant, scopes)
	if err != nil {
		return Data{}, fmt.Errorf("bindings of %s: %w", scopes[0], err)
	}
	digests, description, err := Registered(bindings, r.Claims)
	if err != nil {
		return Data{}, fmt.Errorf("bindings of %s: %w", scopes[0], err)
	}
	d := Data{Plugin: r.Plugin, Path: r.Path, Query: r.Query, Coffer: Coffer{
		Tenant: r.Tenant, RegisteredInitData: digests, RegisteredDescription: description, AllowSimulated: e.o.AllowSimulated,
	}}
	if d.Path == nil {
		d.Path = []string{}
	}
	if d.Query == nil {
		d.Query = map[string]string{}
	}
	return d, nil
}

// Redacted stands in a record for what may be a credential.
const Redacted = "[redacted]"

// withoutCredentials is a query as records may keep it. What a guest asks for
// is no secret, but somebody will put one where it does not belong.
func withoutCredentials(query map[string]string) map[string]string {
	out := make(map[string]string, len(query))
	for name, value := range query {
		for _, part := range []string{"token", "secret", "password", "passwd", "credential", "auth", "key", "pin", "cookie"} {
			if strings.Contains(strings.ToLower(name), part) {
				value = Redacted
			}
		}
		out[name] = value
	}
	return out
}

// Registered fits digests to the field that the evidence has for them, so that
// a policy compares plain strings, and describes them. What cannot match, a
// digest too short to tell anything or of zeros, is left out; so is one that is
// not SHA-256 where a register of a TPM names the initdata.
func Registered(bindings []Binding, c *ear.Claims) (digests []string, description string, err error) {
	field := InitDataField(c)
	own, measured := hex.EncodeToString(field), inRegister(c)
	digests = []string{}
	var text []string
	total := 0
	for _, b := range bindings {
		digest, err := hex.DecodeString(b.InitData)
		if err != nil {
			return nil, "", fmt.Errorf("stored binding: initdata is no hex: %w", err)
		}
		line := strings.ToLower(b.InitData)
		if len(field) > 0 {
			fitted := asHeld(digest, len(field), measured)
			if fitted == nil {
				continue
			}
			line = hex.EncodeToString(fitted)
		}
		total++
		fit := line
		if b.Description != "" {
			line += " (" + b.Description + ")"
		}
		if len(text) < describeMax {
			text = append(text, line)
		}
		switch {
		case len(field) == 0: // there is nothing to compare with
		case fit == own && len(digests) > 0 && digests[0] != own:
			if len(digests) == maxRegistered {
				digests = digests[:maxRegistered-1]
			}
			digests = append([]string{fit}, digests...)
		case len(digests) < maxRegistered:
			digests = append(digests, fit)
		}
	}
	return digests, describe(text, total), nil
}

func describe(text []string, total int) string {
	if total == 0 {
		return "nothing is registered"
	}
	if more := total - len(text); more > 0 {
		text = append(text, fmt.Sprintf("and %d more", more))
	}
	return "[" + strings.Join(text, ", ") + "]"
}

// asHeld is what evidence with a field of that size holds for a digest, nil where
// it holds none: cut or padded to the field, or what becomes of the register of a
// TPM when it is extended with it.
func asHeld(digest []byte, size int, measured bool) []byte {
	if measured {
		if len(digest) != sha256.Size || size != sha256.Size || bytes.Count(digest, []byte{0}) == len(digest) {
			return nil
		}
		extended := tpm.Extended([sha256.Size]byte(digest))
		return extended[:]
	}
	fitted := tee.Fit(digest, size)
	if !initdata.MatchesField(digest, fitted) {
		return nil
	}
	return fitted
}

// inRegister tells whether the CPU's evidence names initdata by the register of
// a TPM: its claims are those of such an environment, and of no other.
func inRegister(c *ear.Claims) bool {
	var evidence map[string]json.RawMessage
	if json.Unmarshal(c.Submods[ear.CPU].Evidence, &evidence) != nil {
		return false
	}
	for _, n := range []tee.Name{tee.TPM, tee.AzureSNPVTPM, tee.AzureTDXVTPM} {
		if _, ok := evidence[string(n)]; ok {
			return true
		}
	}
	return false
}

// InitDataField is the initdata field of the CPU's evidence as the token
// holds it, nil where it has none.
func InitDataField(c *ear.Claims) []byte {
	var e struct {
		InitData string `json:"init_data"`
	}
	if json.Unmarshal(c.Submods[ear.CPU].Evidence, &e) != nil {
		return nil
	}
	field, err := hex.DecodeString(e.InitData)
	if err != nil {
		return nil
	}
	return field
}
