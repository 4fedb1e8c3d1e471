package pull

import (
	"context"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/signature"
)

// Recheck decides anew about an image that Pull has brought in, for somebody
// who wants to use what is there already: whether the signature policy of o
// accepts it under o.Ref, and whether o.Keys gives the keys of its encrypted
// layers. Nothing of a layer is fetched. o.Ref must have the digest that the
// image was pulled by; only Ref, Fetcher, Policy and Keys of o count.
func Recheck(ctx context.Context, o Options, img *Image) error {
	if err := recheck(ctx, o, img); err != nil {
		return fmt.Errorf("image %s, which is here already: %w", o.Ref, err)
	}
	return nil
}

func recheck(ctx context.Context, o Options, img *Image) error {
	if o.Policy == nil {
		return errNoPolicy
	}
	if o.Ref.Digest == "" || o.Ref.Digest != img.Ref.Digest {
		return &oci.MismatchError{Expected: string(img.Ref.Digest), Got: string(o.Ref.Digest)}
	}
	if _, err := verify(ctx, o, img); err != nil {
		return err
	}
	for i, d := range img.encrypted {
		if d == nil {
			continue
		}
		l, err := crypt.Unwrap(ctx, d.Annotations, o.Keys)
		if err != nil {
			return &LayerError{Index: i, Layers: img.Layers, Digest: d.Digest, Err: err}
		}
		l.Clear()
	}
	return nil
}

var errNoPolicy = errors.New("there is no signature policy; use signature.InsecureAcceptAnything to ask for none")

// verify has the policy decide.
func verify(ctx context.Context, o Options, img *Image) (signature.Verdict, error) {
	subject := signature.Subject{Ref: o.Ref, Digests: []oci.Digest{img.ManifestDigest}}
	if img.IndexDigest != "" {
		subject.Digests = []oci.Digest{img.IndexDigest, img.ManifestDigest}
	}
	var keys signature.KeyGetter
	if o.Keys != nil {
		keys = o.Keys
	}
	return o.Policy.Verify(ctx, subject, o.Fetcher, keys)
}
