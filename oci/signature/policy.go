package signature

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"path"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/oci"
)

// Limits on a policy.
const (
	maxPolicy       = 1 << 20
	maxScopes       = 1024
	maxRequirements = 16
)

// The types of requirements.
const (
	typeInsecure  = "insecureAcceptAnything"
	typeReject    = "reject"
	typeSigstore  = "sigstoreSigned"
	typeSignedBy  = "signedBy"
	transportName = "docker"
)

// Policy is a parsed containers-policy.json: a list of requirements by scope,
// all of which an image has to meet. It is immutable.
type Policy struct {
	fallback []requirement
	scopes   map[string][]requirement
}

// requirement is one entry of a list.
type requirement struct {
	Type     string    `json:"type"`
	KeyPath  string    `json:"keyPath"`
	KeyData  string    `json:"keyData"`
	KeyType  string    `json:"keyType"`
	Identity *identity `json:"signedIdentity"`

	pem []byte // of KeyData
}

// ParsePolicy decodes and checks a policy (containers-policy.json(5), the part
// that guest components know). It is stricter than they are: a list of
// requirements must not be empty, and what cannot be checked here is refused
// when it is read and not when an image comes.
func ParsePolicy(data []byte) (*Policy, error) {
	var file struct {
		Default    []requirement                       `json:"default"`
		Transports map[string]map[string][]requirement `json:"transports"`
	}
	if err := strictjson.Decode(data, &file, strictjson.Limits{Bytes: maxPolicy, Depth: 8}); err != nil {
		return nil, fmt.Errorf("image policy: %w", err)
	}
	p := &Policy{fallback: file.Default}
	problems := []error{check("default", p.fallback)}
	for _, name := range slices.Sorted(maps.Keys(file.Transports)) {
		scopes := file.Transports[name]
		if len(scopes) > maxScopes {
			problems = append(problems, fmt.Errorf("transports.%s: %d scopes, at most %d are allowed", name, len(scopes), maxScopes))
			continue
		}
		for _, scope := range slices.Sorted(maps.Keys(scopes)) {
			problems = append(problems, check(fmt.Sprintf("transports.%s[%q]", name, scope), scopes[scope]))
		}
		if name == transportName { // rules for other transports never apply to a registry
			p.scopes = scopes
		}
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("image policy: %w", err)
	}
	return p, nil
}

// InsecureAcceptAnything is the policy that demands no signature. The digest
// in the reference is then all that says what is run.
func InsecureAcceptAnything() *Policy {
	return &Policy{fallback: []requirement{{Type: typeInsecure}}}
}

// SignedBy is the policy that every image must be signed under the public key,
// in PEM.
func SignedBy(publicPEM []byte) (*Policy, error) {
	r := requirement{Type: typeSigstore, pem: publicPEM}
	if _, err := ParsePublicKey(publicPEM); err != nil {
		return nil, err
	}
	return &Policy{fallback: []requirement{r}}, nil
}

func check(where string, list []requirement) error {
	if len(list) == 0 {
		return fmt.Errorf("%s: expected at least one requirement; an empty list would accept anything without saying so (use %s to mean that)", where, typeInsecure)
	}
	if len(list) > maxRequirements {
		return fmt.Errorf("%s: %d requirements, at most %d are allowed", where, len(list), maxRequirements)
	}
	for i := range list {
		if err := list[i].check(); err != nil {
			return fmt.Errorf("%s[%d].%w", where, i, err)
		}
	}
	return nil
}

func (r *requirement) check() error {
	switch r.Type {
	case typeInsecure, typeReject:
		if r.KeyPath != "" || r.KeyData != "" || r.KeyType != "" || r.Identity != nil {
			return fmt.Errorf("type: %s takes no other fields", r.Type)
		}
		return nil
	case typeSignedBy:
		return fmt.Errorf("type: %s (OpenPGP simple signing) is not supported; sign with cosign keys and use %s", typeSignedBy, typeSigstore)
	case typeSigstore:
	case "":
		return errors.New("type: missing")
	default:
		return fmt.Errorf("type: expected %s, %s or %s, got %q", typeSigstore, typeReject, typeInsecure, clip(r.Type))
	}
	if r.KeyType != "" {
		return fmt.Errorf("keyType: not a field of %s", typeSigstore)
	}
	if (r.KeyPath == "") == (r.KeyData == "") {
		return errors.New("keyPath, keyData: expected exactly one of them")
	}
	if r.KeyPath != "" && !strings.HasPrefix(r.KeyPath, "kbs://") {
		return fmt.Errorf("keyPath: expected kbs:///REPOSITORY/TYPE/TAG, got %q: the guest has no other files than measured ones", clip(r.KeyPath))
	}
	if r.KeyData != "" {
		// containers-policy.json has base64; guest components once took PEM.
		r.pem = []byte(r.KeyData)
		if !strings.HasPrefix(r.KeyData, "-----BEGIN") {
			plain, err := base64.StdEncoding.DecodeString(r.KeyData)
			if err != nil {
				return fmt.Errorf("keyData: expected base64 of a public key in PEM form: %w", err)
			}
			r.pem = plain
		}
		if _, err := ParsePublicKey(r.pem); err != nil {
			return fmt.Errorf("keyData: %w", err)
		}
	}
	if r.Identity != nil {
		return r.Identity.check()
	}
	return nil
}

