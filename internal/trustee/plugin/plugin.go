// Package plugin is how kinds of resource come to the trustee: a plugin owns
// the paths below /kbs/v0/NAME. Who may call which is the plugin's to say;
// that guests have proved what they are, that a policy lets them, that
// answers are encrypted to them and recorded is the caller's to see to.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/trustee/ear"
	"github.com/coffer-project/coffer/internal/trustee/problem"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

// Access says who may make a request.
type Access int

// The zero value lets nobody in.
const (
	// None: there is no such path or method.
	None Access = iota
	// Guest: whoever has an attestation token that the resource policy accepts.
	Guest
	// Admin: an administrator.
	Admin
)

// Request is one call. Whoever makes it was let in already.
type Request struct {
	Tenant tenant.Name
	// Method is GET, POST, PUT or DELETE.
	Method string
	// Path are the segments after the plugin's name, checked by [SplitPath].
	Path []string
	// Query are the URL's parameters; of several of a name the last counts.
	Query map[string]string
	Body  []byte
	// Claims are a guest's, as its token has them; nil for an administrator.
	Claims *ear.Claims
	// Session names the guest's handshake.
	Session string
	// InitData is the initdata field of the guest's evidence in hex, "" for none.
	InitData string
	// Simulated is true unless all of the guest's evidence is of real hardware.
	Simulated bool
}

// Response is a successful answer.
type Response struct {
	// Body is cleared after it was sent.
	Body secret.Bytes
	// ContentType is sent with a body that is not encrypted; "" means
	// application/octet-stream.
	ContentType string
	// Encrypt the body to the guest's key. What is secret must be.
	Encrypt bool
	// Version of what was answered, 0 where there are none. It is recorded.
	Version int64
	// Detail says in one line what was handed out, for the record: never a secret.
	Detail string
}

// Plugin serves one kind of resource. Implementations are safe for concurrent
// use and bound their waits by ctx.
type Plugin interface {
	// Name is the path's first segment: 1 to 64 characters of a-z 0-9 "-".
	Name() string
	// Access says who may make a request. It depends on nothing else.
	Access(method string, path []string) Access
	// Handle answers a request that Access and the policy let in. What a
	// guest is refused all the same is a 403 with a reason; the error's text
	// goes to the client, its cause to the log.
	Handle(ctx context.Context, r Request) (*Response, *problem.Error)
}

// Checker is what a [Plugin] implements that can tell a malformed request
// before any policy is asked.
type Checker interface {
	// Check returns a 400 for a request that Handle could never answer. It
	// must not depend on what is stored.
	Check(r Request) *problem.Error
}

// Sized is what a [Plugin] implements whose requests may be larger than others'.
type Sized interface {
	// MaxBody bounds a guest's request, in bytes. It always says the same.
	MaxBody() int
}

// reserved are first path segments that the trustee itself answers.
func reserved() []string {
	return []string{"auth", "attest", "attestation-policy", "resource-policy", "reference-value"}
}

// Registry holds the plugins by name. It never changes and is safe for
// concurrent use.
type Registry struct{ plugins map[string]Plugin }

// New refuses a name that is malformed, taken or used twice.
func New(plugins ...Plugin) (*Registry, error) {
	r := &Registry{plugins: make(map[string]Plugin, len(plugins))}
	for _, p := range plugins {
		if p == nil {
			return nil, errors.New("plugin: got nil")
		}
		name := p.Name()
		if err := checkName(name); err != nil {
			return nil, fmt.Errorf("plugin: name %.80q: %w", name, err)
		}
		if _, ok := r.plugins[name]; ok {
			return nil, fmt.Errorf("plugin: name %q: is used twice", name)
		}
		r.plugins[name] = p
	}
	return r, nil
}

const maxName = 64

func checkName(name string) error {
	bad := func(c rune) bool { return c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') }
	switch {
	case name == "" || len(name) > maxName || strings.ContainsFunc(name, bad):
		return fmt.Errorf("expected 1 to %d characters of a-z 0-9 -", maxName)
	case slices.Contains(reserved(), name):
		return errors.New("is reserved for the protocol's own paths")
	}
	return nil
}

// Get returns the plugin of a name.
func (r *Registry) Get(name string) (Plugin, bool) {
	p, ok := r.plugins[name]
	return p, ok
}

// Names lists the plugins, sorted.
func (r *Registry) Names() []string { return slices.Sorted(maps.Keys(r.plugins)) }

// Limits of a path below a plugin.
const (
	MaxSegments = 16
	MaxSegment  = resource.MaxSegment
)

// SplitPath splits what follows /kbs/v0 in a URL's path into the plugin's name
// and the segments of its path; "/NAME" and "/NAME/" have none. Segments are
// those that policies and bindings can name ([resource.ParsePrefix]), so that
// whatever can be asked for can be ruled on: 1 to [MaxSegment] characters of
// A-Z a-z 0-9 . _ - of which the first is no dot.
func SplitPath(path string) (name string, segments []string, err error) {
	name, rest, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if rest == "" {
		return name, nil, nil
	}
	if len(rest) > MaxSegments*(MaxSegment+1) {
		return name, nil, fmt.Errorf("path: expected at most %d segments of at most %d bytes", MaxSegments, MaxSegment)
	}
	segments = strings.Split(rest, "/")
	if len(segments) > MaxSegments {
		return name, nil, fmt.Errorf("path: expected at most %d segments, got %d", MaxSegments, len(segments))
	}
	for _, s := range segments {
		if _, err := resource.ParsePrefix(s); err != nil {
			return name, nil, err
		}
	}
	return name, segments, nil
}
