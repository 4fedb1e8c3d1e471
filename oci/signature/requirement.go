package signature

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/oci/signature/openpgp"
)

// The types of requirements.
const (
	typeInsecure  = "insecureAcceptAnything"
	typeReject    = "reject"
	typeSigstore  = "sigstoreSigned"
	typeSignedBy  = "signedBy"
	transportName = "docker"

	keyTypeGPG = "GPGKeys"
)

// Limits on the keys of a requirement.
const (
	maxKeys     = 64
	maxMaterial = openpgp.MaxKeyring
)

// requirement is one entry of a list.
type requirement struct {
	Type string `json:"type"`

	KeyType  string   `json:"keyType"`
	KeyPath  string   `json:"keyPath"`
	KeyPaths []string `json:"keyPaths"`
	KeyData  string   `json:"keyData"`
	KeyDatas []string `json:"keyDatas"`

	Fulcio *fulcio `json:"fulcio"`
	PKI    *pki    `json:"pki"`

	RekorPublicKeyPath  string   `json:"rekorPublicKeyPath"`
	RekorPublicKeyPaths []string `json:"rekorPublicKeyPaths"`
	RekorPublicKeyData  string   `json:"rekorPublicKeyData"`
	RekorPublicKeyDatas []string `json:"rekorPublicKeyDatas"`

	Identity *identity `json:"signedIdentity"`

	keys, rekor material
}

// fulcio asks for a keyless signature.
type fulcio struct {
	CAPath       string `json:"caPath"`
	CAData       string `json:"caData"`
	OIDCIssuer   string `json:"oidcIssuer"`
	SubjectEmail string `json:"subjectEmail"`

	ca material
}

// pki asks for a signature by a certificate of a private authority.
type pki struct {
	RootsPath         string `json:"caRootsPath"`
	RootsData         string `json:"caRootsData"`
	IntermediatesPath string `json:"caIntermediatesPath"`
	IntermediatesData string `json:"caIntermediatesData"`
	SubjectEmail      string `json:"subjectEmail"`
	SubjectHostname   string `json:"subjectHostname"`

	roots, intermediates material
}

// material is what one group of fields such as keyPath, keyPaths, keyData and
// keyDatas holds: names to ask the KeyGetter for, or the thing itself.
type material struct {
	uris []string
	data [][]byte
}

func (m *material) empty() bool { return len(m.uris) == 0 && len(m.data) == 0 }

// group reads such a group of fields, of which one may be set.
func (o *options) group(prefix, path string, paths []string, data string, datas []string) (material, error) {
	var m material
	set := 0
	for _, given := range []bool{path != "", paths != nil, data != "", datas != nil} {
		if given {
			set++
		}
	}
	if set > 1 {
		return m, fmt.Errorf("%sPath, %sPaths, %sData, %sDatas: expected at most one of them", prefix, prefix, prefix, prefix)
	}
	if path != "" {
		paths = []string{path}
	}
	if data != "" {
		datas = []string{data}
	}
	if (paths != nil && len(paths) == 0) || (datas != nil && len(datas) == 0) || max(len(paths), len(datas)) > maxKeys {
		return m, fmt.Errorf("%sPaths, %sDatas: expected 1 to %d entries, got %d", prefix, prefix, maxKeys, max(len(paths), len(datas)))
	}
	for _, p := range paths {
		if p == "" {
			return m, fmt.Errorf("%sPath: empty", prefix)
		}
		if !o.files && !strings.HasPrefix(p, "kbs://") {
			return m, fmt.Errorf("%sPath: expected kbs:///REPOSITORY/TYPE/TAG, got %q: the guest has no other files than measured ones", prefix, clip(p))
		}
		m.uris = append(m.uris, p)
	}
	for _, d := range datas {
		plain, err := decodeData(d)
		if err != nil {
			return m, fmt.Errorf("%sData: %w", prefix, err)
		}
		m.data = append(m.data, plain)
	}
	return m, nil
}

// decodeData decodes keyData and its like: containers-policy.json has base64;
// guest components take PEM as it stands.
func decodeData(s string) ([]byte, error) {
	if strings.HasPrefix(s, "-----BEGIN") {
		return []byte(s), nil
	}
	plain, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("expected base64: %w", err)
	}
	if len(plain) == 0 || len(plain) > maxMaterial {
		return nil, fmt.Errorf("expected 1 to %d bytes, got %d", maxMaterial, len(plain))
	}
	return plain, nil
}

// load returns the things themselves.
func (m *material) load(ctx context.Context, keys KeyGetter) ([][]byte, error) {
	out := slices.Clone(m.data)
	for _, uri := range m.uris {
		if keys == nil {
			return nil, fmt.Errorf("key %s: this pod has no source of keys", clip(uri))
		}
		raw, err := keys.Key(ctx, uri)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", clip(uri), err)
		}
		data := raw.Expose()
		if len(data) > maxMaterial {
			return nil, fmt.Errorf("key %s: %d bytes, at most %d are allowed", clip(uri), len(data), maxMaterial)
		}
		out = append(out, slices.Clone(data))
	}
	return out, nil
}

