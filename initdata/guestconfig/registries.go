package guestconfig

import (
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/registries"
	"github.com/coffer-project/coffer/oci/registry"
)

// ParseRegistries reads the document that registry_configuration_uri names, a
// containers-registries.conf of version 2. What a guest cannot honour is
// refused as it is in cdh.toml.
func ParseRegistries(data []byte) (*registries.Config, error) {
	c, err := registries.Parse(data)
	if err != nil {
		return nil, err
	}
	if err := namesInFull(c); err != nil {
		return nil, fmt.Errorf("registries.conf: %w", err)
	}
	return c, nil
}

// namesInFull refuses what gives short names a meaning. The pod policy names
// images in full, and Docker Hub's as everybody does: an alias that was measured
// would not be in force.
func namesInFull(c *registries.Config) error {
	if len(c.Search) == 1 && c.Search[0] == oci.DockerHub {
		c.Search = nil // which is what a name without a registry means anyway
	}
	if len(c.Search) > 0 {
		return errors.New("unqualified-search-registries: expected none, or docker.io alone: the pod policy names images in full, so remove it")
	}
	if len(c.Aliases) > 0 {
		return errors.New("aliases: expected none: the pod policy names images in full, so remove them")
	}
	return nil
}

// registries reads the table registry_config; nil if it is absent or says
// nothing.
func (t *table) registries(key string) *registries.Config {
	m, ok := take1[map[string]any](t, key, "a table")
	if !ok {
		return nil
	}
	c, err := registries.FromTable(t.where(key)+".", m)
	if err != nil {
		t.r.add(err)
		return nil
	}
	if err := namesInFull(c); err != nil {
		t.r.fail(t.where(key), "%v", err)
		return nil
	}
	if len(c.Registries) == 0 {
		return nil
	}
	return c
}

// proxy reads the table image_pull_proxy.
func (t *table) proxy(key string) registry.Proxy {
	sub := t.sub(key)
	p := registry.Proxy{HTTPS: sub.str("https_proxy"), HTTP: sub.str("http_proxy"), NoProxy: sub.str("no_proxy")}
	sub.done()
	if _, err := p.Func(); err != nil {
		t.r.fail(t.where(key), "%v", err)
		return registry.Proxy{}
	}
	return p
}

// maxHostRoots bounds the [[registry]] tables of coffer.toml.
const maxHostRoots = 64

// hostRoots reads the [[registry]] tables of coffer.toml.
func (t *table) hostRoots(key string) map[string]string {
	entries := t.tables(key)
	if n := len(entries); n > maxHostRoots {
		t.r.fail(t.where(key), "has %d entries, the limit is %d", n, maxHostRoots)
		return nil
	}
	var out map[string]string
	for _, e := range entries {
		host, cert := e.str("host"), e.pem("cert")
		ref, err := oci.ParseReference(host + "/x")
		if err != nil || ref.Registry != host {
			e.r.fail(e.where("host"), "expected HOST[:PORT] of a registry, got %q", clip(host))
		}
		if cert == "" {
			e.r.fail(e.where("cert"), "is missing")
		}
		if _, twice := out[host]; twice {
			e.r.fail(e.where("host"), "%q occurs twice", clip(host))
		}
		e.done()
		if out == nil {
			out = map[string]string{}
		}
		out[host] = cert
	}
	return out
}

// either refuses a value that is given twice, here and as a resource.
func (t *table) either(key string, here, resource bool) {
	if here && resource {
		t.r.fail(t.where(key), "is set, and so is the URI of one: keep one")
	}
}
