package signature_test

import (
	"crypto"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/signature"
)

func statementFor(d oci.Digest) string {
	return `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"` + d.Hex() + `"}}],"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}`
}

func pae(statement string) []byte {
	const payloadType = "application/vnd.in-toto+json"
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(statement), statement)
}

func envelopeBundle(statement, sig string) string {
	return `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"x"}},"dsseEnvelope":{"payload":"` +
		base64.StdEncoding.EncodeToString([]byte(statement)) + `","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"` + sig + `"}]}}`
}

// pushBundle writes a bundle as the only layer of the manifest at ref's
// signature tag, where bundles are read as well.
func pushBundle(t testing.TB, store *layout.Layout, ref oci.Reference, bundle string) {
	t.Helper()
	l, err := oci.PushBytes(t.Context(), store, "application/vnd.dev.sigstore.bundle.v0.3+json", []byte(bundle))
	if err != nil {
		t.Fatal(err)
	}
	config, err := oci.PushBytes(t.Context(), store, oci.MediaTypeConfig, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	data, _ := json.Marshal(oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: config, Layers: []oci.Descriptor{l}})
	d, err := oci.PushBytes(t.Context(), store, oci.MediaTypeManifest, data)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Tag(t.Context(), d, signature.Tag(ref.Digest)); err != nil {
		t.Fatal(err)
	}
}

// Bundles that verify under the key, or almost, and must not count.
func TestBundles(t *testing.T) {
	t.Parallel()
	k, pub := newKey(t)
	_, ref := imageAt(t, "reg.example/shop/web")
	good := statementFor(ref.Digest)
	signed := func(statement string) string {
		return envelopeBundle(statement, sigOf(t, k, pae(statement)))
	}
	rawDigest, _ := hex.DecodeString(ref.Digest.Hex())
	message := func(sig string) string {
		return `{"mediaType":"application/vnd.dev.sigstore.bundle+json;version=0.2","verificationMaterial":{"publicKey":{"hint":"x"}},"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":"` +
			base64.StdEncoding.EncodeToString(rawDigest) + `"},"signature":"` + sig + `"}}`
	}
	direct, err := k.Sign(rand.Reader, rawDigest, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ bundle, want string }{
		"good":              {signed(good), ""},
		"message signature": {message(base64.StdEncoding.EncodeToString(direct)), ""},
		"of another digest": {signed(statementFor(digestB)), "the signature is good, but for another image"},
		"attestation":       {signed(strings.Replace(good, "https://sigstore.dev/cosign/sign/v1", "https://slsa.dev/provenance/v1", 1)), "predicateType: expected https://sigstore.dev/cosign/sign/v1"},
		"other statement":   {signed(strings.Replace(good, "Statement/v1", "Statement/v0.1", 1)), "_type"},
		"no subject":        {signed(strings.Replace(good, `{"digest":{"sha256":"`+ref.Digest.Hex()+`"}}`, "", 1)), "subject: expected 1 to"},
		"payload, no PAE":   {envelopeBundle(good, sigOf(t, k, []byte(good))), "none of the image's 1 signatures verifies"},
		"other payload":     {strings.Replace(signed(good), base64.StdEncoding.EncodeToString([]byte(good)), base64.StdEncoding.EncodeToString([]byte(statementFor(digestB))), 1), "none of the image's 1"},
		"other type":        {strings.Replace(signed(good), "application/vnd.in-toto+json", "text/plain", 1), "payloadType"},
		"other version":     {strings.Replace(signed(good), "bundle.v0.3", "bundle.v9.9", 1), "mediaType: expected"},
		"two signatures":    {strings.Replace(signed(good), `{"sig":`, `{"sig":""},{"sig":`, 1), "signatures: expected one, got 2"},
		"no signature":      {strings.Replace(signed(good), `{"sig":"`, `{"sigg":"`, 1), "unknown field"},
		"two contents":      {strings.Replace(signed(good), `"dsseEnvelope"`, `"messageSignature":{"messageDigest":{"algorithm":"","digest":""},"signature":""},"dsseEnvelope"`, 1), "expected one of them"},
		"no material":       {strings.Replace(signed(good), `"publicKey":{"hint":"x"}`, ``, 1), "publicKey, certificate, x509CertificateChain"},
		"unknown field":     {strings.Replace(signed(good), `"dsseEnvelope"`, `"extra":1,"dsseEnvelope"`, 1), "unknown field"},
		"not JSON":          {"x", "sigstore bundle: JSON"},
		"wrong message":     {message(sigOf(t, k, []byte("x"))), "none of the image's 1"},
	} {
		store := newStore(t)
		pushBundle(t, store, ref, tt.bundle)
		_, err := restricted(t, pub, "").Verify(t.Context(), subject(ref), store, nil)
		if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
	}
}
