//go:build !keyless

package program

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/guest/agent"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/oci/signature/remote"
	"github.com/coffer-project/coffer/secret"
)

// keylessMaterial is an authority and a log of no worth, and a policy of them.
func keylessMaterial(t *testing.T) (certificate, policy []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	b64 := func(kind string, der []byte) string {
		return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return der, fmt.Appendf(nil, `{"default":[{"type":"sigstoreSigned","fulcio":{"caData":%q,"oidcIssuer":"https://i","subjectEmail":"a@b"},"rekorPublicKeyData":%q}]}`,
		b64("CERTIFICATE", der), b64("PUBLIC KEY", public))
}

// bundled is an image with a bundle that needs a keyless verifier.
func bundled(t *testing.T, certificate []byte) (signature.Subject, *layout.Layout) {
	t.Helper()
	digest := oci.FromBytes([]byte("image"))
	l, err := layout.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	type object = map[string]any
	statement := `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"` + digest.Hex() + `"}}],"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}`
	bundle, err := json.Marshal(object{
		"mediaType":            "application/vnd.dev.sigstore.bundle.v0.3+json",
		"verificationMaterial": object{"certificate": object{"rawBytes": certificate}},
		"dsseEnvelope":         object{"payload": []byte(statement), "payloadType": "application/vnd.in-toto+json", "signatures": []object{{"sig": []byte("no signature")}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	push := func(mediaType string, data []byte) oci.Descriptor {
		d, err := oci.PushBytes(t.Context(), l, mediaType, data)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	m, err := json.Marshal(oci.Manifest{
		SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: push(oci.MediaTypeConfig, []byte("{}")),
		Layers: []oci.Descriptor{push("application/vnd.dev.sigstore.bundle.v0.3+json", bundle)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(t.Context(), push(oci.MediaTypeManifest, m), signature.Tag(digest)); err != nil {
		t.Fatal(err)
	}
	ref, err := oci.ParseReference("reg.example/shop/web@" + string(digest))
	if err != nil {
		t.Fatal(err)
	}
	return signature.Subject{Ref: ref, Digests: []oci.Digest{digest}}, l
}

// TestKeylessByTrustee: a guest without the tag keyless asks its trustee, and
// says what to do where that is not possible.
func TestKeylessByTrustee(t *testing.T) {
	t.Parallel()
	certificate, policy := keylessMaterial(t)
	if _, err := newImagePolicy(policy, nil, agent.RegistryConfig{}); err == nil || !strings.Contains(err.Error(), "plugins.keyless.enabled") || !strings.Contains(err.Error(), "tag keyless") {
		t.Errorf("without a trustee: %v", err)
	}
	subject, images := bundled(t, certificate)
	both := []string{"plugins.keyless.enabled", "tag keyless"}
	for name, tt := range map[string]struct {
		answer func(*remote.Request) ([]byte, error)
		want   []string
	}{
		"no plugin (401)": {func(*remote.Request) ([]byte, error) {
			return nil, fmt.Errorf("kbs: %w", kbs.NewStatusError("POST", http.StatusUnauthorized, nil))
		}, both},
		"no plugin (404)": {func(*remote.Request) ([]byte, error) {
			return nil, kbs.NewStatusError("POST", http.StatusNotFound, nil)
		}, both},
		"refused": {func(*remote.Request) ([]byte, error) {
			return nil, kbs.NewStatusError("POST", http.StatusForbidden, nil)
		}, []string{"403"}},
		"down":     {func(*remote.Request) ([]byte, error) { return nil, errors.New("connection refused") }, []string{"connection refused"}},
		"nonsense": {func(*remote.Request) ([]byte, error) { return []byte("{}"), nil }, []string{"request_sha256"}},
		// The trustee says yes, and the signature is none.
		"lie": {func(r *remote.Request) ([]byte, error) {
			c, err := x509.ParseCertificate(certificate)
			if err != nil {
				return nil, err
			}
			return r.Answer(c.RawSubjectPublicKeyInfo)
		}, []string{"does not verify under the key of its certificate"}},
	} {
		asked := 0
		p, err := newImagePolicy(policy, nil, agent.RegistryConfig{AskTrustee: func(_ context.Context, uri string, body []byte) (secret.Bytes, error) {
			asked++
			r, err := remote.ParseRequest(body)
			if err != nil || uri != remote.URI || r.Trust.SubjectEmail != "a@b" {
				t.Errorf("%s: %s, %+v, %v", name, uri, r, err)
				return secret.Bytes{}, errors.New("bad request")
			}
			out, err := tt.answer(r)
			return secret.New(out), err
		}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Verify(t.Context(), subject, images, nil)
		if err == nil || asked == 0 {
			t.Errorf("%s: asked %d times, %v", name, asked, err)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: want %q, got %v", name, want, err)
			}
		}
		if name == "refused" && strings.Contains(err.Error(), "plugins.keyless.enabled") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
