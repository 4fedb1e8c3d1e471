package oci

import (
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// DockerHub is the registry of references that name none. Its API is served
// elsewhere; see [Reference.Host].
const DockerHub = "docker.io"

// Limits of the reference grammar (OCI distribution specification v1.1,
// "pulling manifests", and its reference implementation).
const (
	maxReference  = 1024
	maxRepository = 255
	maxTag        = 128
)

// Reference names an image: REGISTRY/REPOSITORY[:TAG][@DIGEST]. It is
// comparable. The zero value names nothing.
type Reference struct {
	// Registry is a host name or address with an optional port, in lower case.
	Registry string
	// Repository is the path below the registry, such as "library/debian".
	Repository string
	// Tag may be empty.
	Tag string
	// Digest may be empty; if not, it decides and Tag is only informative.
	Digest Digest
}

// The grammar anchors both ends, so nothing in a reference can leave its place
// in a URL. The patterns are linear in RE2, and compiled when first used: the
// guest has better things to do when it boots.
var (
	repositoryPattern = lazy(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern        = lazy(`^[A-Za-z0-9_][A-Za-z0-9._-]*$`)
	hostPattern       = lazy(`^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*$`)
)

func lazy(pattern string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })
}

// ParseReference parses s the way Docker and containerd do: the first path
// component is the registry if it has a dot, a colon, or is "localhost";
// otherwise the image is on Docker Hub, below "library/" if its name has one
// component. No tag is made up: a reference without tag and digest has neither.
func ParseReference(s string) (Reference, error) {
	fail := func(format string, args ...any) (Reference, error) {
		return Reference{}, fmt.Errorf("image reference %q: %s", clip(s), fmt.Sprintf(format, args...))
	}
	if s == "" {
		return fail("expected [REGISTRY/]REPOSITORY[:TAG][@DIGEST], got nothing")
	}
	if len(s) > maxReference {
		return fail("longer than %d bytes", maxReference)
	}
	var ref Reference
	rest, digest, hasDigest := strings.Cut(s, "@")
	if hasDigest {
		d, err := ParseDigest(digest)
		if err != nil {
			return fail("%v", err)
		}
		ref.Digest = d
	}
	// A colon after the last slash starts a tag; one before it, a port.
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		ref.Tag = rest[i+1:]
		rest = rest[:i]
		if ref.Tag == "" {
			return fail("the tag after the colon is empty")
		}
		if err := CheckTag(ref.Tag); err != nil {
			return fail("%v", err)
		}
	}
	first, path, hasPath := strings.Cut(rest, "/")
	if hasPath && (strings.ContainsAny(first, ".:") || first == "localhost") {
		ref.Registry, ref.Repository = strings.ToLower(first), path
	} else {
		ref.Registry, ref.Repository = DockerHub, rest
	}
	if ref.Registry == "index."+DockerHub {
		ref.Registry = DockerHub
	}
	if ref.Registry == DockerHub && !strings.Contains(ref.Repository, "/") {
		ref.Repository = "library/" + ref.Repository
	}
	if err := checkRegistry(ref.Registry); err != nil {
		return fail("%v", err)
	}
	if len(ref.Repository) > maxRepository || !repositoryPattern().MatchString(ref.Repository) {
		return fail("repository %q: expected lower-case letters, digits and single separators . _ __ - between them, components separated by /, at most %d bytes",
			clip(ref.Repository), maxRepository)
	}
	return ref, nil
}

// CheckTag says whether tag may stand in a reference.
func CheckTag(tag string) error {
	if len(tag) > maxTag || !tagPattern().MatchString(tag) {
		return fmt.Errorf("tag %q: expected at most %d letters, digits, and . _ - not at the start", clip(tag), maxTag)
	}
	return nil
}

func checkRegistry(registry string) error {
	host := registry
	if strings.HasPrefix(registry, "[") || strings.Contains(registry, ":") {
		h, port, err := net.SplitHostPort(registry)
		if err != nil {
			return fmt.Errorf("registry %q: expected HOST[:PORT]", clip(registry))
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("registry %q: expected a port between 1 and 65535, got %q", clip(registry), clip(port))
		}
		host = h
	}
	if net.ParseIP(host) != nil {
		return nil
	}
	if len(host) > 253 || !hostPattern().MatchString(host) {
		return fmt.Errorf("registry %q: expected a host name or address with an optional port", clip(registry))
	}
	return nil
}

// Name is REGISTRY/REPOSITORY.
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// Host is where the registry's API is served: HOST[:PORT].
func (r Reference) Host() string {
	if r.Registry == DockerHub {
		return "registry-1.docker.io"
	}
	return r.Registry
}

// Target is what the registry is asked for: the digest, or else the tag, or
// else "latest".
func (r Reference) Target() string {
	switch {
	case r.Digest != "":
		return string(r.Digest)
	case r.Tag != "":
		return r.Tag
	default:
		return "latest"
	}
}

// String is the full form, which ParseReference parses back to r.
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + string(r.Digest)
	}
	return s
}

// WithDigest is r's repository with the digest d and without a tag.
func (r Reference) WithDigest(d Digest) Reference {
	return Reference{Registry: r.Registry, Repository: r.Repository, Digest: d}
}

// WithTag is r's repository with the tag and without a digest.
func (r Reference) WithTag(tag string) Reference {
	return Reference{Registry: r.Registry, Repository: r.Repository, Tag: tag}
}
