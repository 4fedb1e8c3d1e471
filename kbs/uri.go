package kbs

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// PluginResource is the plugin that serves stored secrets. Its resources have
// exactly three segments: repository, type and tag.
const PluginResource = "resource"

// Limits of a resource URI.
const (
	maxURIBytes     = 2048
	maxSegmentBytes = 255
	maxSegments     = 16
	maxPluginBytes  = 64
	maxHostBytes    = 255
)

// reservedPlugins are first path elements that the broker itself answers. A
// URI must not reach them.
var reservedPlugins = []string{"auth", "attest", "attestation-policy", "resource-policy", "reference-value"}

// ResourceURI names a resource of a key broker:
//
//	kbs[+plugin]://[trustee]/segment/segment/…[?query]
//
// The trustee is a DNS label by which a guest's configuration names one of
// several key brokers; without it the URI means the default one. Other
// implementations write an address there and ignore it, so an address (with a
// dot, a colon or a port) is accepted and dropped: a guest asks the brokers it
// was configured with, and no other. To a broker itself the name means nothing.
//
// ResourceURI is comparable; equal values are the same resource. Values other
// than the zero value come from [ParseResourceURI] or [NewResourceURI] and are
// valid.
type ResourceURI struct {
	trustee string
	plugin  string
	path    string // segments joined by "/", no leading slash
	query   string // as written, without "?"
}

// NewResourceURI names a stored secret.
func NewResourceURI(repository, typ, tag string) (ResourceURI, error) {
	u := ResourceURI{plugin: PluginResource, path: repository + "/" + typ + "/" + tag}
	if err := u.validate(); err != nil {
		return ResourceURI{}, fmt.Errorf("kbs: resource %q: %w", clip(u.path, 128), err)
	}
	return u, nil
}

// ParseResourceURI parses a URI. Segments consist of the characters that RFC
// 3986 allows unescaped in a path; percent-encoding, empty segments, "." and
// ".." are refused, so that every program on the way reads the same path.
func ParseResourceURI(s string) (ResourceURI, error) {
	fail := func(format string, args ...any) (ResourceURI, error) {
		return ResourceURI{}, fmt.Errorf("kbs: resource URI %q: %w", clip(s, 128), fmt.Errorf(format, args...))
	}
	if len(s) > maxURIBytes {
		return fail("has %d bytes, the limit is %d", len(s), maxURIBytes)
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return fail("expected kbs:///repository/type/tag")
	}
	u := ResourceURI{plugin: PluginResource}
	if scheme != "kbs" {
		if u.plugin, ok = strings.CutPrefix(scheme, "kbs+"); !ok {
			return fail("expected the scheme kbs or kbs+plugin")
		}
	}
	rest, u.query, ok = strings.Cut(rest, "?")
	if ok && u.query == "" {
		return fail("the query is empty: leave the question mark out")
	}
	host, path, ok := strings.Cut(rest, "/")
	if !ok {
		return fail("expected a path after the host: kbs:///repository/type/tag")
	}
	if len(host) > maxHostBytes || !all(host, isHostByte) {
		return fail("the host is not a host name or address")
	}
	if host != "" && !strings.ContainsAny(host, ".:[]") {
		if err := CheckTrusteeName(host); err != nil {
			return fail("%w", err)
		}
		u.trustee = host
	}
	u.path = path
	if err := u.validate(); err != nil {
		if host != "" && u.plugin == PluginResource && strings.Count(path, "/") == 1 {
			return fail("%w; what stands between // and / is a host: did you mean kbs:///%s/%s?", err, host, path)
		}
		return fail("%w", err)
	}
	return u, nil
}

