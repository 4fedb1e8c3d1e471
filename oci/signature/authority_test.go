package signature_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/signature"
)

// authority is a certificate authority of the policy's owner.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB, now time.Time) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Images"}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a := &authority{key: key}
	a.cert, a.pem = issue(t, template, template, key.Public(), key)
	return a
}

func issue(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, []byte) {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// Certificates of the owner's authority, with and without an intermediate one,
// in both forms of signatures.
func TestPrivateAuthority(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	root := newAuthority(t, now)
	sub, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	subCert, subPEM := issue(t, &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Builds"}, NotBefore: now, NotAfter: now.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, root.cert, sub.Public(), root.key)
	k, _ := newKey(t)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(3), NotBefore: now, NotAfter: now.AddDate(0, 1, 0), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, EmailAddresses: []string{"build@example.com"}, DNSNames: []string{"build.example.com"}}
	leafCert, leafPEM := issue(t, leaf, subCert, k.Public(), sub)
	tls := *leaf
	tls.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	_, tlsPEM := issue(t, &tls, subCert, k.Public(), sub)
	strangerKey, _ := newKey(t)
	stranger := newAuthority(t, now)
	_, strangerPEM := issue(t, leaf, stranger.cert, strangerKey.Public(), stranger.key)
	store, ref := imageAt(t, "reg.example/shop/web")
	payload := fmt.Sprintf(`{"critical":{"identity":{"docker-reference":"reg.example/shop/web"},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, ref.Digest)
	annotated := func(by crypto.Signer, certificate, chain []byte) func(*layout.Layout) {
		return func(l *layout.Layout) {
			d := oci.Describe("application/vnd.dev.cosign.simplesigning.v1+json", []byte(payload))
			if err := l.Push(t.Context(), d, strings.NewReader(payload)); err != nil {
				t.Fatal(err)
			}
			d.Annotations = map[string]string{"dev.cosignproject.cosign/signature": sigOf(t, by, []byte(payload)), "dev.sigstore.cosign/certificate": string(certificate), "dev.sigstore.cosign/chain": string(chain)}
			config, _ := oci.PushBytes(t.Context(), l, oci.MediaTypeConfig, []byte("{}"))
			data, _ := json.Marshal(oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: config, Layers: []oci.Descriptor{d}})
			m, err := oci.PushBytes(t.Context(), l, oci.MediaTypeManifest, data)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Tag(t.Context(), m, signature.Tag(ref.Digest)); err != nil {
				t.Fatal(err)
			}
		}
	}
	chain := append(append([]byte{}, subPEM...), root.pem...)
	statement := statementFor(ref.Digest)
	bundle := func(l *layout.Layout) {
		b := strings.Replace(envelopeBundle(statement, sigOf(t, k, pae(statement))), `"publicKey":{"hint":"x"}`,
			`"x509CertificateChain":{"certificates":[{"rawBytes":"`+base64.StdEncoding.EncodeToString(leafCert.Raw)+`"},{"rawBytes":"`+base64.StdEncoding.EncodeToString(subCert.Raw)+`"}]}`, 1)
		pushBundle(t, l, ref, b)
	}
	pki := func(more string) string {
		return `{"type":"sigstoreSigned","pki":{"caRootsData":"` + keyData(root.pem) + `",` + more + `}}`
	}
	email := pki(`"subjectEmail":"build@example.com"`)
	for name, tt := range map[string]struct {
		put         func(*layout.Layout)
		requirement string
		now         time.Time
		want        string
	}{
		"chain":             {annotated(k, leafPEM, chain), email, now, ""},
		"pinned chain":      {annotated(k, leafPEM, nil), pki(`"subjectHostname":"build.example.com","caIntermediatesData":"` + keyData(subPEM) + `"`), now, ""},
		"bundle":            {bundle, email, now, ""},
		"both names":        {bundle, pki(`"subjectEmail":"build@example.com","subjectHostname":"build.example.com"`), now, ""},
		"no chain":          {annotated(k, leafPEM, nil), email, now, "certificate: x509"},
		"no certificate":    {annotated(k, nil, nil), email, now, "the signature has no certificate"},
		"other email":       {annotated(k, leafPEM, chain), pki(`"subjectEmail":"root@example.com"`), now, "expected the e-mail address root@example.com"},
		"other host":        {annotated(k, leafPEM, chain), pki(`"subjectEmail":"build@example.com","subjectHostname":"evil.example.com"`), now, "certificate: x509"},
		"expired":           {annotated(k, leafPEM, chain), email, now.AddDate(0, 2, 0), "expired"},
		"for TLS":           {annotated(k, tlsPEM, chain), email, now, "certificate: x509"},
		"another authority": {annotated(strangerKey, strangerPEM, stranger.pem), email, now, "certificate: x509"},
		"another's key":     {annotated(strangerKey, leafPEM, chain), email, now, "does not verify under the key of its certificate"},
		"not PEM":           {annotated(k, []byte("x"), nil), email, now, "certificates: expected PEM"},
	} {
		l := newStore(t)
		tt.put(l)
		p, err := signature.ParsePolicy([]byte(`{"default":[`+tt.requirement+`]}`), signature.WithClock(func() time.Time { return tt.now.Add(time.Hour) }))
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Verify(t.Context(), subject(ref), l, nil)
		if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
	}
	_ = store
}
