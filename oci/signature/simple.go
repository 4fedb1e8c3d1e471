package signature

import (
	"context"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/oci/signature/openpgp"
)

// signedBy meets a requirement signedBy: simple signing.
func (v *verifier) signedBy(ctx context.Context, r *requirement) (Verdict, error) {
	if v.options.lookaside == nil {
		return Verdict{}, errors.New("there is no place where signatures are found: give sigstore_config")
	}
	keys, err := v.keyrings(ctx, &r.keys)
	if err != nil {
		return Verdict{}, err
	}
	seen := 0
	var problems []error
	for _, digest := range v.subject.Digests {
		messages, err := v.options.lookaside.Signatures(ctx, v.subject.Ref, digest)
		if ctx.Err() != nil {
			return Verdict{}, context.Cause(ctx)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("signatures of %s: %w", digest, err))
		}
		for i, m := range messages[:min(len(messages), maxSignatures)] {
			seen++
			where := fmt.Sprintf("simple signing of %s, signature %d", digest.Short(), i+1)
			verdict, err := v.simple(m, keys, r.Identity)
			if err == nil {
				verdict.Found = where
				return verdict, nil
			}
			problems = append(problems, fmt.Errorf("%s: %w", where, err))
		}
	}
	if seen == 0 {
		none := fmt.Errorf("the image is not signed: expected a simple signing signature of %s, found none", v.subject.Digests[len(v.subject.Digests)-1])
		return Verdict{}, errors.Join(append([]error{none}, problems...)...)
	}
	return Verdict{}, errors.Join(limit(problems)...)
}

// simple verifies one signature.
func (v *verifier) simple(message []byte, keys []*openpgp.Keyring, id *identity) (Verdict, error) {
	var problems []error
	for _, k := range keys {
		signed, err := k.Verify(message, v.options.now())
		if err != nil {
			problems = append(problems, err)
			continue
		}
		digest, err := payloadContent{data: signed.Payload, kind: typeAtomic}.check(v.subject, id)
		if err != nil {
			return Verdict{}, err
		}
		return Verdict{KeyID: signed.Fingerprint, Digest: digest}, nil
	}
	return Verdict{}, errors.Join(limit(problems)...)
}

func (v *verifier) keyrings(ctx context.Context, m *material) ([]*openpgp.Keyring, error) {
	data, err := m.load(ctx, v.keys)
	if err != nil {
		return nil, err
	}
	var out []*openpgp.Keyring
	for i, d := range data {
		k, err := openpgp.ParseKeyring(d)
		if err != nil && len(m.uris) > 0 {
			return nil, fmt.Errorf("key %s: %w", clip(m.uris[i]), err)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, k)
	}
	if len(out) == 0 {
		return nil, errors.New("the requirement has no key")
	}
	return out, nil
}
