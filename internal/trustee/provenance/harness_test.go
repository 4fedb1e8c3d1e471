package provenance

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/refvalues"
)

// testNow lies in the validity of everything that the tests make, and of the
// certificate in NVIDIA's manifest (2023-12-05 to 2025-12-04).
var testNow = time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC)

func now() time.Time { return testNow }

func message(typ string, payload []byte) []byte {
	b, err := json.Marshal(map[string]string{"version": "0.1.0", "type": typ, "payload": base64.StdEncoding.EncodeToString(payload)})
	if err != nil {
		panic(err)
	}
	return b
}

func newKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// keySigner is a signer with one key that may set anything.
func keySigner(k crypto.PublicKey) Signer {
	return Signer{Name: "builder", Keys: []crypto.PublicKey{k}, Prefixes: []string{"*"}}
}

// authority is a root with a signing certificate below it.
type authority struct {
	root, leaf *x509.Certificate
	key        *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, usage x509.KeyUsage, from, to time.Time) *authority {
	t.Helper()
	rootKey, key := newKey(t, elliptic.P384()), newKey(t, elliptic.P384())
	rootTmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, NotBefore: testNow.AddDate(-5, 0, 0), NotAfter: testNow.AddDate(5, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	sign := func(tmpl, parent *x509.Certificate, pub *ecdsa.PublicKey, by *ecdsa.PrivateKey) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, by)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	root := sign(rootTmpl, rootTmpl, &rootKey.PublicKey, rootKey)
	leaf := sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test signer"}, NotBefore: from, NotAfter: to, KeyUsage: usage, BasicConstraintsValid: true,
	}, root, &key.PublicKey, rootKey)
	return &authority{root, leaf, key}
}

func goodAuthority(t testing.TB) *authority {
	t.Helper()
	return newAuthority(t, x509.KeyUsageDigitalSignature, testNow.AddDate(-1, 0, 0), testNow.AddDate(1, 0, 0))
}

func rootSigner(a *authority) Signer {
	return Signer{Name: "vendor", Roots: []*x509.Certificate{a.root}, Prefixes: []string{"*"}}
}

func nvidiaRIM(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/h100-vbios-rim.b64")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// nvidiaRoot is the root certificate that NVIDIA's manifest brings; in
// production an operator pins it.
func nvidiaRoot(t testing.TB) *x509.Certificate {
	t.Helper()
	parts := bytes.Split(nvidiaRIM(t), []byte("<ds:X509Certificate>"))
	text, _, _ := bytes.Cut(parts[len(parts)-1], []byte("<"))
	block, _ := pem.Decode([]byte("-----BEGIN CERTIFICATE-----\n" + strings.TrimSpace(string(text)) + "\n-----END CERTIFICATE-----\n"))
	if block == nil {
		t.Fatal("no certificate")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func nvidia(t testing.TB) Signer {
	t.Helper()
	return Signer{Name: "nvidia", Roots: []*x509.Certificate{nvidiaRoot(t)}, Prefixes: []string{"NVIDIA_Corporation."}}
}

// values are a reference's values as text.
func values(r refvalues.Reference) string {
	var out []string
	for _, e := range r.Entries {
		out = append(out, string(e.Value))
	}
	return strings.Join(out, " ")
}

func byName(t testing.TB, refs []refvalues.Reference, name string) refvalues.Reference {
	t.Helper()
	for _, r := range refs {
		if r.Name == name {
			return r
		}
	}
	t.Errorf("no reference %q", name)
	return refvalues.Reference{}
}

// refused expects an error with a text; with untrusted, one that wraps
// [ErrUntrusted], else one that does not.
func refused(t testing.TB, refs []refvalues.Reference, err error, want string, untrusted bool) {
	t.Helper()
	switch {
	case err == nil:
		t.Errorf("accepted: %+v", refs)
	case refs != nil:
		t.Error("values are returned beside an error")
	case !strings.Contains(err.Error(), want):
		t.Errorf("got %v, expected %q", err, want)
	case errors.Is(err, ErrUntrusted) != untrusted:
		t.Errorf("%v: wraps ErrUntrusted: %v", err, !untrusted)
	case len(err.Error()) > 4096:
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}
