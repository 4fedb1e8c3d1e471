package signature

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/oci"
)

// Limits on a policy.
const (
	maxPolicy       = 1 << 20
	maxScopes       = 1024
	maxRequirements = 16
)

// Policy is a parsed containers-policy.json: a list of requirements by scope,
// all of which an image has to meet. It is immutable.
type Policy struct {
	fallback []requirement
	scopes   map[string][]requirement
	options  options
}

type options struct {
	lookaside Lookaside
	keyless   Keyless
	files     bool
	now       func() time.Time
}

// Option says what a policy may use.
type Option func(*options)

// WithLookaside lets the policy demand simple signing (signedBy), whose
// signatures l finds. Without it ParsePolicy refuses such requirements.
func WithLookaside(l Lookaside) Option { return func(o *options) { o.lookaside = l } }

// WithKeyless lets the policy demand keyless signatures (sigstoreSigned with
// fulcio). Without it ParsePolicy refuses such requirements.
func WithKeyless(k Keyless) Option { return func(o *options) { o.keyless = k } }

// WithFiles lets the policy name keys by the paths of files, which the
// KeyGetter then gets as they stand: see [Files]. Without it only kbs:// URIs
// are accepted, for the guest has no other files than measured ones.
func WithFiles() Option { return func(o *options) { o.files = true } }

// WithClock is what tells whether keys and certificates have expired;
// otherwise time.Now does.
func WithClock(now func() time.Time) Option { return func(o *options) { o.now = now } }

func newOptions(opts []Option) options {
	o := options{now: time.Now}
	for _, set := range opts {
		set(&o)
	}
	return o
}

// ParsePolicy decodes and checks a policy (containers-policy.json(5)). Fields
// that are not known, lists of requirements that are empty, transports and
// scopes that could never match, and what this program cannot check are errors
// here, and not only when an image comes.
func ParsePolicy(data []byte, opts ...Option) (*Policy, error) {
	var file struct {
		Default    []requirement                       `json:"default"`
		Transports map[string]map[string][]requirement `json:"transports"`
	}
	if err := strictjson.Decode(data, &file, strictjson.Limits{Bytes: maxPolicy, Depth: 10}); err != nil {
		return nil, fmt.Errorf("image policy: %w", err)
	}
	p := &Policy{fallback: file.Default, options: newOptions(opts)}
	problems := []error{p.options.check("default", p.fallback)}
	for _, name := range slices.Sorted(maps.Keys(file.Transports)) {
		scopes := file.Transports[name]
		problems = append(problems, checkTransport(name))
		if len(scopes) > maxScopes {
			problems = append(problems, fmt.Errorf("transports.%s: %d scopes, at most %d are allowed", name, len(scopes), maxScopes))
			continue
		}
		for _, scope := range slices.Sorted(maps.Keys(scopes)) {
			where := fmt.Sprintf("transports.%s[%q]", name, clip(scope))
			problems = append(problems, p.options.check(where, scopes[scope]))
			if name != transportName {
				continue
			}
			if err := checkScope(scope); err != nil {
				problems = append(problems, fmt.Errorf("%s: %w", where, err))
			}
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
	return &Policy{fallback: []requirement{{Type: typeInsecure}}, options: newOptions(nil)}
}

// SignedBy is the policy that every image must be signed under the public key,
// in PEM.
func SignedBy(publicPEM []byte) (*Policy, error) {
	if _, err := ParsePublicKey(publicPEM); err != nil {
		return nil, err
	}
	r := requirement{Type: typeSigstore, keys: material{data: [][]byte{publicPEM}}}
	return &Policy{fallback: []requirement{r}, options: newOptions(nil)}, nil
}

func (o *options) check(where string, list []requirement) error {
	if len(list) == 0 {
		return fmt.Errorf("%s: expected at least one requirement; an empty list would accept anything without saying so (use %s to mean that)", where, typeInsecure)
	}
	if len(list) > maxRequirements {
		return fmt.Errorf("%s: %d requirements, at most %d are allowed", where, len(list), maxRequirements)
	}
	for i := range list {
		if err := list[i].check(o); err != nil {
			return fmt.Errorf("%s[%d].%w", where, i, err)
		}
	}
	return nil
}

// Verify decides whether the subject is acceptable. f is the repository with
// the signatures; keys finds the keys that the policy names, and may be nil if
// it names none. The error says what was demanded. Verify keeps nothing and may
// be called again for an image that is stored already: it then fetches the
// signatures, some kilobytes, and nothing of the image.
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
	if len(s.Digests) == 0 {
		return Verdict{}, errors.New("the image has no digest that a signature could cover")
	}
	verdict := Verdict{Requirement: typeInsecure}
	v := &verifier{options: p.options, subject: s, keys: keys, found: newFinder(f, s)}
	for i := range list {
		r := &list[i]
		var accepted Verdict
		var err error
		switch r.Type {
		case typeInsecure:
			continue
		case typeReject:
			return Verdict{}, errors.New("the policy rejects every such image")
		case typeSigstore:
			accepted, err = v.sigstore(ctx, r)
		case typeSignedBy:
			accepted, err = v.signedBy(ctx, r)
		default:
			err = fmt.Errorf("type %q", clip(r.Type))
		}
		if err != nil {
			return Verdict{}, fmt.Errorf("requirement %d: %w", i, err)
		}
		verdict = accepted
		verdict.Requirement = r.Type
	}
	return verdict, nil
}

// verifier meets the requirements of one list for one image.
type verifier struct {
	options options
	subject Subject
	keys    KeyGetter
	found   *finder
}

func clip(s string) string {
	const most = 128
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
