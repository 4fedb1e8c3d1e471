package registries

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/boundedtoml"
	"github.com/coffer-project/coffer/oci"
)

// MaxBytes is the greatest size of a document.
const MaxBytes = 256 << 10

const (
	maxRegistries = 256
	maxMirrors    = 16
	maxAliases    = 1024
	maxSearch     = 16
	maxName       = 512
	maxProblems   = 32
)

// Parse reads a document. Every key must be known, and is honoured or refused
// with a reason.
func Parse(data []byte) (*Config, error) {
	m, err := boundedtoml.Decode(data, MaxBytes)
	if err != nil {
		return nil, fmt.Errorf("registries.conf: %w", err)
	}
	return FromTable("registries.conf: ", m)
}

// FromTable reads a document that is a table of another one, as TOML decodes.
// where is put before the keys in errors. The table is left as it is.
func FromTable(where string, m map[string]any) (*Config, error) {
	p := &problems{}
	t := &table{p: p, where: where, left: maps.Clone(m)}
	c := t.config()
	if len(p.errs) > 0 {
		return nil, errors.Join(p.errs...)
	}
	return c, nil
}

// config reads the top of the document.
func (t *table) config() *Config {
	c := &Config{}
	t.refuse("registries", "this is version 1 of the format: write [[registry]] tables")
	t.refuse("additional-layer-store-auth-helper", "no helpers are run")
	t.refuse("credential-helpers", "no helpers are run: credentials come from an auth.json", []any{}, []any{"containers-auth.json"})
	t.refuse("short-name-mode", "a short name that several registries could have is never guessed", "enforcing")
	c.Search = t.strs("unqualified-search-registries", maxSearch)
	for _, host := range c.Search {
		if strings.Contains(host, "/") || !validLocation(host) {
			t.fail("unqualified-search-registries", "expected HOST[:PORT], got %q", clip(host))
		}
	}
	seen := map[string]bool{}
	for _, e := range t.tables("registry", maxRegistries) {
		r := e.registry()
		if seen[r.prefix()] {
			e.fail("prefix", "%q occurs twice", clip(r.prefix()))
		}
		seen[r.prefix()] = true
		c.Registries = append(c.Registries, r)
	}
	t.aliases(c)
	t.done()
	return c
}

// registry reads a [[registry]] table.
func (t *table) registry() Registry {
	r := Registry{
		Prefix: t.str("prefix"), Location: t.str("location"), Insecure: t.boolean("insecure"), Blocked: t.boolean("blocked"),
		MirrorByDigestOnly: t.boolean("mirror-by-digest-only"),
	}
	wild := strings.HasPrefix(r.Prefix, "*")
	switch {
	case wild && !validWildcard(r.Prefix):
		t.fail("prefix", "expected *.DOMAIN without port and path, got %q", clip(r.Prefix))
	case !wild && r.Prefix != "" && !validLocation(r.Prefix):
		t.fail("prefix", "expected HOST[:PORT][/PATH] or *.DOMAIN, without tag and digest, got %q", clip(r.Prefix))
	}
	if r.Location != "" && !validLocation(r.Location) || r.Location == "" && !wild {
		t.fail("location", "expected HOST[:PORT][/PATH] (a host without dot and port is no registry, except localhost), got %q", clip(r.Location))
	}
	if r.Prefix == r.Location {
		r.Prefix = ""
	}
	for _, e := range t.tables("mirror", maxMirrors) {
		m := Mirror{Location: e.str("location"), Insecure: e.boolean("insecure"), Pull: e.str("pull-from-mirror")}
		if !validLocation(m.Location) {
			e.fail("location", "expected HOST[:PORT][/PATH], got %q", clip(m.Location))
		}
		switch m.Pull {
		case PullAll:
			m.Pull = ""
		case "", PullDigest, PullTag:
		default:
			e.fail("pull-from-mirror", "expected %s, %s or %s, got %q", PullAll, PullDigest, PullTag, clip(m.Pull))
		}
		if m.Pull != "" && r.MirrorByDigestOnly {
			e.fail("pull-from-mirror", "is set beside mirror-by-digest-only of the registry: keep one")
		}
		e.done()
		r.Mirrors = append(r.Mirrors, m)
	}
	t.done()
	return r
}

