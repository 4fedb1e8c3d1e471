package guestconfig

import (
	"time"

	"github.com/coffer-project/coffer/kbs"
)

// Trustee is a key broker besides the default one: one [[trustee]] entry of
// coffer.toml. Resources of it are named kbs://NAME/repository/type/tag.
type Trustee struct {
	// Name is a DNS label.
	Name string
	// URL is its base, RootPEM pins its certificates ("": the system's roots).
	URL, RootPEM string
}

// Resources is the [resources] table of coffer.toml: how long, and how much of,
// what trustees give is kept in the guest's memory. A nil or zero field leaves
// it to the guest's default.
type Resources struct {
	// Lifetime is how long a resource is given out again without asking the
	// trustee. Zero: every use asks.
	Lifetime   *time.Duration
	MaxEntries int
	MaxBytes   int
}

// Features is which groups of the REST API a pod's containers may use.
type Features string

// The groups, by the names that the guest components use, and none at all. ""
// leaves it to the kernel's command line.
const (
	FeaturesNone        Features = "none"
	FeaturesResource    Features = "resource"
	FeaturesAttestation Features = "attestation"
	FeaturesAll         Features = "all"
)

// Limits of coffer.toml.
const (
	maxTrustees = 16
	maxLifetime = 24 * time.Hour
	maxEntries  = 1 << 16
	maxBytes    = 256 << 20
)

// parseCoffer reads coffer.toml.
func parseCoffer(t *table, c *Config) {
	entries := t.tables("trustee")
	if n := len(entries); n > maxTrustees {
		t.r.fail(t.where("trustee"), "has %d entries, the limit is %d", n, maxTrustees)
		entries = nil
	}
	seen := map[string]bool{}
	for _, e := range entries {
		x := Trustee{Name: e.str("name"), URL: e.brokerURL("url"), RootPEM: e.pem("cert")}
		if err := kbs.CheckTrusteeName(x.Name); err != nil {
			t.r.fail(e.where("name"), "%v", err)
		}
		if x.URL == "" {
			t.r.fail(e.where("url"), "is missing")
		}
		if seen[x.Name] {
			t.r.fail(e.where("name"), "%q occurs twice", x.Name)
		}
		seen[x.Name] = true
		e.done()
		c.Trustees = append(c.Trustees, x)
	}
	c.Image.HostRoots = t.hostRoots("registry")
	res := t.sub("resources")
	if s, ok := take1[string](res, "lifetime", `a duration such as "1m30s"`); ok {
		if d, err := time.ParseDuration(s); err != nil || d < 0 || d > maxLifetime {
			t.r.fail(res.where("lifetime"), `expected a duration from "0s" to "24h", got %q`, clip(s))
		} else {
			c.Resources.Lifetime = &d
		}
	}
	c.Resources.MaxEntries = res.number("max_entries", maxEntries)
	c.Resources.MaxBytes = res.number("max_bytes", maxBytes)
	res.done()
	api := t.sub("rest_api")
	if s, ok := take1[string](api, "features", "a string"); ok {
		switch f := Features(s); f {
		case FeaturesNone, FeaturesResource, FeaturesAttestation, FeaturesAll:
			c.REST = f
		default:
			t.r.fail(api.where("features"), "expected none, resource, attestation or all, got %q", clip(s))
		}
	}
	api.done()
	t.done()
}

// number reads a number from 1 to limit, 0 when it is absent.
func (t *table) number(key string, limit int) int {
	n, ok := take1[int64](t, key, "a number")
	if ok && (n < 1 || n > int64(limit)) {
		t.r.fail(t.where(key), "expected 1 to %d, got %d", limit, n)
		return 0
	}
	return int(n)
}

// checkNames refuses URIs that name a trustee which is not declared.
func (r *reader) checkNames(declared []Trustee) {
	for _, u := range r.uris {
		if err := (Config{Trustees: declared}).CheckTrustee(u.uri); err != nil {
			r.fail(u.where, "%v", err)
		}
	}
}
