package podpolicy

import (
	"fmt"
	"slices"
	"strings"
)

// ImageRef says what to pull.
type ImageRef struct {
	// Repository with its registry, for example registry.example/shop/web.
	Repository string
	// Digest is the policy's; only an unsealed pod may lack it, and then has
	// a Tag.
	Digest, Tag string
}

// String is the reference in the usual form.
func (r ImageRef) String() string {
	s := r.Repository
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

// isRepository: a registry (a name with a dot or port, or localhost) and a path
// of lower-case components, as the distribution specification has them.
func isRepository(s string) bool {
	registry, rest, ok := strings.Cut(s, "/")
	if !ok || len(s) > 255 || !isRegistry(registry) {
		return false
	}
	for c := range strings.SplitSeq(rest, "/") {
		if c == "" || !only(c, "abcdefghijklmnopqrstuvwxyz0123456789._-") || strings.Trim(c[:1]+c[len(c)-1:], "._-") != c[:1]+c[len(c)-1:] {
			return false
		}
	}
	return true
}

func isRegistry(s string) bool {
	host, port, hasPort := cutPort(s)
	if hasPort && !isPort(port) {
		return false
	}
	if strings.HasPrefix(host, "[") {
		return strings.HasSuffix(host, "]") && only(host[1:len(host)-1], "0123456789abcdef:.")
	}
	return isDNSName(host) && (hasPort || host == "localhost" || strings.Contains(host, "."))
}

func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// parseImage reads an image reference as hosts write it: with Docker's defaults
// for the registry and its library, and with tag, digest, both or none.
func parseImage(s string) (ImageRef, error) {
	if ref, ok := splitImage(s); ok {
		return ref, nil
	}
	return ImageRef{}, fmt.Errorf("expected an image reference [REGISTRY/]REPOSITORY[:TAG][@sha256:…], got %s", quote(s))
}

func splitImage(s string) (ImageRef, bool) {
	if len(s) > maxImageRef {
		return ImageRef{}, false
	}
	var ref ImageRef
	name, digest, hasDigest := strings.Cut(s, "@")
	if hasDigest {
		if !isSHA256(digest) {
			return ImageRef{}, false
		}
		ref.Digest = digest
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		ref.Tag, name = name[i+1:], name[:i]
		if ref.Tag == "" || len(ref.Tag) > 128 || !only(ref.Tag, alnum+"._-") || strings.ContainsAny(ref.Tag[:1], ".-") {
			return ImageRef{}, false
		}
	}
	registry, rest, ok := strings.Cut(name, "/")
	switch {
	case !ok:
		name = "docker.io/library/" + name
	case !isRegistry(registry):
		name = "docker.io/" + name
	case registry == "docker.io" || registry == "index.docker.io":
		if !strings.Contains(rest, "/") {
			rest = "library/" + rest
		}
		name = "docker.io/" + rest
	}
	if !isRepository(name) {
		return ImageRef{}, false
	}
	ref.Repository = name
	return ref, true
}

// chooseImage lets the host choose among the policy's repositories. The digest
// is the policy's, whatever the host says; one that differs is refused so that
// the host learns of its mistake before anything is pulled.
func chooseImage(i Image, proposed string) (ImageRef, *Refusal) {
	ref := ImageRef{Repository: i.From[0], Digest: i.Digest, Tag: i.tag}
	if proposed == "" {
		return ref, nil
	}
	got, err := parseImage(proposed)
	if err != nil {
		return ImageRef{}, refuse(RuleContainerImage, "image", "an image reference", quote(proposed), err.Error())
	}
	if !slices.Contains(i.From, got.Repository) {
		return ImageRef{}, refuse(RuleContainerImage, "image", "a repository of "+quoteList(i.From), quote(got.Repository), "pull from a repository that the policy lists in image.from, or add this one there")
	}
	if got.Digest != "" && got.Digest != i.Digest && got.Digest != i.Stub {
		return ImageRef{}, refuse(RuleContainerImage, "image", i.Digest, got.Digest, "the policy pins another image")
	}
	ref.Repository = got.Repository
	return ref, nil
}
