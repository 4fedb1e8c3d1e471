package signature_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/signature"
)

// counting is a store that counts what is fetched from it.
type counting struct {
	*layout.Layout
	fetches, bytes atomic.Int64
}

func (c *counting) Fetch(ctx context.Context, d oci.Descriptor) (io.ReadCloser, error) {
	c.fetches.Add(1)
	c.bytes.Add(d.Size)
	return c.Layout.Fetch(ctx, d)
}

// restricted is a policy for one registry, under the key.
func restricted(t testing.TB, pub []byte, more string) *signature.Policy {
	t.Helper()
	return policyFor(t, `{"type":"sigstoreSigned","keyData":"`+keyData(pub)+`"`+more+`}`)
}

func refused(t testing.TB, p *signature.Policy, s signature.Subject, f oci.Fetcher, text string) {
	t.Helper()
	v, err := p.Verify(t.Context(), s, f, nil)
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("want %q, got %+v, %v", text, v, err)
	}
}

func accepted(t testing.TB, p *signature.Policy, s signature.Subject, f oci.Fetcher) {
	t.Helper()
	if _, err := p.Verify(t.Context(), s, f, nil); err != nil {
		t.Error(err)
	}
}

// imageAt is an image in a new store.
func imageAt(t testing.TB, name string) (*layout.Layout, oci.Reference) {
	t.Helper()
	store := newStore(t)
	return store, mustRef(t, name).WithDigest(pushTo(t, store, name).Digest)
}

