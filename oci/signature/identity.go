package signature

import (
	"errors"
	"fmt"
	"strings"

	"github.com/coffer-project/coffer/oci"
)

// identity says which docker-reference a signature must name
// (containers-policy.json(5), "signedIdentity"). Without one, the digest alone
// decides: cosign's payloads name a repository without a tag, and what is
// signed is the same image wherever it is stored.
type identity struct {
	Type             string `json:"type"`
	DockerReference  string `json:"dockerReference"`
	DockerRepository string `json:"dockerRepository"`
	Prefix           string `json:"prefix"`
	SignedPrefix     string `json:"signedPrefix"`
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
		if _, err := oci.ParseReference(i.DockerRepository); err != nil {
			return fmt.Errorf("signedIdentity.dockerRepository: %w", err)
		}
	}
	return nil
}

// match says whether a signature that names signed may stand for the image.
func (i *identity) match(image oci.Reference, signed string) error {
	got, err := oci.ParseReference(signed)
	if err != nil {
		return fmt.Errorf("the signature's docker-reference: %w", err)
	}
	want := image
	exact := false
	switch i.Type {
	case "matchRepository":
	case "matchExact":
		if image.Tag == "" && image.Digest == "" {
			return errors.New("matchExact: the image has neither tag nor digest")
		}
		exact = true
	case "matchRepoDigestOrExact":
		exact = image.Digest == "" // by digest, the repository suffices
	case "exactReference", "exactRepository":
		if want, err = oci.ParseReference(i.DockerReference + i.DockerRepository); err != nil {
			return err
		}
		exact = i.Type == "exactReference"
	case "remapIdentity":
		name, err := remap(image.Name(), i.Prefix, i.SignedPrefix)
		if err != nil {
			return err
		}
		if want, err = oci.ParseReference(name); err != nil {
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
	if exact && (got.Tag != want.Tag || got.Digest != want.Digest) {
		return fmt.Errorf("it is for %s, not for %s", clip(got.String()), want)
	}
	return nil
}

// remap replaces a prefix that ends at a component.
func remap(name, prefix, signed string) (string, error) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok || (rest != "" && rest[0] != '/' && !strings.HasSuffix(prefix, "/")) {
		return name, nil
	}
	return signed + rest, nil
}
