package signature_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/secret"
)

type keyMap map[string][]byte

func (m keyMap) Key(_ context.Context, uri string) (secret.Bytes, error) {
	k, ok := m[uri]
	if !ok {
		return secret.Bytes{}, fmt.Errorf("no resource %s", uri)
	}
	return secret.New(bytes.Clone(k)), nil
}

func newStore(t testing.TB) *layout.Layout {
	t.Helper()
	l, err := layout.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func newKey(t testing.TB) (crypto.Signer, []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k, publicPEM(t, k)
}

func publicPEM(t testing.TB, k crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func mustRef(t testing.TB, s string) oci.Reference {
	t.Helper()
	ref, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

var (
	digestA = oci.FromBytes([]byte("a"))
	digestB = oci.FromBytes([]byte("b"))
)

func subject(ref oci.Reference) signature.Subject {
	return signature.Subject{Ref: ref, Digests: []oci.Digest{ref.Digest}}
}

func sign(t testing.TB, store signature.Store, ref oci.Reference, k crypto.Signer) {
	t.Helper()
	if _, err := signature.Sign(t.Context(), store, ref, k, rand.Reader); err != nil {
		t.Fatal(err)
	}
}

func policyFor(t testing.TB, requirement string) *signature.Policy {
	t.Helper()
	p, err := signature.ParsePolicy([]byte(`{"default":[{"type":"reject"}],"transports":{"docker":{"reg.example/shop":[` + requirement + `]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func keyData(pem []byte) string { return base64.StdEncoding.EncodeToString(pem) }

func TestSignAndVerifyAlgorithms(t *testing.T) {
	t.Parallel()
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ref := mustRef(t, "reg.example/shop/web@"+string(digestA))
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	for name, k := range map[string]crypto.Signer{"P-256": p256, "P-384": p384, "P-521": p521, "Ed25519": ed, "RSA": rsaKey} {
		store := newStore(t)
		sign(t, store, ref, k)
		p := policyFor(t, `{"type":"sigstoreSigned","keyPath":"kbs:///a/b/c"}`)
		v, err := p.Verify(t.Context(), subject(ref), store, keyMap{"kbs:///a/b/c": publicPEM(t, k)})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if v.Scope != "reg.example/shop" || v.Requirement != "sigstoreSigned" || v.Digest != digestA || len(v.KeyID) != 64 {
			t.Errorf("%s: %+v", name, v)
		}
	}
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if _, err := signature.NewPublicKey(p224.Public()); err == nil {
		t.Error("P-224 was accepted")
	}
	if _, err := signature.NewPublicKey(&rsa.PublicKey{N: rsaKey.N.Rsh(rsaKey.N, 1), E: 3}); err == nil {
		t.Error("RSA of 2047 bits was accepted")
	}
}

// The payload is the form that cosign writes, and is found where it looks.
func TestFormat(t *testing.T) {
	t.Parallel()
	store := newStore(t)
	k, pub := newKey(t)
	ref := mustRef(t, "reg.example/shop/web@"+string(digestA))
	sign(t, store, ref, k)
	d, err := store.Resolve(t.Context(), ref.WithTag("sha256-"+digestA.Hex()+".sig"))
	if err != nil {
		t.Fatal(err)
	}
	data, err := oci.ReadAll(t.Context(), store, d, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	m, err := oci.ParseManifest(data, d.MediaType)
	if err != nil {
		t.Fatal(err)
	}
	l := m.Layers[0]
	if l.MediaType != "application/vnd.dev.cosign.simplesigning.v1+json" {
		t.Error(l.MediaType)
	}
	payload, err := oci.ReadAll(t.Context(), store, l, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"critical":{"identity":{"docker-reference":"reg.example/shop/web"},"image":{"docker-manifest-digest":"` + string(digestA) + `"},"type":"cosign container image signature"},"optional":null}`
	if string(payload) != want {
		t.Errorf("payload: want %s, got %s", want, payload)
	}
	key, err := signature.ParsePublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := base64.StdEncoding.DecodeString(l.Annotations["dev.cosignproject.cosign/signature"])
	if err != nil || !key.Verify(payload, sig) {
		t.Errorf("the signature does not verify: %v", err)
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	good, goodPEM := newKey(t)
	other, _ := newKey(t)
	ref := mustRef(t, "reg.example/shop/web:1@"+string(digestA))
	req := `{"type":"sigstoreSigned","keyData":"` + keyData(goodPEM) + `"}`
	for name, tt := range map[string]struct {
		prepare func(*testing.T, *layout.Layout)
		subject signature.Subject
		req     string
		want    string
	}{
		"signed":               {func(t *testing.T, l *layout.Layout) { sign(t, l, ref, good) }, subject(ref), req, ""},
		"unsigned":             {func(t *testing.T, l *layout.Layout) {}, subject(ref), req, "the image is not signed"},
		"wrongly signed":       {func(t *testing.T, l *layout.Layout) { sign(t, l, ref, other) }, subject(ref), req, "none of the image's 1 signatures verifies under key"},
		"signed twice":         {func(t *testing.T, l *layout.Layout) { sign(t, l, ref, other); sign(t, l, ref, good) }, subject(ref), req, ""},
		"for another digest":   {func(t *testing.T, l *layout.Layout) { moveSignature(t, l, ref, good, digestB) }, subject(ref), req, "the signature is good, but for another image: expected " + string(digestA) + ", it is for " + string(digestB)},
		"another's is no harm": {func(t *testing.T, l *layout.Layout) { moveSignature(t, l, ref, good, digestB); sign(t, l, ref, good) }, subject(ref), req, ""},
		"by the index":         {func(t *testing.T, l *layout.Layout) { sign(t, l, ref, good) }, signature.Subject{Ref: ref, Digests: []oci.Digest{digestA, digestB}}, req, ""},
		"by the platform": {func(t *testing.T, l *layout.Layout) { sign(t, l, ref.WithDigest(digestB), good) },
			signature.Subject{Ref: ref, Digests: []oci.Digest{digestA, digestB}}, req, ""},
		"two requirements":        {func(t *testing.T, l *layout.Layout) { sign(t, l, ref, good) }, subject(ref), req + `,{"type":"sigstoreSigned","keyPath":"kbs:///k/e/y"}`, "requirement 1: key kbs:///k/e/y: no resource"},
		"reject":                  {func(t *testing.T, l *layout.Layout) { sign(t, l, ref, good) }, subject(ref), req + `,{"type":"reject"}`, "rejects every such image"},
		"default":                 {func(t *testing.T, l *layout.Layout) {}, subject(mustRef(t, "reg.example/other@"+string(digestA))), req, `policy for "default": the policy rejects`},
		"no prefix by characters": {func(t *testing.T, l *layout.Layout) {}, subject(mustRef(t, "reg.example/shopper@"+string(digestA))), req, `policy for "default"`},
		"repository": {func(t *testing.T, l *layout.Layout) { sign(t, l, ref, good) }, subject(ref),
			strings.Replace(req, `}`, `,"signedIdentity":{"type":"matchRepository"}}`, 1), ""},
		"another repository": {func(t *testing.T, l *layout.Layout) {
			sign(t, l, mustRef(t, "reg.example/evil@"+string(digestA)), good)
		}, subject(ref),
			strings.Replace(req, `}`, `,"signedIdentity":{"type":"matchRepository"}}`, 1), "it is for the repository reg.example/evil, not for reg.example/shop/web"},
		"exact repository": {func(t *testing.T, l *layout.Layout) { sign(t, l, mustRef(t, "up.example/web@"+string(digestA)), good) }, subject(ref),
			strings.Replace(req, `}`, `,"signedIdentity":{"type":"exactRepository","dockerRepository":"up.example/web"}}`, 1), ""},
		"remapped": {func(t *testing.T, l *layout.Layout) {
			sign(t, l, mustRef(t, "up.example/x/web@"+string(digestA)), good)
		}, subject(ref),
			strings.Replace(req, `}`, `,"signedIdentity":{"type":"remapIdentity","prefix":"reg.example/shop","signedPrefix":"up.example/x"}}`, 1), ""},
		"exact": {func(t *testing.T, l *layout.Layout) { sign(t, l, ref, good) }, subject(ref),
			strings.Replace(req, `}`, `,"signedIdentity":{"type":"matchExact"}}`, 1), "it is for reg.example/shop/web, not for reg.example/shop/web:1@"},
		"by digest": {func(t *testing.T, l *layout.Layout) { sign(t, l, ref, good) }, subject(ref),
			strings.Replace(req, `}`, `,"signedIdentity":{"type":"matchRepoDigestOrExact"}}`, 1), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := newStore(t)
			tt.prepare(t, store)
			v, err := policyFor(t, tt.req).Verify(t.Context(), tt.subject, store, keyMap{})
			if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("want %q, got %+v, %v", tt.want, v, err)
			}
		})
	}
}

// moveSignature puts a good signature of another digest at ref's tag.
func moveSignature(t testing.TB, l *layout.Layout, ref oci.Reference, k crypto.Signer, signed oci.Digest) {
	t.Helper()
	d, err := signature.Sign(t.Context(), l, ref.WithDigest(signed), k, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(t.Context(), d, signature.Tag(ref.Digest)); err != nil {
		t.Fatal(err)
	}
}

// Payloads that verify under the key and still must not count.
func TestPayloads(t *testing.T) {
	t.Parallel()
	k, pub := newKey(t)
	ref := mustRef(t, "reg.example/shop/web@"+string(digestA))
	good := `{"critical":{"identity":{"docker-reference":"x"},"image":{"docker-manifest-digest":"` + string(digestA) + `"},"type":"cosign container image signature"},"optional":null}`
	for name, tt := range map[string]struct{ payload, want string }{
		"good":         {good, ""},
		"twice":        {strings.Replace(good, `"image"`, `"image":{"docker-manifest-digest":"`+string(digestB)+`"},"image"`, 1), "payload: JSON"},
		"other type":   {strings.Replace(good, "cosign container image signature", "atomic container signature", 1), "critical.type"},
		"no digest":    {strings.Replace(good, string(digestA), "", 1), "docker-manifest-digest"},
		"no JSON":      {"x", "payload: JSON"},
		"unknown name": {strings.Replace(good, `"optional"`, `"other"`, 1), "payload: JSON"},
		"null":         {"null", "payload"},
	} {
		store := newStore(t)
		sum := crypto.SHA256.New()
		sum.Write([]byte(tt.payload))
		sig, err := k.Sign(rand.Reader, sum.Sum(nil), crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		pushSignature(t, store, ref, tt.payload, base64.StdEncoding.EncodeToString(sig))
		p, err := signature.SignedBy(pub)
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Verify(t.Context(), subject(ref), store, nil)
		if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
	}
}

func pushSignature(t testing.TB, store *layout.Layout, ref oci.Reference, payload, sig string) {
	t.Helper()
	ctx := t.Context()
	l := oci.Describe("application/vnd.dev.cosign.simplesigning.v1+json", []byte(payload))
	l.Annotations = map[string]string{"dev.cosignproject.cosign/signature": sig}
	if err := store.Push(ctx, l, strings.NewReader(payload)); err != nil {
		t.Fatal(err)
	}
	m := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Layers: []oci.Descriptor{l}}
	var err error
	if m.Config, err = oci.PushBytes(ctx, store, oci.MediaTypeConfig, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	data, _ := json.Marshal(m)
	d, err := oci.PushBytes(ctx, store, oci.MediaTypeManifest, data)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Tag(ctx, d, signature.Tag(ref.Digest)); err != nil {
		t.Fatal(err)
	}
}

func TestParsePolicy(t *testing.T) {
	t.Parallel()
	_, pub := newKey(t)
	data := keyData(pub)
	for name, tt := range map[string]struct{ doc, want string }{
		"good":                {`{"default":[{"type":"reject"}],"transports":{"docker":{"a.example":[{"type":"sigstoreSigned","keyData":"` + data + `"}]}}}`, ""},
		"no transports":       {`{"default":[{"type":"insecureAcceptAnything"}]}`, ""},
		"PEM as keyData":      {`{"default":[{"type":"sigstoreSigned","keyData":` + fmt.Sprintf("%q", pub) + `}]}`, ""},
		"empty":               {``, "image policy: JSON"},
		"no default":          {`{"transports":{}}`, "default: expected at least one requirement"},
		"empty list":          {`{"default":[]}`, "default: expected at least one requirement"},
		"empty list below":    {`{"default":[{"type":"reject"}],"transports":{"docker":{"a.example":[]}}}`, `transports.docker["a.example"]: expected at least one`},
		"unknown type":        {`{"default":[{"type":"accept"}]}`, "default[0].type"},
		"no type":             {`{"default":[{}]}`, "default[0].type: missing"},
		"GPG":                 {`{"default":[{"type":"signedBy","keyType":"GPGKeys","keyData":"eA=="}]}`, "OpenPGP simple signing) needs a place where signatures are found"},
		"no key":              {`{"default":[{"type":"sigstoreSigned"}]}`, "expected exactly one"},
		"two keys":            {`{"default":[{"type":"sigstoreSigned","keyPath":"kbs:///a/b/c","keyData":"eA=="}]}`, "expected at most one"},
		"file as key":         {`{"default":[{"type":"sigstoreSigned","keyPath":"/etc/key.pem"}]}`, "keyPath: expected kbs:///"},
		"key no base64":       {`{"default":[{"type":"sigstoreSigned","keyData":"*"}]}`, "keyData: expected base64"},
		"key no PEM":          {`{"default":[{"type":"sigstoreSigned","keyData":"eA=="}]}`, "keyData: public key: expected PEM"},
		"unknown field":       {`{"default":[{"type":"sigstoreSigned","keyData":"` + data + `","rekorPublicKeyPath":"x"}]}`, "rekorPublicKeyPath"},
		"key with reject":     {`{"default":[{"type":"reject","keyData":"` + data + `"}]}`, "takes no other fields"},
		"identity":            {`{"default":[{"type":"sigstoreSigned","keyData":"` + data + `","signedIdentity":{"type":"any"}}]}`, "signedIdentity.type"},
		"identity field":      {`{"default":[{"type":"sigstoreSigned","keyData":"` + data + `","signedIdentity":{"type":"matchExact","prefix":"x"}}]}`, "signedIdentity.prefix: not a field"},
		"identity without":    {`{"default":[{"type":"sigstoreSigned","keyData":"` + data + `","signedIdentity":{"type":"exactRepository"}}]}`, "signedIdentity.dockerRepository: missing"},
		"twice":               {`{"default":[{"type":"reject"}],"default":[{"type":"insecureAcceptAnything"}]}`, "default"},
		"bad other transport": {`{"default":[{"type":"reject"}],"transports":{"oci":{"":[]}}}`, `transports.oci[""]`},
	} {
		p, err := signature.ParsePolicy([]byte(tt.doc))
		if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
		if (p == nil) == (err == nil) {
			t.Errorf("%s: policy and error: %v, %v", name, p, err)
		}
	}
}

// The closest scope decides.
func TestScopes(t *testing.T) {
	t.Parallel()
	p, err := signature.ParsePolicy([]byte(`{"default":[{"type":"reject"}],"transports":{"docker":{
	 "reg.example":[{"type":"insecureAcceptAnything"}],"reg.example/a":[{"type":"reject"}],"reg.example/a/b:1":[{"type":"insecureAcceptAnything"}],
	 "*.wild.example":[{"type":"insecureAcceptAnything"}],"port.example:5000":[{"type":"insecureAcceptAnything"}],"docker.io/library/debian":[{"type":"insecureAcceptAnything"}]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"reg.example/x:1": "reg.example", "reg.example/a:1": "", "reg.example/a/b:1": "reg.example/a/b:1", "reg.example/a/b:2": "", "x.y.wild.example/a": "*.wild.example",
		"wild.example/a": "", "evilwild.example/a": "", "port.example:5000/a": "port.example:5000", "port.example:5001/a": "", "debian": "docker.io/library/debian",
		"evil.example/reg.example/x": "",
	} {
		v, err := p.Verify(t.Context(), subject(mustRef(t, in)), newStore(t), nil)
		if (err == nil) != (want != "") || v.Scope != want {
			t.Errorf("%s: want %q, got %+v, %v", in, want, v, err)
		}
	}
	if _, err := new(signature.Policy).Verify(t.Context(), subject(mustRef(t, "a")), newStore(t), nil); err == nil {
		t.Error("the zero policy accepts")
	}
}

func FuzzParsePolicy(f *testing.F) {
	_, pub := newKey(f)
	f.Add([]byte(`{"default":[{"type":"reject"}],"transports":{"docker":{"a.example":[{"type":"sigstoreSigned","keyData":"` + keyData(pub) + `","signedIdentity":{"type":"matchRepository"}}]}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := signature.ParsePolicy(data)
		if (p == nil) == (err == nil) {
			t.Errorf("%v, %v", p, err)
		}
	})
}

// FuzzClaims gives hostile payloads and signatures to a policy; none is good.
func FuzzClaims(f *testing.F) {
	_, pub := newKey(f)
	p, err := signature.SignedBy(pub)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(`{"critical":{}}`, "AAAA")
	ref := mustRef(f, "reg.example/shop/web@"+string(digestA))
	f.Fuzz(func(t *testing.T, payload, sig string) {
		store := newStore(t)
		pushSignature(t, store, ref, payload, strings.ToValidUTF8(sig, "?"))
		if _, err := p.Verify(t.Context(), subject(ref), store, nil); err == nil {
			t.Error("accepted")
		}
	})
}