func signBundle(t testing.TB, store signature.Store, ref oci.Reference, k crypto.Signer) oci.Descriptor {
	t.Helper()
	d, err := signature.SignBundle(t.Context(), store, ref, k, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestAttackUnsignedImage(t *testing.T) {
	t.Parallel()
	_, pub := newKey(t)
	store, ref := imageAt(t, "reg.example/shop/web")
	refused(t, restricted(t, pub, ""), subject(ref), store, "the image is not signed")
}

func TestAttackWrongKey(t *testing.T) {
	t.Parallel()
	k, _ := newKey(t)
	_, pub := newKey(t)
	store, ref := imageAt(t, "reg.example/shop/web")
	sign(t, store, ref, k)
	signBundle(t, store, ref, k)
	refused(t, restricted(t, pub, ""), subject(ref), store, "none of the image's 2 signatures verifies under key")
}

// A good signature of another image, moved to this one's tag.
func TestAttackSignatureOfAnotherDigest(t *testing.T) {
	t.Parallel()
	k, pub := newKey(t)
	store, ref := imageAt(t, "reg.example/shop/web")
	moveSignature(t, store, ref, k, digestB)
	refused(t, restricted(t, pub, ""), subject(ref), store, "the signature is good, but for another image")
}

// The same with a bundle: the index of the referrers names another's.
func TestAttackBundleOfAnotherDigest(t *testing.T) {
	t.Parallel()
	k, pub := newKey(t)
	store, ref := imageAt(t, "reg.example/shop/web")
	other := ref.WithDigest(pushTo(t, store, "other").Digest)
	signBundle(t, store, other, k)
	index, err := store.Resolve(t.Context(), ref.WithTag("sha256-"+other.Digest.Hex()))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Tag(t.Context(), index, "sha256-"+ref.Digest.Hex()); err != nil {
		t.Fatal(err)
	}
	refused(t, restricted(t, pub, ""), subject(ref), store, "the signature is good, but for another image")
	accepted(t, restricted(t, pub, ""), subject(other), store)
}

// An image that was asked for by tag is swapped for another one that the same
// key signed, in another repository.
func TestAttackOtherRepository(t *testing.T) {
	t.Parallel()
	k, pub := newKey(t)
	store, ref := imageAt(t, "reg.example/shop/web")
	evil := mustRef(t, "reg.example/test/vulnerable").WithDigest(ref.Digest)
	sign(t, store, evil, k)
	byTag := signature.Subject{Ref: mustRef(t, "reg.example/shop/web:1"), Digests: []oci.Digest{ref.Digest}}
	refused(t, restricted(t, pub, ""), byTag, store, "it is for the repository reg.example/test/vulnerable, not for reg.example/shop/web")
	refused(t, restricted(t, pub, `,"signedIdentity":{"type":"matchRepository"}`), subject(ref), store, "it is for the repository reg.example/test/vulnerable")
	// Where the owner named the digest, it is the same image wherever it is.
	accepted(t, restricted(t, pub, ""), subject(ref), store)
	// A bundle names no repository, which is not enough for a tag.
	store, ref = imageAt(t, "reg.example/shop/web")
	signBundle(t, store, ref, k)
	byTag.Digests[0] = ref.Digest
	refused(t, restricted(t, pub, ""), byTag, store, "a sigstore bundle names no repository")
	accepted(t, restricted(t, pub, ""), subject(ref), store)
}

// A mirror's signature, of the very same digest, is replayed for another name.
func TestAttackReplayFromMirror(t *testing.T) {
	t.Parallel()
	k, pub := newKey(t)
	store, ref := imageAt(t, "reg.example/shop/web")
	sign(t, store, mustRef(t, "mirror.example/shop/web").WithDigest(ref.Digest), k)
	byTag := signature.Subject{Ref: mustRef(t, "reg.example/shop/web:1"), Digests: []oci.Digest{ref.Digest}}
	refused(t, restricted(t, pub, ""), byTag, store, "it is for the repository mirror.example/shop/web")
	for _, identity := range []string{`{"type":"matchExact"}`, `{"type":"matchRepoDigestOrExact"}`, `{"type":"matchRepository"}`, `{"type":"exactRepository","dockerRepository":"reg.example/shop/web"}`} {
		refused(t, restricted(t, pub, `,"signedIdentity":`+identity), subject(ref), store, "signedIdentity")
	}
	accepted(t, restricted(t, pub, `,"signedIdentity":{"type":"remapIdentity","prefix":"reg.example","signedPrefix":"mirror.example"}`), subject(ref), store)
}

func TestAttackEmptyRequirementList(t *testing.T) {
	t.Parallel()
	for _, doc := range []string{`{"default":[]}`, `{"default":null}`, `{}`, `{"default":[{"type":"reject"}],"transports":{"docker":{"reg.example":[]}}}`, `{"default":[{"type":"reject"}],"transports":{"docker":{"reg.example":null}}}`} {
		if p, err := signature.ParsePolicy([]byte(doc)); err == nil || !strings.Contains(err.Error(), "expected at least one requirement") {
			t.Errorf("%s: %v, %v", doc, p, err)
		}
	}
}

// The tag of a release names another image, with its own good signature for
// another tag.
func TestAttackTagSwapped(t *testing.T) {
	t.Parallel()
	k, pub := newKey(t)
	store, ref := imageAt(t, "reg.example/shop/web")
	payload := `{"critical":{"identity":{"docker-reference":"reg.example/shop/web:old"},"image":{"docker-manifest-digest":"` + string(ref.Digest) + `"},"type":"cosign container image signature"},"optional":null}`
	pushSignature(t, store, ref, payload, sigOf(t, k, []byte(payload)))
	s := signature.Subject{Ref: mustRef(t, "reg.example/shop/web:new"), Digests: []oci.Digest{ref.Digest}}
	refused(t, restricted(t, pub, `,"signedIdentity":{"type":"matchRepoDigestOrExact"}`), s, store, "it is for reg.example/shop/web:old, not for reg.example/shop/web:new")
	s.Ref.Tag = "old"
	accepted(t, restricted(t, pub, `,"signedIdentity":{"type":"matchRepoDigestOrExact"}`), s, store)
}

func sigOf(t testing.TB, k crypto.Signer, message []byte) string {
	t.Helper()
	sum := sha256.Sum256(message)
	sig, err := k.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(sig)
}

// Thousands of signatures cost a bounded number of requests.
func TestAttackThousandsOfSignatures(t *testing.T) {
	t.Parallel()
	_, pub := newKey(t)
	for _, n := range []int{100, 5000} {
		inner, ref := imageAt(t, "reg.example/shop/web")
		store := &counting{Layout: inner}
		payload := []byte(`{}`)
		l, err := oci.PushBytes(t.Context(), store, "application/vnd.dev.cosign.simplesigning.v1+json", payload)
		if err != nil {
			t.Fatal(err)
		}
		l.Annotations = map[string]string{"dev.cosignproject.cosign/signature": "AAAA"}
		m := oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: l}
		for range n {
			m.Layers = append(m.Layers, l)
		}
		data, _ := json.Marshal(m)
		d, err := oci.PushBytes(t.Context(), store, oci.MediaTypeManifest, data)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Tag(t.Context(), d, signature.Tag(ref.Digest)); err != nil {
			t.Fatal(err)
		}
		refused(t, restricted(t, pub, ""), subject(ref), store, "")
		if f := store.fetches.Load(); f > 70 {
			t.Errorf("%d signatures: %d were fetched", n, f)
		}
	}
	// Referrers: the index lists a thousand manifests.
	inner, ref := imageAt(t, "reg.example/shop/web")
	store := &counting{Layout: inner}
	config, _ := oci.PushBytes(t.Context(), store, oci.MediaTypeConfig, []byte("{}"))
	x := oci.Index{SchemaVersion: 2, MediaType: oci.MediaTypeIndex}
	for i := range 1000 {
		data, _ := json.Marshal(oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: config, Layers: []oci.Descriptor{}, Annotations: map[string]string{"n": fmt.Sprint(i)}})
		d, err := oci.PushBytes(t.Context(), store, oci.MediaTypeManifest, data)
		if err != nil {
			t.Fatal(err)
		}
		x.Manifests = append(x.Manifests, d)
	}
	data, _ := json.Marshal(x)
	d, _ := oci.PushBytes(t.Context(), store, oci.MediaTypeIndex, data)
	if err := store.Tag(t.Context(), d, "sha256-"+ref.Digest.Hex()); err != nil {
		t.Fatal(err)
	}
	refused(t, restricted(t, pub, ""), subject(ref), store, "there are more than the 64 that are looked at")
	if f := store.fetches.Load(); f > 70 {
		t.Errorf("%d were fetched", f)
	}
}