// aliases reads the [aliases] table.
func (t *table) aliases(c *Config) {
	sub := t.sub("aliases")
	if len(sub.left) > maxAliases {
		t.fail("aliases", "has %d entries, the limit is %d", len(sub.left), maxAliases)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(sub.left)) {
		value := sub.str(name)
		full, err := oci.ParseReference(value)
		if !short(name) || strings.ContainsAny(name, ":@") || len(name) > maxName {
			sub.fail(name, "expected a name without registry, tag and digest")
			continue
		}
		if err != nil || short(value) || full.Tag != "" || full.Digest != "" {
			sub.fail(name, "expected REGISTRY/REPOSITORY without tag and digest, got %q", clip(value))
			continue
		}
		if c.Aliases == nil {
			c.Aliases = map[string]string{}
		}
		c.Aliases[name] = value
	}
}

// validLocation says whether references can begin with s.
func validLocation(s string) bool {
	host, path, hasPath := strings.Cut(s, "/")
	if len(s) > maxName || hasPath && path == "" || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return false
	}
	ref, err := oci.ParseReference(s + "/x")
	return err == nil && ref.Tag == "" && ref.Digest == "" && ref.Registry == host
}

func validWildcard(s string) bool {
	domain, ok := strings.CutPrefix(s, "*.")
	if !ok || strings.ContainsAny(domain, "/:") || len(s) > maxName {
		return false
	}
	// The domain may be a single label: *.com.
	return validLocation("a." + domain)
}

// clip shortens a part of the document for a message.
func clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}

// problems are what is wrong with a document.
type problems struct{ errs []error }

// table reads a TOML table key by key. What is left at the end is unknown.
type table struct {
	p     *problems
	where string
	left  map[string]any
}

func (t *table) fail(key, format string, args ...any) {
	switch n := len(t.p.errs); {
	case n < maxProblems:
		t.p.errs = append(t.p.errs, fmt.Errorf("%s%s: %s", t.where, clip(key), fmt.Sprintf(format, args...)))
	case n == maxProblems:
		t.p.errs = append(t.p.errs, errors.New("and more problems"))
	}
}

// take removes a key that must have type T.
func take[T any](t *table, key, want string) T {
	var zero T
	v, ok := t.left[key]
	delete(t.left, key)
	if !ok {
		return zero
	}
	x, ok := v.(T)
	if !ok {
		t.fail(key, "expected %s, got another type", want)
	}
	return x
}

func (t *table) str(key string) string   { return take[string](t, key, "a string") }
func (t *table) boolean(key string) bool { return take[bool](t, key, "true or false") }

func (t *table) sub(key string) *table {
	m := take[map[string]any](t, key, "a table")
	return &table{p: t.p, where: t.where + clip(key) + ".", left: maps.Clone(m)}
}

func (t *table) strs(key string, most int) []string {
	list := take[[]any](t, key, "an array of strings")
	if len(list) > most {
		t.fail(key, "has %d entries, the limit is %d", len(list), most)
		return nil
	}
	var out []string
	for _, v := range list {
		s, ok := v.(string)
		if !ok {
			t.fail(key, "expected an array of strings, got another type in it")
			return nil
		}
		out = append(out, s)
	}
	return out
}

// tables reads an array of tables in either of TOML's spellings.
func (t *table) tables(key string, most int) []*table {
	v, ok := t.left[key]
	delete(t.left, key)
	if !ok {
		return nil
	}
	var list []map[string]any
	switch v := v.(type) {
	case []map[string]any:
		list = v
	case []any:
		for _, e := range v {
			m, ok := e.(map[string]any)
			if !ok {
				t.fail(key, "expected an array of tables, got another type in it")
				return nil
			}
			list = append(list, m)
		}
	default:
		t.fail(key, "expected an array of tables, got another type")
		return nil
	}
	if len(list) > most {
		t.fail(key, "has %d entries, the limit is %d", len(list), most)
		return nil
	}
	var out []*table
	for i, m := range list {
		out = append(out, &table{p: t.p, where: fmt.Sprintf("%s%s[%d].", t.where, key, i), left: maps.Clone(m)})
	}
	return out
}

// refuse refuses a key unless its value changes nothing.
func (t *table) refuse(key, why string, neutral ...any) {
	v, ok := t.left[key]
	delete(t.left, key)
	same := func(n any) bool { return reflect.DeepEqual(v, n) }
	if ok && !slices.ContainsFunc(neutral, same) {
		t.fail(key, "is not honoured (%s): remove it", why)
	}
}

// done refuses what nobody took.
func (t *table) done() {
	for _, key := range slices.Sorted(maps.Keys(t.left)) {
		t.fail(key, "unknown key")
	}
}
