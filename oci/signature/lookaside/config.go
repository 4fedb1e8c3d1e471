package lookaside

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/signature"
)

// Limits on a configuration.
const (
	maxConfig = 1 << 20
	maxScopes = 1024
)

// Config says where signatures are stored, by scope (containers-registries.d(5)).
// It is immutable.
type Config struct {
	fallback *url.URL
	scopes   map[string]*url.URL
}

// ParseConfig reads registries.d documents in YAML and merges them:
//
//	default-docker:
//	  lookaside: https://signatures.example/all
//	docker:
//	  registry.example/shop:
//	    lookaside: https://signatures.example/shop
//
// "sigstore" is an older name of "lookaside". The places that signatures are
// written to (lookaside-staging, sigstore-staging) and use-sigstore-attachments
// are accepted and have no effect: nothing is written, and cosign's signatures
// are always looked for. Anything else is an error.
func ParseConfig(documents ...[]byte) (*Config, error) {
	c := &Config{scopes: map[string]*url.URL{}}
	for _, data := range documents {
		if len(data) > maxConfig {
			return nil, fmt.Errorf("sigstore configuration: %d bytes, at most %d are allowed", len(data), maxConfig)
		}
		nodes, err := parseYAML(data)
		if err == nil {
			err = c.merge(nodes)
		}
		if err != nil {
			return nil, fmt.Errorf("sigstore configuration: %w", err)
		}
	}
	return c, nil
}

func (c *Config) merge(nodes []*node) error {
	for _, n := range nodes {
		if n.hasValue {
			return fmt.Errorf("line %d: %s: expected names below it, got a value", n.line, n.name)
		}
		switch n.name {
		case "default-docker":
			base, err := namespace(n)
			if err != nil {
				return err
			}
			if base != nil && c.fallback != nil {
				return fmt.Errorf("line %d: default-docker is there twice", n.line)
			}
			if base != nil {
				c.fallback = base
			}
		case "docker":
			for _, scope := range n.children {
				if err := c.add(scope); err != nil {
					return err
				}
			}
		default:
			return fmt.Errorf("line %d: expected default-docker or docker, got %q", n.line, n.name)
		}
	}
	return nil
}

func (c *Config) add(scope *node) error {
	if scope.hasValue {
		return fmt.Errorf("line %d: %s: expected names below it, got a value", scope.line, scope.name)
	}
	if _, ok := c.scopes[scope.name]; ok {
		return fmt.Errorf("line %d: %s is there twice", scope.line, scope.name)
	}
	if len(c.scopes) == maxScopes {
		return fmt.Errorf("line %d: more than %d scopes", scope.line, maxScopes)
	}
	base, err := namespace(scope)
	c.scopes[scope.name] = base
	return err
}

// namespace reads what stands below a scope; nil if it names no place.
func namespace(n *node) (*url.URL, error) {
	var base *url.URL
	for _, f := range n.children {
		if !f.hasValue {
			return nil, fmt.Errorf("line %d: %s: expected a value", f.line, f.name)
		}
		switch f.name {
		case "lookaside", "sigstore":
			if base != nil {
				return nil, fmt.Errorf("line %d: lookaside and sigstore are two names of one thing: give one", f.line)
			}
			u, err := parseBase(f.value)
			if err != nil {
				return nil, fmt.Errorf("line %d: %s: %w", f.line, f.name, err)
			}
			base = u
		case "lookaside-staging", "sigstore-staging":
		case "use-sigstore-attachments":
			if f.value != "true" && f.value != "false" {
				return nil, fmt.Errorf("line %d: %s: expected true or false, got %q", f.line, f.name, f.value)
			}
		default:
			return nil, fmt.Errorf("line %d: expected lookaside, sigstore, lookaside-staging, sigstore-staging or use-sigstore-attachments, got %q", f.line, f.name)
		}
	}
	return base, nil
}

func parseBase(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, errors.New("expected a URL")
	}
	switch {
	case u.RawQuery != "" || u.Fragment != "" || u.User != nil || u.Opaque != "":
		return nil, errors.New("expected a URL without user, query and fragment")
	case u.Scheme == "file" && (u.Host != "" || !path.IsAbs(u.Path)):
		return nil, errors.New("expected file:///PATH")
	case u.Scheme == "file":
	case (u.Scheme == "https" || u.Scheme == "http") && u.Host != "":
	default:
		return nil, fmt.Errorf("expected https://, http:// or file:///, got %q", u.Scheme)
	}
	return u, nil
}

// place is where the signatures of a manifest are, without the number; nil if
// nothing is configured for ref.
func (c *Config) place(ref oci.Reference, digest oci.Digest) *url.URL {
	if c == nil {
		return nil
	}
	base := c.fallback
	for _, scope := range signature.Scopes(ref) {
		if u := c.scopes[scope]; u != nil {
			base = u
			break
		}
	}
	if base == nil {
		return nil
	}
	u := *base
	u.RawPath = ""
	u.Path = strings.TrimSuffix(u.Path, "/") + "/" + ref.Repository + "@" + digest.Algorithm() + "=" + digest.Hex()
	return &u
}

// schemes are those of the places that the configuration names.
func (c *Config) schemes() map[string]bool {
	out := map[string]bool{}
	if c == nil {
		return out
	}
	if c.fallback != nil {
		out[c.fallback.Scheme] = true
	}
	for _, u := range c.scopes {
		if u != nil {
			out[u.Scheme] = true
		}
	}
	return out
}