func (r *requirement) check(o *options) error {
	switch r.Type {
	case typeInsecure, typeReject:
		if !r.bare() {
			return fmt.Errorf("type: %s takes no other fields", r.Type)
		}
		return nil
	case typeSignedBy, typeSigstore:
	case "":
		return errors.New("type: missing")
	default:
		return fmt.Errorf("type: expected %s, %s, %s or %s, got %q", typeSigstore, typeSignedBy, typeReject, typeInsecure, clip(r.Type))
	}
	var err error
	if r.keys, err = o.group("key", r.KeyPath, r.KeyPaths, r.KeyData, r.KeyDatas); err != nil {
		return err
	}
	if r.rekor, err = o.group("rekorPublicKey", r.RekorPublicKeyPath, r.RekorPublicKeyPaths, r.RekorPublicKeyData, r.RekorPublicKeyDatas); err != nil {
		return err
	}
	if r.Identity != nil {
		if err := r.Identity.check(); err != nil {
			return err
		}
	}
	if r.Type == typeSignedBy {
		return r.checkSignedBy(o)
	}
	return r.checkSigstore(o)
}

// bare says whether the entry has its type only.
func (r *requirement) bare() bool {
	return r.KeyType == "" && r.KeyPath == "" && r.KeyPaths == nil && r.KeyData == "" && r.KeyDatas == nil &&
		r.Fulcio == nil && r.PKI == nil && r.Identity == nil &&
		r.RekorPublicKeyPath == "" && r.RekorPublicKeyPaths == nil && r.RekorPublicKeyData == "" && r.RekorPublicKeyDatas == nil
}

func (r *requirement) checkSignedBy(o *options) error {
	switch {
	case r.KeyType != keyTypeGPG:
		return fmt.Errorf("keyType: expected %s, got %q", keyTypeGPG, clip(r.KeyType))
	case r.KeyDatas != nil:
		return fmt.Errorf("keyDatas: not a field of %s", typeSignedBy)
	case r.Fulcio != nil || r.PKI != nil || !r.rekor.empty():
		return fmt.Errorf("fulcio, pki, rekorPublicKey…: not fields of %s", typeSignedBy)
	case r.keys.empty():
		return errors.New("keyPath, keyPaths, keyData: expected exactly one of them")
	case o.lookaside == nil:
		return fmt.Errorf("type: %s (OpenPGP simple signing) needs a place where signatures are found, and there is none: give sigstore_config", typeSignedBy)
	}
	for _, data := range r.keys.data {
		if _, err := openpgp.ParseKeyring(data); err != nil {
			return fmt.Errorf("keyData: %w", err)
		}
	}
	return nil
}

func (r *requirement) checkSigstore(o *options) error {
	if r.KeyType != "" {
		return fmt.Errorf("keyType: not a field of %s", typeSigstore)
	}
	sources := 0
	for _, given := range []bool{!r.keys.empty(), r.Fulcio != nil, r.PKI != nil} {
		if given {
			sources++
		}
	}
	if sources != 1 {
		return errors.New("keyPath, keyPaths, keyData, keyDatas, fulcio, pki: expected exactly one of them")
	}
	for _, data := range r.keys.data {
		if _, err := ParsePublicKey(data); err != nil {
			return fmt.Errorf("keyData: %w", err)
		}
	}
	for _, data := range r.rekor.data {
		if _, err := parseLogKey(data); err != nil {
			return fmt.Errorf("rekorPublicKeyData: %w", err)
		}
	}
	switch {
	case r.Fulcio != nil:
		return r.checkFulcio(o)
	case r.PKI != nil && !r.rekor.empty():
		return errors.New("rekorPublicKey…: not fields of a requirement with pki")
	case r.PKI != nil:
		return r.PKI.check(o)
	default:
		return nil
	}
}

func (r *requirement) checkFulcio(o *options) error {
	f := r.Fulcio
	var err error
	if f.ca, err = o.group("fulcio.ca", f.CAPath, nil, f.CAData, nil); err != nil {
		return err
	}
	switch {
	case f.ca.empty():
		return errors.New("fulcio.caPath, fulcio.caData: expected exactly one of them")
	case f.OIDCIssuer == "":
		return errors.New("fulcio.oidcIssuer: missing")
	case f.SubjectEmail == "":
		return errors.New("fulcio.subjectEmail: missing")
	case r.rekor.empty():
		return errors.New("rekorPublicKeyPath, rekorPublicKeyData: missing: without a log nothing says that the certificate was used while it was valid")
	case o.keyless == nil:
		return errors.New("fulcio: nothing here verifies keyless signatures: name a trustee in initdata whose plugin keyless is on (plugins.keyless.enabled), or use a guest that was built with the tag keyless, or sign with a key and use keyPath or keyData")
	}
	for _, data := range f.ca.data {
		if _, err := parseCertificates(data); err != nil {
			return fmt.Errorf("fulcio.caData: %w", err)
		}
	}
	return nil
}

func (p *pki) check(o *options) error {
	var err error
	if p.roots, err = o.group("pki.caRoots", p.RootsPath, nil, p.RootsData, nil); err != nil {
		return err
	}
	if p.intermediates, err = o.group("pki.caIntermediates", p.IntermediatesPath, nil, p.IntermediatesData, nil); err != nil {
		return err
	}
	if p.roots.empty() {
		return errors.New("pki.caRootsPath, pki.caRootsData: expected exactly one of them")
	}
	if p.SubjectEmail == "" && p.SubjectHostname == "" {
		return errors.New("pki.subjectEmail, pki.subjectHostname: expected at least one of them")
	}
	for _, data := range append(p.roots.data[:len(p.roots.data):len(p.roots.data)], p.intermediates.data...) {
		if _, err := parseCertificates(data); err != nil {
			return fmt.Errorf("pki: %w", err)
		}
	}
	return nil
}