// A payload or a bundle of a gigabyte is not fetched, and does not keep a good
// signature beside it from counting.
func TestAttackHugePayload(t *testing.T) {
	t.Parallel()
	k, pub := newKey(t)
	inner, ref := imageAt(t, "reg.example/shop/web")
	store := &counting{Layout: inner}
	sign(t, store, ref, k)
	d, err := store.Resolve(t.Context(), ref.WithTag(signature.Tag(ref.Digest)))
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
	var huge []oci.Descriptor
	for _, mediaType := range []string{"application/vnd.dev.cosign.simplesigning.v1+json", "application/vnd.dev.sigstore.bundle.v0.3+json"} {
		huge = append(huge, oci.Descriptor{MediaType: mediaType, Digest: digestB, Size: 1 << 30, Annotations: m.Layers[0].Annotations})
	}
	retag := func(layers []oci.Descriptor) {
		m.Layers = layers
		data, _ := json.Marshal(m)
		if d, err = oci.PushBytes(t.Context(), store, oci.MediaTypeManifest, data); err != nil {
			t.Fatal(err)
		}
		if err := store.Tag(t.Context(), d, signature.Tag(ref.Digest)); err != nil {
			t.Fatal(err)
		}
	}
	good := m.Layers
	retag(append(huge, good...))
	accepted(t, restricted(t, pub, ""), subject(ref), store)
	retag(huge)
	refused(t, restricted(t, pub, ""), subject(ref), store, "1073741824 bytes, at most 65536 are allowed")
	if b := store.bytes.Load(); b > 64<<10 {
		t.Errorf("%d bytes were fetched", b)
	}
}

