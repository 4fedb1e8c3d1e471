package signature

import (
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/oci"
)

// identity says which docker-reference a signature must name
// (containers-policy.json(5), "signedIdentity").
type identity struct {
	Type             string `json:"type"`
	DockerReference  string `json:"dockerReference"`
	DockerRepository string `json:"dockerRepository"`
	Prefix           string `json:"prefix"`
	SignedPrefix     string `json:"signedPrefix"`
}

// The identities that stand where a requirement has none.
const (
	matchRepository        = "matchRepository"
	matchRepoDigestOrExact = "matchRepoDigestOrExact"
)

// orDefault is the identity of a signedBy requirement: that of
// containers-policy.json(5).
func (i *identity) orDefault() *identity {
	if i == nil {
		return &identity{Type: matchRepoDigestOrExact}
	}
	return i
}

// orCosignDefault is the identity of a sigstoreSigned requirement. Where the
// policy has none, guest components look at no identity, since cosign's
// payloads name a repository without a tag. That is kept for an image that was
// named by digest, which is the same image wherever it is stored; but a
// registry that is asked for a tag could answer with any image that was ever
// signed under the key, so that the repository must then match.
func (i *identity) orCosignDefault(image oci.Reference) *identity {
	if i == nil && image.Digest == "" {
		return &identity{Type: matchRepository}
	}
	return i
}

func (i *identity) check() error {
	need := map[string]bool{"dockerReference": false, "dockerRepository": false, "prefix": false, "signedPrefix": false}
	switch i.Type {
	case "matchExact", "matchRepoDigestOrExact", "matchRepository":
	case "exactReference":
		need["dockerReference"] = true
	case "exactRepository":
		need["dockerRepository"] = true
	case "remapIdentity":
		need["prefix"], need["signedPrefix"] = true, true
	default:
		return fmt.Errorf("signedIdentity.type: expected matchExact, matchRepoDigestOrExact, matchRepository, exactReference, exactRepository or remapIdentity, got %q", clip(i.Type))
	}
	for _, f := range []struct{ name, value string }{
		{"dockerReference", i.DockerReference}, {"dockerRepository", i.DockerRepository}, {"prefix", i.Prefix}, {"signedPrefix", i.SignedPrefix},
	} {
		if need[f.name] && f.value == "" {
			return fmt.Errorf("signedIdentity.%s: missing, %s needs it", f.name, i.Type)
		}
		if !need[f.name] && f.value != "" {
			return fmt.Errorf("signedIdentity.%s: not a field of %s", f.name, i.Type)
		}
	}
	if i.Type == "exactReference" {
		ref, err := oci.ParseReference(i.DockerReference)
		if err != nil {
			return fmt.Errorf("signedIdentity.dockerReference: %w", err)
		}
		if ref.Tag == "" && ref.Digest == "" {
			return errors.New("signedIdentity.dockerReference: expected a tag or a digest")
		}
	}
	if i.Type == "exactRepository" {
		ref, err := oci.ParseReference(i.DockerRepository)
		if err != nil {
			return fmt.Errorf("signedIdentity.dockerRepository: %w", err)
		}
		if ref.Tag != "" || ref.Digest != "" {
			return errors.New("signedIdentity.dockerRepository: expected no tag and no digest")
		}
	}
	if i.Type == "remapIdentity" {
		for _, f := range []struct{ name, value string }{{"prefix", i.Prefix}, {"signedPrefix", i.SignedPrefix}} {
			if err := checkPrefix(f.value); err != nil {
				return fmt.Errorf("signedIdentity.%s: %w", f.name, err)
			}
		}
	}
	return nil
}

// checkPrefix: a registry, namespace or repository, fully expanded.
func checkPrefix(prefix string) error {
	ref, err := oci.ParseReference(prefix + "/x/x")
	if err != nil || ref.Name() != prefix+"/x/x" || ref.Tag != "" || ref.Digest != "" {
		return fmt.Errorf("expected REGISTRY[/PATH] in the fully expanded form, such as docker.io/library, got %q", clip(prefix))
	}
	return nil
}

// match says whether a signature that names signed may stand for the image.
func (i *identity) match(image oci.Reference, signed string) error {
	got, err := oci.ParseReference(signed)
	if err != nil {
		return fmt.Errorf("the signature's docker-reference: %w", err)
	}
	return i.matchParsed(image, got)
}

func (i *identity) matchParsed(image, got oci.Reference) (err error) {
	want := image
	exact := false
	switch i.Type {
	case "matchRepository":
	case "matchExact":
		exact = true
	case "matchRepoDigestOrExact":
		exact = image.Digest == "" // by digest, the repository suffices
	case "exactReference", "exactRepository":
		if want, err = oci.ParseReference(i.DockerReference + i.DockerRepository); err != nil {
			return err
		}
		exact = i.Type == "exactReference"
	case "remapIdentity":
		if want, err = oci.ParseReference(remap(image.Name(), i.Prefix, i.SignedPrefix)); err != nil {
			return fmt.Errorf("remapIdentity: %w", err)
		}
		want.Tag, want.Digest = image.Tag, image.Digest
		exact = image.Digest == ""
	default:
		return fmt.Errorf("signedIdentity.type %q", i.Type)
	}
	if got.Name() != want.Name() {
		return fmt.Errorf("it is for the repository %s, not for %s", clip(got.Name()), want.Name())
	}
	if exact && !sameTarget(want, got) {
		return fmt.Errorf("it is for %s, not for %s", clip(got.String()), want)
	}
	return nil
}

// sameTarget: a tag must be the same tag. Where both tag and digest are known,
// the tag is compared, since the digest is what the signature is bound to.
func sameTarget(want, got oci.Reference) bool {
	switch {
	case want.Tag != "":
		return got.Tag == want.Tag && (got.Digest == "" || got.Digest == want.Digest)
	case want.Digest != "":
		return got.Tag == "" && got.Digest == want.Digest
	default: // what is then asked for
		return got.Tag == "latest" && got.Digest == ""
	}
}

// remap replaces a prefix that ends at a component.
func remap(name, prefix, signed string) string {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok || (rest != "" && rest[0] != '/') {
		return name
	}
	return signed + rest
}
