package rim

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee/internal/teetest"
)

// signedAt lies in the validity of the certificates of the manifest.
func signedAt() time.Time { return time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC) }

func vbios(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/NV_GPU_VBIOS_96.00.74.00.1C.xml")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pinned trusts who chains to the last certificate of the document as it came.
func pinned(t testing.TB, doc []byte) Trust {
	t.Helper()
	var root *x509.Certificate
	if _, err := Verify(doc, func(certs []*x509.Certificate) error {
		root = certs[len(certs)-1]
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return func(certs []*x509.Certificate) error {
		roots, others := x509.NewCertPool(), x509.NewCertPool()
		roots.AddCert(root)
		for _, c := range certs[1:] {
			others.AddCert(c)
		}
		_, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, CurrentTime: signedAt()})
		return err
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	m, err := Verify(vbios(t), pinned(t, vbios(t)))
	if err != nil {
		t.Fatal(err)
	}
	if m.Manufacturer != "NVIDIA Corporation" || m.Edition != "GPU" || m.Product != "GH100" || m.Version != "96.00.74.00.1C" {
		t.Errorf("got %q %q %q %q", m.Manufacturer, m.Edition, m.Product, m.Version)
	}
	if len(m.Measurements) != 64 || len(m.Certificates) != 4 {
		t.Fatalf("got %d measurements, %d certificates", len(m.Measurements), len(m.Certificates))
	}
	one := m.Measurements[1]
	if one.Index != 1 || !one.Active || len(one.Values) != 1 || fmt.Sprintf("%x", one.Values[0]) != "b558fdac9af53b91ff3bdb06ff589859d6fbc1050d875c88329347f24ff7b3d11ac53688ba56db03cf8751913107e0db" {
		t.Errorf("measurement 1: %+v", one)
	}
	if len(m.Measurements[12].Values) != 4 || m.Measurements[7].Active || m.Measurements[7].Values != nil {
		t.Errorf("measurements 12 and 7: %+v, %+v", m.Measurements[12], m.Measurements[7])
	}
	plain, err := Decode(vbios(t))
	if err != nil || len(plain.Measurements) != 64 || plain.Certificates != nil {
		t.Errorf("without verification: %+v, %v", plain, err)
	}
}

func TestNotVerified(t *testing.T) {
	t.Parallel()
	doc := vbios(t)
	trust := pinned(t, doc)
	refusal := errors.New("nobody I know")
	if _, err := Verify(doc, func([]*x509.Certificate) error { return refusal }); !errors.Is(err, refusal) {
		t.Errorf("got %v", err)
	}
	if _, err := Verify(doc, nil); err == nil {
		t.Error("verified without anybody to trust")
	}
	unsigned := append(bytes.Clone(doc[:bytes.Index(doc, []byte("<ds:Signature "))]), "</SoftwareIdentity>"...)
	if _, err := Verify(unsigned, trust); !errors.Is(err, ErrUnsigned) {
		t.Errorf("got %v", err)
	}
	altered := bytes.Replace(doc, []byte("b558fdac"), []byte("b558fdad"), 1)
	if _, err := Verify(altered, trust); !errors.Is(err, ErrSignature) {
		t.Errorf("got %v", err)
	}
	if _, err := Verify(make([]byte, MaxBytes+1), trust); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("got %v", err)
	}
	if _, err := Verify(append(bytes.Clone(doc), doc...), trust); err == nil {
		t.Error("two documents were accepted as one")
	}
	for n := 0; n < len(doc)-1; n += 997 {
		if _, err := Verify(doc[:n], trust); err == nil {
			t.Errorf("accepted, cut at %d", n)
		}
	}
}

// What NVIDIA signed counts, of which this is a sample, and every bit of the
// signature.
func TestMutated(t *testing.T) {
	t.Parallel()
	doc := vbios(t)
	trust := pinned(t, doc)
	genuine := func(b []byte) bool {
		_, err := Verify(b, trust)
		return err == nil
	}
	end := bytes.Index(doc, []byte("<ds:KeyInfo>"))
	for i := 0; i < end; i += 101 {
		b := bytes.Clone(doc)
		b[i] ^= 1 << (i % 7)
		if genuine(b) {
			t.Errorf("genuine with byte %d changed from %q to %q", i, doc[i], b[i])
		}
	}
	before, rest, _ := strings.Cut(string(doc), "<ds:SignatureValue>")
	value, after, _ := strings.Cut(rest, "<")
	raw, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		t.Fatal(err)
	}
	teetest.EachBit(t, "SignatureValue", raw, func(b []byte) bool {
		return genuine([]byte(before + "<ds:SignatureValue>" + base64.StdEncoding.EncodeToString(b) + "<" + after))
	})
}

func FuzzManifest(f *testing.F) {
	doc := vbios(f)
	f.Add(doc)
	trust := pinned(f, doc)
	want, err := Verify(doc, trust)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = Decode(data)
		m, err := Verify(data, trust)
		if err != nil {
			return
		}
		if m.Version != want.Version || len(m.Measurements) != len(want.Measurements) {
			t.Errorf("accepted as NVIDIA's: %+v", m)
		}
		for i := range m.Measurements {
			if fmt.Sprint(m.Measurements[i]) != fmt.Sprint(want.Measurements[i]) {
				t.Errorf("accepted as NVIDIA's: %+v", m.Measurements[i])
			}
		}
	})
}