// requirements finds the list for ref, and the scope under which it stands:
// the closest one from the whole reference to the registry, then wildcards for
// the registry's name, then "", then the default.
func (p *Policy) requirements(ref oci.Reference) (scope string, list []requirement) {
	for _, candidate := range candidates(ref) {
		if list, ok := p.scopes[candidate]; ok {
			return candidate, list
		}
	}
	return "default", p.fallback
}

func candidates(ref oci.Reference) []string {
	var out []string
	if ref.Digest != "" {
		out = append(out, ref.Name()+"@"+string(ref.Digest))
	}
	if ref.Tag != "" {
		out = append(out, ref.Name()+":"+ref.Tag)
	}
	for name := ref.Name(); name != "."; name = path.Dir(name) {
		out = append(out, name)
	}
	host := ref.Registry
	if h, _, err := net.SplitHostPort(host); err == nil {
		out = append(out, h)
		host = h
	}
	for {
		_, parent, found := strings.Cut(host, ".")
		if !found {
			break
		}
		out = append(out, "*."+parent)
		host = parent
	}
	return append(slices.Compact(out), "")
}

// Verify decides whether the subject is acceptable. f is the repository with
// the signatures; keys finds the keys that the policy names, and may be nil if
// it names none. The error says what was demanded.
func (p *Policy) Verify(ctx context.Context, s Subject, f oci.Fetcher, keys KeyGetter) (Verdict, error) {
	scope, list := p.requirements(s.Ref)
	v, err := p.verify(ctx, s, f, keys, list)
	if err != nil {
		return Verdict{}, fmt.Errorf("image %s: policy for %q: %w", s.Ref, scope, err)
	}
	v.Scope = scope
	return v, nil
}

func (p *Policy) verify(ctx context.Context, s Subject, f oci.Fetcher, keys KeyGetter, list []requirement) (Verdict, error) {
	if len(list) == 0 {
		return Verdict{}, errors.New("there are no requirements, which accepts nothing") // a zero Policy
	}
	var verdict Verdict
	var signatures []claim
	for i, r := range list {
		switch r.Type {
		case typeInsecure:
			if verdict.Requirement == "" {
				verdict.Requirement = r.Type
			}
		case typeReject:
			return Verdict{}, errors.New("the policy rejects every such image")
		case typeSigstore:
			if signatures == nil {
				var err error
				if signatures, err = fetchClaims(ctx, f, s); err != nil {
					return Verdict{}, err
				}
			}
			key, err := r.key(ctx, keys)
			if err != nil {
				return Verdict{}, fmt.Errorf("requirement %d: %w", i, err)
			}
			digest, err := key.accept(signatures, s, r.Identity)
			if err != nil {
				return Verdict{}, fmt.Errorf("requirement %d: %w", i, err)
			}
			verdict.Requirement, verdict.KeyID, verdict.Digest = r.Type, key.ID(), digest
		default:
			return Verdict{}, fmt.Errorf("requirement %d: type %q", i, r.Type)
		}
	}
	return verdict, nil
}

func (r *requirement) key(ctx context.Context, keys KeyGetter) (*PublicKey, error) {
	if r.KeyPath == "" {
		return ParsePublicKey(r.pem)
	}
	if keys == nil {
		return nil, fmt.Errorf("key %s: this pod has no source of keys", clip(r.KeyPath))
	}
	raw, err := keys.Key(ctx, r.KeyPath)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", clip(r.KeyPath), err)
	}
	key, err := ParsePublicKey(raw.Expose())
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", clip(r.KeyPath), err)
	}
	return key, nil
}

func clip(s string) string {
	const most = 128
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
