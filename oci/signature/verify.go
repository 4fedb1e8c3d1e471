package signature

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/coffer-project/coffer/oci"
)

// author says whose signature a claim is: the key, or an error.
type author func(ctx context.Context, c *claim) (*PublicKey, error)

// errOtherKey says that a signature was made by a key that the policy does not
// name, as far as one can tell: it counts for nothing.
var errOtherKey = errors.New("it does not verify")

// sigstore meets a requirement sigstoreSigned.
func (v *verifier) sigstore(ctx context.Context, r *requirement) (Verdict, error) {
	who, whom, err := v.author(ctx, r)
	if err != nil {
		return Verdict{}, err
	}
	seen := 0
	var problems, spoiled []error
	for i := range v.found.places {
		found, err := v.found.at(ctx, i)
		if err != nil {
			return Verdict{}, err
		}
		spoiled = append(spoiled, found.problems...)
		for _, c := range found.claims {
			seen++
			key, err := who(ctx, c)
			if ctx.Err() != nil {
				return Verdict{}, context.Cause(ctx)
			}
			var digest oci.Digest
			if err == nil {
				digest, err = c.content.check(v.subject, r.Identity)
			}
			if err == nil {
				return Verdict{KeyID: key.ID(), Digest: digest, Found: c.where}, nil
			}
			if err != errOtherKey {
				problems = append(problems, fmt.Errorf("%s: %w", c.where, err))
			}
		}
	}
	return Verdict{}, v.unsigned(seen, whom, limit(problems), limit(spoiled))
}

// limit keeps an error readable.
func limit(problems []error) []error {
	const most = 8
	if len(problems) <= most {
		return problems
	}
	return append(problems[:most:most], fmt.Errorf("and %d more", len(problems)-most))
}

// unsigned says why no signature was good enough.
func (v *verifier) unsigned(seen int, whom string, problems, spoiled []error) error {
	want := v.subject.Digests[len(v.subject.Digests)-1]
	var why error
	switch {
	case len(problems) > 0:
		why = errors.Join(problems...)
	case seen > 0:
		why = fmt.Errorf("none of the image's %d signatures verifies under %s: it was signed by another key, or changed", seen, whom)
	default:
		why = fmt.Errorf("the image is not signed: expected a signature by %s of %s at tag %s or among its referrers, found none", whom, want, Tag(want))
	}
	return errors.Join(append([]error{why}, spoiled...)...)
}

// author makes the requirement's keys ready.
func (v *verifier) author(ctx context.Context, r *requirement) (who author, whom string, err error) {
	logs, err := v.logKeys(ctx, r)
	if err != nil {
		return nil, "", err
	}
	switch {
	case r.Fulcio != nil:
		return v.keylessAuthor(ctx, r)
	case r.PKI != nil:
		return v.pkiAuthor(ctx, r.PKI)
	}
	list, err := v.publicKeys(ctx, &r.keys, ParsePublicKey)
	if err != nil {
		return nil, "", err
	}
	whom = "key " + list[0].id[:16]
	if len(list) > 1 {
		whom = fmt.Sprintf("any of %d keys", len(list))
	}
	return func(_ context.Context, c *claim) (*PublicKey, error) {
		i := slices.IndexFunc(list, c.signedBy)
		if i < 0 {
			return nil, errOtherKey
		}
		if len(logs) == 0 {
			return list[i], nil
		}
		return list[i], c.logged(list[i], logs)
	}, whom, nil
}