func (u ResourceURI) validate() error {
	if n := len(u.plugin); n == 0 || n > maxPluginBytes || !all(u.plugin, isPluginByte) {
		return errors.New("the plugin's name must be 1 to 64 lower-case letters, digits and dashes")
	}
	if slices.Contains(reservedPlugins, u.plugin) {
		return fmt.Errorf("%q is not a plugin", u.plugin)
	}
	if len(u.plugin)+len(u.path)+len(u.query) > maxURIBytes {
		return fmt.Errorf("is longer than %d bytes", maxURIBytes)
	}
	segments := u.Segments()
	if len(segments) > maxSegments {
		return fmt.Errorf("has %d segments, the limit is %d", len(segments), maxSegments)
	}
	for i, s := range segments {
		switch {
		case s == "":
			return fmt.Errorf("segment %d is empty", i+1)
		case s == "." || s == "..":
			return fmt.Errorf("segment %d is %q, which is not a name", i+1, s)
		case len(s) > maxSegmentBytes:
			return fmt.Errorf("segment %d has %d bytes, the limit is %d", i+1, len(s), maxSegmentBytes)
		case !all(s, isSegmentByte):
			return fmt.Errorf("segment %d has a character other than ASCII letters, digits and -._~!$&'()*+,;=:@", i+1)
		}
	}
	if u.plugin == PluginResource && len(segments) != 3 {
		return fmt.Errorf("expected three segments (repository/type/tag), got %d", len(segments))
	}
	if !all(u.query, isQueryByte) {
		return errors.New("the query has a character that a URI must escape")
	}
	if _, err := url.ParseQuery(u.query); err != nil {
		return errors.New("the query is malformed")
	}
	return nil
}

// maxTrusteeName bounds a DNS label (RFC 1035 §2.3.4).
const maxTrusteeName = 63

// CheckTrusteeName tells whether s can name a trustee in a URI: a DNS label in
// lower case.
func CheckTrusteeName(s string) error {
	if n := len(s); n == 0 || n > maxTrusteeName || !all(s, isPluginByte) || s[0] == '-' || s[n-1] == '-' {
		return fmt.Errorf("%q is no trustee's name: expected 1 to %d lower-case letters, digits and inner dashes", clip(s, 64), maxTrusteeName)
	}
	return nil
}

// Trustee is the name of the trustee to ask, "" for the default one.
func (u ResourceURI) Trustee() string { return u.trustee }

// Plugin is the plugin that answers, [PluginResource] by default.
func (u ResourceURI) Plugin() string { return u.plugin }

// Path is the segments joined by slashes: "repository/type/tag".
func (u ResourceURI) Path() string { return u.path }

// Segments are the parts of the path.
func (u ResourceURI) Segments() []string { return strings.Split(u.path, "/") }

// Query is the query as written, "" for none.
func (u ResourceURI) Query() string { return u.query }

// IsZero tells whether u is the zero value, which names nothing.
func (u ResourceURI) IsZero() bool { return u == ResourceURI{} }

// String is the canonical form: without an address, and without the plugin if
// it is [PluginResource].
func (u ResourceURI) String() string {
	if u.IsZero() {
		return ""
	}
	s := "kbs"
	if u.plugin != PluginResource {
		s += "+" + u.plugin
	}
	s += "://" + u.trustee + "/" + u.path
	if u.query != "" {
		s += "?" + u.query
	}
	return s
}

// RequestPath is the path and query to ask a broker for, beginning with
// [PathPrefix]. Nothing in it needs escaping.
func (u ResourceURI) RequestPath() string {
	s := PathPrefix + "/" + u.plugin + "/" + u.path
	if u.query != "" {
		s += "?" + u.query
	}
	return s
}

// MarshalText implements encoding.TextMarshaler with the canonical form.
func (u ResourceURI) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *ResourceURI) UnmarshalText(text []byte) error {
	v, err := ParseResourceURI(string(text))
	if err != nil {
		return err
	}
	*u = v
	return nil
}

// MarshalJSON implements json.Marshaler: the canonical form, in which "&"
// stays readable.
func (u ResourceURI) MarshalJSON() ([]byte, error) { return marshal(u.String()) }

var _ json.Marshaler = ResourceURI{}

func all(s string, ok func(byte) bool) bool {
	for i := range len(s) {
		if !ok(s[i]) {
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func isPluginByte(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' }

// isHostByte allows names, IPv4 addresses, bracketed IPv6 addresses and ports.
func isHostByte(c byte) bool { return isAlnum(c) || strings.IndexByte("-._:[]", c) >= 0 }

// isSegmentByte is pchar of RFC 3986 without percent-encoding.
func isSegmentByte(c byte) bool {
	return isAlnum(c) || strings.IndexByte("-._~!$&'()*+,;=:@", c) >= 0
}

func isQueryByte(c byte) bool { return isSegmentByte(c) || strings.IndexByte("/?%", c) >= 0 }