// Names that occur twice, which two readers could read differently.
func TestAttackDuplicateKeys(t *testing.T) {
	t.Parallel()
	k, pub := newKey(t)
	store, ref := imageAt(t, "reg.example/shop/web")
	payload := `{"critical":{"identity":{"docker-reference":"x"},"image":{"docker-manifest-digest":"` + string(digestB) + `","docker-manifest-digest":"` + string(ref.Digest) + `"},"type":"cosign container image signature"},"optional":null}`
	pushSignature(t, store, ref, payload, sigOf(t, k, []byte(payload)))
	refused(t, restricted(t, pub, ""), subject(ref), store, "the name occurs twice")
	statement := statementFor(ref.Digest)
	statement = strings.Replace(statement, `"subject"`, `"subject":[],"subject"`, 1)
	store, ref = imageAt(t, "reg.example/shop/web")
	pushBundle(t, store, ref, envelopeBundle(statement, sigOf(t, k, pae(statement))))
	refused(t, restricted(t, pub, ""), subject(ref), store, "the name occurs twice")
	store, ref = imageAt(t, "reg.example/shop/web")
	good := statementFor(ref.Digest)
	twice := strings.Replace(envelopeBundle(good, sigOf(t, k, pae(good))), `"payloadType"`, `"payload":"","payloadType"`, 1)
	pushBundle(t, store, ref, twice)
	refused(t, restricted(t, pub, ""), subject(ref), store, "the name occurs twice")
}