// publicKeys loads keys, at least one.
func (v *verifier) publicKeys(ctx context.Context, m *material, parse func([]byte) (*PublicKey, error)) ([]*PublicKey, error) {
	data, err := m.load(ctx, v.keys)
	if err != nil {
		return nil, err
	}
	var out []*PublicKey
	for i, d := range data {
		k, err := parse(d)
		if err != nil && len(m.data) == 0 {
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

func (v *verifier) logKeys(ctx context.Context, r *requirement) ([]*PublicKey, error) {
	if r.rekor.empty() {
		return nil, nil
	}
	logs, err := v.publicKeys(ctx, &r.rekor, parseLogKey)
	if err != nil {
		return nil, fmt.Errorf("rekorPublicKey: %w", err)
	}
	return logs, nil
}

// logged says whether one of the logs has the signature.
func (c *claim) logged(k *PublicKey, logs []*PublicKey) error {
	problem := errors.New("the signature is good, but no entry of a transparency log came with it")
	for i := range c.entries {
		e := &c.entries[i]
		for _, log := range logs {
			err := e.verify(log)
			if err == nil {
				err = e.about(c, k)
			}
			if err == nil {
				return nil
			}
			problem = fmt.Errorf("the signature is good, but is in no transparency log that the policy names: %w", err)
		}
	}
	return problem
}

// keylessAuthor leaves certificates and logs to the implementation of Keyless,
// and checks its answer: the signature has to verify under the key.
func (v *verifier) keylessAuthor(ctx context.Context, r *requirement) (author, string, error) {
	if v.options.keyless == nil {
		return nil, "", errors.New("nothing here verifies keyless signatures")
	}
	ca, err := r.Fulcio.ca.load(ctx, v.keys)
	if err != nil {
		return nil, "", err
	}
	logs, err := r.rekor.load(ctx, v.keys)
	if err != nil {
		return nil, "", err
	}
	trust := KeylessTrust{CACertificates: bytes.Join(ca, []byte("\n")), OIDCIssuer: r.Fulcio.OIDCIssuer, SubjectEmail: r.Fulcio.SubjectEmail, LogKeys: logs}
	return func(ctx context.Context, c *claim) (*PublicKey, error) {
		s, err := v.keylessSignature(c, r.Identity)
		if err != nil {
			return nil, err
		}
		der, err := v.options.keyless.Verify(ctx, s, trust)
		if err != nil {
			return nil, fmt.Errorf("keyless: %w", err)
		}
		return c.signedByDER(der)
	}, fmt.Sprintf("%s (%s)", r.Fulcio.SubjectEmail, r.Fulcio.OIDCIssuer), nil
}

// pkiAuthor takes certificates of the policy's own authority. Their time is
// now: there is no log that would say when the signature was made.
func (v *verifier) pkiAuthor(ctx context.Context, p *pki) (author, string, error) {
	roots, err := v.pool(ctx, &p.roots)
	if err != nil {
		return nil, "", fmt.Errorf("pki.caRoots: %w", err)
	}
	intermediates, err := v.pool(ctx, &p.intermediates)
	if err != nil {
		return nil, "", fmt.Errorf("pki.caIntermediates: %w", err)
	}
	return func(_ context.Context, c *claim) (*PublicKey, error) {
		if len(c.certificates) == 0 {
			return nil, errors.New("the signature has no certificate")
		}
		pool := intermediates.Clone()
		for _, der := range c.certificates[1:] {
			if x, err := x509.ParseCertificate(der); err == nil {
				pool.AddCert(x)
			}
		}
		leaf, err := x509.ParseCertificate(c.certificates[0])
		if err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: pool, CurrentTime: v.options.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		}); err != nil {
			return nil, fmt.Errorf("certificate: %w", err)
		}
		if p.SubjectEmail != "" && !slices.Contains(leaf.EmailAddresses, p.SubjectEmail) {
			return nil, fmt.Errorf("certificate: expected the e-mail address %s, it has %q", p.SubjectEmail, leaf.EmailAddresses)
		}
		if p.SubjectHostname != "" {
			if err := leaf.VerifyHostname(p.SubjectHostname); err != nil {
				return nil, fmt.Errorf("certificate: %w", err)
			}
		}
		return c.signedByDER(leaf.RawSubjectPublicKeyInfo)
	}, "a certificate of the policy's authority", nil
}

func (v *verifier) pool(ctx context.Context, m *material) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	data, err := m.load(ctx, v.keys)
	if err != nil {
		return nil, err
	}
	for _, d := range data {
		certificates, err := parseCertificates(d)
		if err != nil {
			return nil, err
		}
		for _, der := range certificates {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, err
			}
			pool.AddCert(c)
		}
	}
	return pool, nil
}

// signedByDER is the key, if c is its signature.
func (c *claim) signedByDER(der []byte) (*PublicKey, error) {
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, err
	}
	k, err := NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	if !c.signedBy(k) {
		return nil, errors.New("the signature does not verify under the key of its certificate")
	}
	return k, nil
}

// parseCertificates reads certificates in PEM and returns them in DER.
func parseCertificates(data []byte) ([][]byte, error) {
	var out [][]byte
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("certificates: expected PEM blocks CERTIFICATE, got %q", clip(block.Type))
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, fmt.Errorf("certificates: %w", err)
		}
		if out = append(out, block.Bytes); len(out) > maxKeys {
			return nil, fmt.Errorf("certificates: more than %d", maxKeys)
		}
		data = rest
	}
	if len(out) == 0 {
		return nil, errors.New("certificates: expected PEM, found none")
	}
	return out, nil
}
