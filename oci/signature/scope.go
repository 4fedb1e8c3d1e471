package signature

import (
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/oci"
)

// transports are those of containers-policy.json(5) and containers-transports(5).
// Images of this program come from registries, for which only "docker" stands;
// another name would be an entry that silently never applies.
var transports = []string{
	"atomic", "containers-storage", "dir", transportName, "docker-archive", "docker-daemon", "oci", "oci-archive", "ostree", "sif", "tarball",
}

func checkTransport(name string) error {
	if !slices.Contains(transports, name) {
		return fmt.Errorf("transports: expected one of %s, got %q", strings.Join(transports, ", "), clip(name))
	}
	return nil
}

// checkScope says whether a scope of the transport docker can match anything:
// it must be written the way references are compared.
func checkScope(scope string) error {
	if domain, wild := strings.CutPrefix(scope, "*."); wild {
		if strings.ContainsAny(domain, "*:/@") {
			return errors.New("expected a wildcard such as *.example.com, alone and without a port")
		}
		scope = domain + ":1" // a host name, even of one label
	}
	switch {
	case scope == "":
		return nil
	case strings.Contains(scope, "*"):
		return errors.New("a wildcard stands for subdomains, at the start: *.example.com")
	}
	full := scope
	if i := strings.LastIndexByte(scope, '/'); !strings.Contains(scope, "@") && (i < 0 || !strings.Contains(scope[i:], ":")) {
		full += "/x/x" // a registry, namespace or repository; two more components keep Docker Hub's "library" out
	}
	ref, err := oci.ParseReference(full)
	if err != nil {
		return fmt.Errorf("expected [*.]REGISTRY[/PATH[:TAG or @DIGEST]]: %w", err)
	}
	if ref.String() != full {
		return fmt.Errorf("it would never match: expected the fully expanded form, as in %s", clip(strings.TrimSuffix(ref.String(), "/x/x")))
	}
	return nil
}

// requirements finds the list for ref, and the scope under which it stands:
// the closest one from the whole reference to the registry, then wildcards for
// the registry's name, then "", then the default (containers-policy.json(5)).
func (p *Policy) requirements(ref oci.Reference) (scope string, list []requirement) {
	for _, candidate := range append(Scopes(ref), "") {
		if list, ok := p.scopes[candidate]; ok {
			return candidate, list
		}
	}
	return "default", p.fallback
}

// Scopes are the names by which containers-policy.json(5) and
// containers-registries.d(5) can speak of ref, the closest first: itself with
// its digest or tag, its repository, the namespaces above it, its registry with
// its port, and wildcards for the registry's parent domains.
func Scopes(ref oci.Reference) []string {
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
	return append(out, wildcards(ref.Registry)...)
}

// wildcards are *.PARENT for each parent domain of a registry, the closest
// first; its port does not matter.
func wildcards(registry string) []string {
	host := registry
	if h, _, err := net.SplitHostPort(registry); err == nil {
		host = h
	}
	var out []string
	for {
		_, parent, found := strings.Cut(host, ".")
		if !found {
			return out
		}
		out = append(out, "*."+parent)
		host = parent
	}
}