// Signatures taken for those of another algorithm, form or purpose.
func TestAttackAlgorithmConfusion(t *testing.T) {
	t.Parallel()
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]crypto.Signer{"P-256": p256, "P-384": p384, "Ed25519": ed, "RSA": rsaKey}
	for signer, k := range keys {
		store, ref := imageAt(t, "reg.example/shop/web")
		sign(t, store, ref, k)
		for name, other := range keys {
			if name != signer {
				refused(t, restricted(t, publicPEM(t, other), ""), subject(ref), store, "none of the image's 1 signatures")
			}
		}
	}
	pub := publicPEM(t, p256)
	// MD5 and SHA-1 under RSA, and the empty signature.
	store, ref := imageAt(t, "reg.example/shop/web")
	payload := `{"critical":{"identity":{"docker-reference":"x"},"image":{"docker-manifest-digest":"` + string(ref.Digest) + `"},"type":"cosign container image signature"},"optional":null}`
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.MD5, crypto.SHA512} {
		w := h.New()
		w.Write([]byte(payload))
		sig, err := rsaKey.Sign(rand.Reader, w.Sum(nil), h)
		if err != nil {
			t.Fatal(err)
		}
		pushSignature(t, store, ref, payload, base64.StdEncoding.EncodeToString(sig))
		refused(t, restricted(t, publicPEM(t, rsaKey), ""), subject(ref), store, "none of the image's 1 signatures")
	}
	// PSS is RSA as well.
	w := sha256.Sum256([]byte(payload))
	pss, err := rsaKey.Sign(rand.Reader, w[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	pushSignature(t, store, ref, payload, base64.StdEncoding.EncodeToString(pss))
	accepted(t, restricted(t, publicPEM(t, rsaKey), ""), subject(ref), store)
	// A statement's signature as that of a payload, and the other way round.
	statement := statementFor(ref.Digest)
	pushSignature(t, store, ref, string(pae(statement)), sigOf(t, p256, pae(statement)))
	refused(t, restricted(t, pub, ""), subject(ref), store, "payload: JSON")
	pushBundle(t, store, ref, envelopeBundle(payload, sigOf(t, p256, []byte(payload))))
	refused(t, restricted(t, pub, ""), subject(ref), store, "none of the image's 1 signatures")
	// A payload of simple signing, which OpenPGP keys sign, under cosign's key.
	atomicPayload := strings.Replace(payload, "cosign container image signature", "atomic container signature", 1)
	pushSignature(t, store, ref, atomicPayload, sigOf(t, p256, []byte(atomicPayload)))
	refused(t, restricted(t, pub, ""), subject(ref), store, "critical.type: expected")
}

// A bad signature, whatever is wrong with it and wherever it is, never keeps a
// good one from counting.
func TestAttackBadBesideGood(t *testing.T) {
	t.Parallel()
	k, pub := newKey(t)
	for name, spoil := range map[string]func(*layout.Layout, oci.Reference) error{
		"tag is no manifest": func(l *layout.Layout, ref oci.Reference) error {
			d, err := oci.PushBytes(t.Context(), l, "text/plain", []byte("x"))
			if err != nil {
				return err
			}
			return l.Tag(t.Context(), d, signature.Tag(ref.Digest))
		},
		"tag is an index": func(l *layout.Layout, ref oci.Reference) error {
			d, err := oci.PushBytes(t.Context(), l, oci.MediaTypeIndex, []byte(`{"schemaVersion":2,"mediaType":"`+oci.MediaTypeIndex+`","manifests":[]}`))
			if err != nil {
				return err
			}
			return l.Tag(t.Context(), d, signature.Tag(ref.Digest))
		},
		"payload is missing": func(l *layout.Layout, ref oci.Reference) error {
			data, _ := json.Marshal(oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: oci.Describe("x/y", nil), Layers: []oci.Descriptor{{
				MediaType: "application/vnd.dev.cosign.simplesigning.v1+json", Digest: digestB, Size: 3, Annotations: map[string]string{"dev.cosignproject.cosign/signature": "AAAA"},
			}}})
			d, err := oci.PushBytes(t.Context(), l, oci.MediaTypeManifest, data)
			if err != nil {
				return err
			}
			return l.Tag(t.Context(), d, signature.Tag(ref.Digest))
		},
		"not base64":     func(l *layout.Layout, ref oci.Reference) error { pushSignature(t, l, ref, "{}", "***"); return nil },
		"broken bundle":  func(l *layout.Layout, ref oci.Reference) error { pushBundle(t, l, ref, "{"); return nil },
		"another's good": func(l *layout.Layout, ref oci.Reference) error { moveSignature(t, l, ref, k, digestB); return nil },
	} {
		store, ref := imageAt(t, "reg.example/shop/web")
		if err := spoil(store, ref); err != nil {
			t.Fatal(err)
		}
		if _, err := restricted(t, pub, "").Verify(t.Context(), subject(ref), store, nil); err == nil {
			t.Errorf("%s: accepted without a good signature", name)
		}
		signBundle(t, store, ref, k)
		if v, err := restricted(t, pub, "").Verify(t.Context(), subject(ref), store, nil); err != nil {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
}

// What is asked for again for an image that is stored already.
func TestVerifyIsCheap(t *testing.T) {
	t.Parallel()
	k, pub := newKey(t)
	inner, ref := imageAt(t, "reg.example/shop/web")
	sign(t, inner, ref, k)
	store := &counting{Layout: inner}
	p := restricted(t, pub, "")
	for range 3 {
		store.fetches.Store(0)
		store.bytes.Store(0)
		accepted(t, p, subject(ref), store)
		if f, b := store.fetches.Load(), store.bytes.Load(); f != 2 || b > 4096 {
			t.Errorf("%d fetches of %d bytes", f, b)
		}
	}
}

// BenchmarkVerify is a whole check of a signature at the tag, without network.
func BenchmarkVerify(b *testing.B) {
	k, pub := newKey(b)
	store, ref := imageAt(b, "reg.example/shop/web")
	sign(b, store, ref, k)
	p := restricted(b, pub, "")
	for b.Loop() {
		if _, err := p.Verify(b.Context(), subject(ref), store, nil); err != nil {
			b.Fatal(err)
		}
	}
}
