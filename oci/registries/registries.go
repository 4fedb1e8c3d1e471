// Package registries reads containers-registries.conf, version 2: which
// registries have mirrors, are insecure or blocked, and what short names stand
// for.
//
// A mirror changes where bytes come from and nothing else: [Config.Sources]
// tells where an image's content may be read, and the reference that is asked
// for, judged and shown stays the user's.
//
// Prefixes match whole components: example.com/foo is the beginning of
// example.com/foo/bar, not of example.com/foobar, not of
// evil.com/example.com/foo and not of example.com:5000/foo. The longest prefix
// wins; an exact one goes before a wildcard.
package registries

import (
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/oci"
)

// ErrBlocked is wrapped by errors about images that must not be read.
var ErrBlocked = errors.New("blocked")

// Config is the content of such a file. A nil *Config is empty.
type Config struct {
	// Search are the unqualified-search-registries: where [Config.Resolve] looks
	// for names without a registry.
	Search []string
	// Aliases are what short names stand for.
	Aliases map[string]string
	// Registries are the [[registry]] tables.
	Registries []Registry
}

// Registry is what is special about some references.
type Registry struct {
	// Prefix is HOST[:PORT][/PATH], or *.DOMAIN for all hosts below a domain.
	// Empty: Location.
	Prefix string
	// Location takes the place of the prefix, HOST[:PORT][/PATH]. Empty, which
	// only a wildcard's may be: the reference stays as it is.
	Location string
	// Insecure asks the location by plain HTTP.
	Insecure bool
	// Blocked refuses all references with the prefix.
	Blocked bool
	// MirrorByDigestOnly uses the mirrors for content named by digest only.
	MirrorByDigestOnly bool
	Mirrors            []Mirror
}

// Mirror is another place with the same content.
type Mirror struct {
	// Location takes the place of the registry's prefix.
	Location string
	Insecure bool
	// Pull is PullAll (or empty), PullDigest or PullTag: which content is read
	// there.
	Pull string
}

// Values of pull-from-mirror.
const (
	PullAll    = "all"
	PullDigest = "digest-only"
	PullTag    = "tag-only"
)

// Source is a place where content of an image may be read.
type Source struct {
	// Ref is the user's reference, rewritten.
	Ref      oci.Reference
	Insecure bool
	// Mirror is false for the last source only.
	Mirror bool
	// Tags and Digests say which content is read there: what a tag names, what
	// a digest names.
	Tags, Digests bool
}

// prefix is the entry's, in effect.
func (r Registry) prefix() string {
	if r.Prefix == "" {
		return r.Location
	}
	return r.Prefix
}

// match returns how much of name, HOST[:PORT]/PATH, the prefix stands for.
func (r Registry) match(name string) (n int, ok bool) {
	prefix := r.prefix()
	if domain, wild := strings.CutPrefix(prefix, "*"); wild {
		host, _, _ := strings.Cut(name, "/")
		return len(host), strings.HasSuffix(withoutPort(host), domain) && len(withoutPort(host)) > len(domain)
	}
	rest, ok := strings.CutPrefix(name, prefix)
	return len(prefix), ok && (rest == "" || rest[0] == '/')
}

func withoutPort(host string) string {
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		return host[:i]
	}
	return host
}

// Find returns the entry that concerns a reference, nil if none does.
func (c *Config) Find(ref oci.Reference) *Registry {
	if c == nil {
		return nil
	}
	var best *Registry
	for i := range c.Registries {
		r := &c.Registries[i]
		if _, ok := r.match(ref.Name()); ok && (best == nil || better(r.prefix(), best.prefix())) {
			best = r
		}
	}
	return best
}

// better compares two prefixes of one name.
func better(a, b string) bool {
	wildA, wildB := strings.HasPrefix(a, "*"), strings.HasPrefix(b, "*")
	if wildA != wildB {
		return wildB
	}
	return len(a) > len(b)
}

// Sources lists where the content of ref may be read: the mirrors in their
// order, and last the registry itself. The error wraps [ErrBlocked] if it must
// not be read at all.
func (c *Config) Sources(ref oci.Reference) ([]Source, error) {
	r := c.Find(ref)
	if r == nil {
		return []Source{{Ref: ref, Tags: true, Digests: true}}, nil
	}
	if r.Blocked {
		return nil, fmt.Errorf("image %s: %w by prefix %q of the registry configuration", ref, ErrBlocked, r.prefix())
	}
	n, _ := r.match(ref.Name())
	var out []Source
	for _, m := range r.Mirrors {
		at, err := rewrite(ref, n, m.Location)
		if err != nil {
			return nil, fmt.Errorf("image %s: mirror %q: %w", ref, m.Location, err)
		}
		digestOnly := r.MirrorByDigestOnly || m.Pull == PullDigest
		out = append(out, Source{Ref: at, Insecure: m.Insecure, Mirror: true, Tags: !digestOnly, Digests: m.Pull != PullTag})
	}
	at := ref
	if r.Location != "" {
		var err error
		if at, err = rewrite(ref, n, r.Location); err != nil {
			return nil, fmt.Errorf("image %s: location %q: %w", ref, r.Location, err)
		}
	}
	return append(out, Source{Ref: at, Insecure: r.Insecure, Tags: true, Digests: true}), nil
}

// rewrite replaces the first n bytes of ref's name.
func rewrite(ref oci.Reference, n int, location string) (oci.Reference, error) {
	at, err := oci.ParseReference(location + ref.Name()[n:])
	if err != nil {
		return oci.Reference{}, err
	}
	at.Tag, at.Digest = ref.Tag, ref.Digest
	return at, nil
}

// Resolve reads an image name as a person writes it. A name without a registry
// is looked up in the aliases, and else belongs to the one registry that is
// searched: with several, the first of them to invent the name would win, so
// that is an error which lists them. Without any, it is on Docker Hub.
func (c *Config) Resolve(name string) (oci.Reference, error) {
	if c == nil || !short(name) {
		return oci.ParseReference(name)
	}
	repository, rest := name, ""
	if i := strings.IndexAny(name, ":@"); i >= 0 {
		repository, rest = name[:i], name[i:]
	}
	if alias, ok := c.Aliases[repository]; ok {
		return oci.ParseReference(alias + rest)
	}
	switch len(c.Search) {
	case 0:
		return oci.ParseReference(name)
	case 1:
		return oci.ParseReference(c.Search[0] + "/" + name)
	}
	var could []string
	for _, host := range c.Search {
		could = append(could, host+"/"+name)
	}
	return oci.Reference{}, fmt.Errorf("image %q: the short name could stand for %s: write the one you mean", name, strings.Join(could, " or "))
}

// short says whether a name has no registry.
func short(name string) bool {
	first, _, path := strings.Cut(name, "/")
	return !path || !strings.ContainsAny(first, ".:") && first != "localhost"
}
