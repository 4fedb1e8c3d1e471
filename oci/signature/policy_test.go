package signature_test

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/signature"
)

// Every field of every type, and what stands against it.
func TestRequirements(t *testing.T) {
	t.Parallel()
	_, pub := newKey(t)
	key := keyData(pub)
	ca := keyData(newAuthority(t, time.Now()).pem)
	for name, tt := range map[string]struct{ requirement, want string }{
		"reject":             {`{"type":"reject"}`, ""},
		"reject with key":    {`{"type":"reject","keyPath":"kbs:///a/b/c"}`, "takes no other fields"},
		"signedBy path":      {`{"type":"signedBy","keyType":"GPGKeys","keyPath":"kbs:///a/b/c"}`, ""},
		"signedBy paths":     {`{"type":"signedBy","keyType":"GPGKeys","keyPaths":["kbs:///a/b/c","kbs://other/a/b/d"]}`, ""},
		"signedBy no type":   {`{"type":"signedBy","keyPath":"kbs:///a/b/c"}`, "keyType: expected GPGKeys"},
		"signedBy x509":      {`{"type":"signedBy","keyType":"X509Certificates","keyPath":"kbs:///a/b/c"}`, "keyType: expected GPGKeys"},
		"signedBy no key":    {`{"type":"signedBy","keyType":"GPGKeys"}`, "expected exactly one"},
		"signedBy two":       {`{"type":"signedBy","keyType":"GPGKeys","keyPath":"kbs:///a/b/c","keyPaths":["kbs:///a/b/c"]}`, "expected at most one"},
		"signedBy none":      {`{"type":"signedBy","keyType":"GPGKeys","keyPaths":[]}`, "expected 1 to 64 entries"},
		"signedBy bad data":  {`{"type":"signedBy","keyType":"GPGKeys","keyData":"eA=="}`, "keyData: OpenPGP keyring"},
		"signedBy datas":     {`{"type":"signedBy","keyType":"GPGKeys","keyDatas":["eA=="]}`, "keyDatas: not a field of signedBy"},
		"signedBy rekor":     {`{"type":"signedBy","keyType":"GPGKeys","keyPath":"kbs:///a/b/c","rekorPublicKeyData":"` + key + `"}`, "not fields of signedBy"},
		"paths":              {`{"type":"sigstoreSigned","keyPaths":["kbs:///a/b/c","kbs:///a/b/d"]}`, ""},
		"datas":              {`{"type":"sigstoreSigned","keyDatas":["` + key + `","` + key + `"]}`, ""},
		"empty path":         {`{"type":"sigstoreSigned","keyPaths":[""]}`, "keyPath: empty"},
		"file":               {`{"type":"sigstoreSigned","keyPaths":["/etc/key.pub"]}`, "expected kbs:///"},
		"keyType":            {`{"type":"sigstoreSigned","keyType":"GPGKeys","keyPath":"kbs:///a/b/c"}`, "keyType: not a field"},
		"rekor":              {`{"type":"sigstoreSigned","keyData":"` + key + `","rekorPublicKeyData":"` + key + `"}`, ""},
		"rekor path":         {`{"type":"sigstoreSigned","keyData":"` + key + `","rekorPublicKeyPath":"kbs:///a/b/c"}`, ""},
		"rekor paths":        {`{"type":"sigstoreSigned","keyData":"` + key + `","rekorPublicKeyPaths":["kbs:///a/b/c"]}`, ""},
		"rekor datas":        {`{"type":"sigstoreSigned","keyData":"` + key + `","rekorPublicKeyDatas":["` + key + `"]}`, ""},
		"rekor twice":        {`{"type":"sigstoreSigned","keyData":"` + key + `","rekorPublicKeyPath":"kbs:///a/b/c","rekorPublicKeyData":"` + key + `"}`, "expected at most one"},
		"rekor bad":          {`{"type":"sigstoreSigned","keyData":"` + key + `","rekorPublicKeyData":"eA=="}`, "rekorPublicKeyData: public key"},
		"key and fulcio":     {`{"type":"sigstoreSigned","keyData":"` + key + `","fulcio":{}}`, "expected exactly one of them"},
		"fulcio":             {`{"type":"sigstoreSigned","fulcio":{"caData":"` + ca + `","oidcIssuer":"https://i","subjectEmail":"a@b"},"rekorPublicKeyData":"` + key + `"}`, "nothing here verifies keyless signatures: name a trustee in initdata whose plugin keyless is on"},
		"fulcio no ca":       {`{"type":"sigstoreSigned","fulcio":{"oidcIssuer":"https://i","subjectEmail":"a@b"},"rekorPublicKeyData":"` + key + `"}`, "fulcio.caPath, fulcio.caData"},
		"fulcio no issuer":   {`{"type":"sigstoreSigned","fulcio":{"caData":"` + ca + `","subjectEmail":"a@b"},"rekorPublicKeyData":"` + key + `"}`, "fulcio.oidcIssuer: missing"},
		"fulcio no email":    {`{"type":"sigstoreSigned","fulcio":{"caData":"` + ca + `","oidcIssuer":"https://i"},"rekorPublicKeyData":"` + key + `"}`, "fulcio.subjectEmail: missing"},
		"fulcio no rekor":    {`{"type":"sigstoreSigned","fulcio":{"caData":"` + ca + `","oidcIssuer":"https://i","subjectEmail":"a@b"}}`, "rekorPublicKeyPath, rekorPublicKeyData: missing"},
		"fulcio unknown":     {`{"type":"sigstoreSigned","fulcio":{"ca":"x"}}`, "unknown field"},
		"pki":                {`{"type":"sigstoreSigned","pki":{"caRootsData":"` + ca + `","caIntermediatesData":"` + ca + `","subjectEmail":"a@b","subjectHostname":"h"}}`, ""},
		"pki paths":          {`{"type":"sigstoreSigned","pki":{"caRootsPath":"kbs:///a/b/c","caIntermediatesPath":"kbs:///a/b/d","subjectHostname":"h"}}`, ""},
		"pki no roots":       {`{"type":"sigstoreSigned","pki":{"subjectEmail":"a@b"}}`, "pki.caRootsPath, pki.caRootsData"},
		"pki two roots":      {`{"type":"sigstoreSigned","pki":{"caRootsData":"` + ca + `","caRootsPath":"kbs:///a/b/c","subjectEmail":"a@b"}}`, "at most one"},
		"pki nobody":         {`{"type":"sigstoreSigned","pki":{"caRootsData":"` + ca + `"}}`, "pki.subjectEmail, pki.subjectHostname"},
		"pki rekor":          {`{"type":"sigstoreSigned","pki":{"caRootsData":"` + ca + `","subjectEmail":"a@b"},"rekorPublicKeyData":"` + key + `"}`, "not fields of a requirement with pki"},
		"pki bad":            {`{"type":"sigstoreSigned","pki":{"caRootsData":"eA==","subjectEmail":"a@b"}}`, "certificates: expected PEM"},
		"remap":              {`{"type":"sigstoreSigned","keyData":"` + key + `","signedIdentity":{"type":"remapIdentity","prefix":"m.example:5000/x","signedPrefix":"docker.io/library"}}`, ""},
		"remap short":        {`{"type":"sigstoreSigned","keyData":"` + key + `","signedIdentity":{"type":"remapIdentity","prefix":"busybox","signedPrefix":"docker.io/library"}}`, "signedIdentity.prefix: expected REGISTRY"},
		"remap tag":          {`{"type":"sigstoreSigned","keyData":"` + key + `","signedIdentity":{"type":"remapIdentity","prefix":"m.example/a:1","signedPrefix":"docker.io/library"}}`, "signedIdentity.prefix"},
		"repository tag":     {`{"type":"sigstoreSigned","keyData":"` + key + `","signedIdentity":{"type":"exactRepository","dockerRepository":"a.example/b:1"}}`, "expected no tag"},
		"reference no tag":   {`{"type":"sigstoreSigned","keyData":"` + key + `","signedIdentity":{"type":"exactReference","dockerReference":"a.example/b"}}`, "expected a tag or a digest"},
		"identity of reject": {`{"type":"insecureAcceptAnything","signedIdentity":{"type":"matchExact"}}`, "takes no other fields"},
	} {
		_, err := signature.ParsePolicy([]byte(`{"default":[`+tt.requirement+`]}`), signature.WithLookaside(fixed{}))
		if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
	}
}

// Scopes and transports that could never match are errors.
func TestScopeForms(t *testing.T) {
	t.Parallel()
	for scope, want := range map[string]string{
		"": "", "reg.example": "", "reg.example:5000": "", "localhost": "", "localhost/a": "", "reg.example/a/b": "", "reg.example/a:1": "", "docker.io": "", "docker.io/openshift": "",
		"docker.io/library/busybox:latest": "", "reg.example/a@" + string(digestA): "", "*.example.com": "", "*.com": "", "127.0.0.1:5000/a": "",
		"busybox": "fully expanded form, as in docker.io/busybox", "index.docker.io/a": "fully expanded form", "myhost/a": "fully expanded form", "docker.io/busybox:1": "fully expanded form",
		"example*.com": "a wildcard stands for subdomains", "*.a.*.com": "expected a wildcard", "*.example.com/a": "expected a wildcard", "*.example.com:5000": "expected a wildcard", "*": "a wildcard",
		"reg.example/A": "expected", "reg.example/": "expected", "https://reg.example": "expected", "REG.example": "fully expanded form",
	} {
		doc, _ := json.Marshal(map[string]any{"default": []any{map[string]string{"type": "reject"}}, "transports": map[string]any{"docker": map[string]any{scope: []any{map[string]string{"type": "reject"}}}}})
		_, err := signature.ParsePolicy(doc)
		if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: want %q, got %v", scope, want, err)
		}
	}
	for _, transport := range []string{"atomic", "containers-storage", "dir", "docker-daemon", "oci", "oci-archive", "tarball"} {
		if _, err := signature.ParsePolicy([]byte(`{"default":[{"type":"reject"}],"transports":{"` + transport + `":{"/any/thing":[{"type":"reject"}]}}}`)); err != nil {
			t.Error(err)
		}
	}
	if _, err := signature.ParsePolicy([]byte(`{"default":[{"type":"reject"}],"transports":{"dockr":{"":[{"type":"reject"}]}}}`)); err == nil || !strings.Contains(err.Error(), `got "dockr"`) {
		t.Error(err)
	}
}

// A port makes another registry, except for wildcards.
func TestScopePorts(t *testing.T) {
	t.Parallel()
	p, err := signature.ParsePolicy([]byte(`{"default":[{"type":"reject"}],"transports":{"docker":{"reg.example":[{"type":"insecureAcceptAnything"}],"*.wild.example":[{"type":"insecureAcceptAnything"}]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for ref, ok := range map[string]bool{"reg.example/a": true, "reg.example:5000/a": false, "a.wild.example:5000/a": true} {
		if _, err := p.Verify(t.Context(), signature.Subject{Ref: mustRef(t, ref), Digests: []oci.Digest{digestA}}, newStore(t), nil); (err == nil) != ok {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

// Which identities match which images (containers-policy.json(5)).
func TestIdentities(t *testing.T) {
	t.Parallel()
	k, pub := newKey(t)
	byDigest := "@" + string(digestA)
	remap := `{"type":"remapIdentity","prefix":"m.example/x","signedPrefix":"up.example"}`
	for _, tt := range []struct {
		identity, image, signed string
		ok                      bool
	}{
		{`{"type":"matchExact"}`, "r.example/a:1", "r.example/a:1", true},
		{`{"type":"matchExact"}`, "r.example/a:1", "r.example/a:2", false},
		{`{"type":"matchExact"}`, "r.example/a", "r.example/a:latest", true},
		{`{"type":"matchExact"}`, "r.example/a", "r.example/a", false},
		{`{"type":"matchExact"}`, "r.example/a" + byDigest, "r.example/a:1", false},
		{`{"type":"matchExact"}`, "r.example/a" + byDigest, "r.example/a" + byDigest, true},
		{`{"type":"matchExact"}`, "r.example/a:1" + byDigest, "r.example/a:1", true},
		{`{"type":"matchRepoDigestOrExact"}`, "r.example/a" + byDigest, "r.example/a:1", true},
		{`{"type":"matchRepoDigestOrExact"}`, "r.example/a:1", "r.example/a:2", false},
		{`{"type":"matchRepoDigestOrExact"}`, "r.example/a:1", "r.example/a:1", true},
		{`{"type":"matchRepoDigestOrExact"}`, "r.example/a" + byDigest, "r.example/b:1", false},
		{`{"type":"matchRepository"}`, "r.example/a:1", "r.example/a", true},
		{`{"type":"matchRepository"}`, "r.example/a:1", "r.example/a/b", false},
		{`{"type":"matchRepository"}`, "busybox:1", "index.docker.io/library/busybox", true},
		{`{"type":"exactReference","dockerReference":"up.example/a:1"}`, "r.example/a:2", "up.example/a:1", true},
		{`{"type":"exactReference","dockerReference":"up.example/a:1"}`, "r.example/a:2", "up.example/a:2", false},
		{`{"type":"exactRepository","dockerRepository":"up.example/a"}`, "r.example/a:2", "up.example/a:9", true},
		{`{"type":"exactRepository","dockerRepository":"up.example/a"}`, "r.example/a:2", "r.example/a:2", false},
		{remap, "m.example/x/a:1", "up.example/a:1", true},
		{remap, "m.example/x/a:1", "up.example/a:2", false},
		{remap, "m.example/x/a" + byDigest, "up.example/a:2", true},
		{remap, "m.example/xy/a:1", "up.exampley/a:1", false},
		{remap, "other.example/a:1", "other.example/a:1", true},
		{`{"type":"matchRepository"}`, "r.example/a:1", "", false},
		{`{"type":"matchRepository"}`, "r.example/a:1", "::", false},
	} {
		store := newStore(t)
		payload := fmt.Sprintf(`{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, tt.signed, digestA)
		image := mustRef(t, tt.image)
		pushSignature(t, store, image.WithDigest(digestA), payload, sigOf(t, k, []byte(payload)))
		p, err := signature.ParsePolicy([]byte(`{"default":[{"type":"sigstoreSigned","keyData":"` + keyData(pub) + `","signedIdentity":` + tt.identity + `}]}`))
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Verify(t.Context(), signature.Subject{Ref: image, Digests: []oci.Digest{digestA}}, store, nil)
		if (err == nil) != tt.ok {
			t.Errorf("%s: %s signed as %q: %v", tt.identity, tt.image, tt.signed, err)
		}
	}
}

// Several keys: any will do. Several requirements: all must be met.
func TestSeveral(t *testing.T) {
	t.Parallel()
	vendor, vendorPEM := newKey(t)
	reviewer, reviewerPEM := newKey(t)
	store, ref := imageAt(t, "reg.example/shop/web")
	signBundle(t, store, ref, vendor)
	keys := keyMap{"kbs:///k/vendor/1": vendorPEM, "kbs:///k/reviewer/1": reviewerPEM}
	any := policyFor(t, `{"type":"sigstoreSigned","keyPaths":["kbs:///k/reviewer/1","kbs:///k/vendor/1"]}`)
	both := policyFor(t, `{"type":"sigstoreSigned","keyPath":"kbs:///k/vendor/1"},{"type":"sigstoreSigned","keyDatas":["`+keyData(reviewerPEM)+`"]}`)
	if _, err := any.Verify(t.Context(), subject(ref), store, keys); err != nil {
		t.Error(err)
	}
	if _, err := both.Verify(t.Context(), subject(ref), store, keys); err == nil || !strings.Contains(err.Error(), "requirement 1:") {
		t.Error(err)
	}
	sign(t, store, ref, reviewer) // in the other form
	v, err := both.Verify(t.Context(), subject(ref), store, keys)
	if err != nil || !strings.HasPrefix(v.Found, "tag ") {
		t.Errorf("%+v, %v", v, err)
	}
	v, err = policyFor(t, `{"type":"sigstoreSigned","keyPath":"kbs:///k/vendor/1"},{"type":"insecureAcceptAnything"}`).Verify(t.Context(), subject(ref), store, keys)
	if err != nil || v.Requirement != "sigstoreSigned" || v.KeyID == "" {
		t.Errorf("%+v, %v", v, err)
	}
}

// Keys in files, for the owner's own machine.
func TestFiles(t *testing.T) {
	t.Parallel()
	k, pub := newKey(t)
	store, ref := imageAt(t, "reg.example/shop/web")
	sign(t, store, ref, k)
	name := filepath.Join(t.TempDir(), "key.pub")
	write(t, name, string(pub))
	for path, want := range map[string]string{name: "", "file://" + name: "", "kbs:///k/e/y": "there is no trustee", name + "x": "no such file"} {
		p, err := signature.ParsePolicy([]byte(`{"default":[{"type":"sigstoreSigned","keyPath":"`+path+`"}]}`), signature.WithFiles())
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Verify(t.Context(), subject(ref), store, signature.Files(nil))
		if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: want %q, got %v", path, want, err)
		}
	}
	p := policyFor(t, `{"type":"sigstoreSigned","keyPath":"kbs:///k/e/y"}`)
	if _, err := p.Verify(t.Context(), subject(ref), store, signature.Files(keyMap{"kbs:///k/e/y": pub})); err != nil {
		t.Error(err)
	}
}

// A key with a log: the entry in cosign's annotation has to be of that log, of
// that key and of that signature.
func TestKeyWithLog(t *testing.T) {
	t.Parallel()
	k, pub := newKey(t)
	logKey, logPEM := newKey(t)
	_, otherPEM := newKey(t)
	_, ref := imageAt(t, "reg.example/shop/web")
	payload := fmt.Sprintf(`{"critical":{"identity":{"docker-reference":"reg.example/shop/web"},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, ref.Digest)
	sig := sigOf(t, k, []byte(payload))
	body := func(sig string, public []byte, content string) string {
		return fmt.Sprintf(`{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"hash":{"algorithm":"sha256","value":"%x"}},"signature":{"content":%q,"publicKey":{"content":%q}}}}`,
			sha256.Sum256([]byte(content)), sig, base64.StdEncoding.EncodeToString(public))
	}
	for name, tt := range map[string]struct{ log, want string }{
		"good":              {entryBy(t, logKey, body(sig, pub, payload)), ""},
		"none":              {"", "no entry of a transparency log came with it"},
		"another signature": {entryBy(t, logKey, body(sigOf(t, k, []byte(payload)), pub, payload)), "it is for another signature"},
		"another key":       {entryBy(t, logKey, body(sig, otherPEM, payload)), "it is for another signature"},
		"another payload":   {entryBy(t, logKey, body(sig, pub, "x")), "it is for another signature"},
		"another log":       {entryBy(t, k, body(sig, pub, payload)), "not of the pinned one"},
		"another kind":      {entryBy(t, logKey, strings.Replace(body(sig, pub, payload), "hashedrekord", "rekord", 1)), "expected hashedrekord"},
		"later":             {strings.Replace(entryBy(t, logKey, body(sig, pub, payload)), `"integratedTime":1700000000`, `"integratedTime":1700000001`, 1), "does not verify under the pinned key of the log"},
		"broken":            {"{", "annotation dev.sigstore.cosign/bundle"},
	} {
		l := newStore(t)
		d := oci.Describe("application/vnd.dev.cosign.simplesigning.v1+json", []byte(payload))
		if err := l.Push(t.Context(), d, strings.NewReader(payload)); err != nil {
			t.Fatal(err)
		}
		d.Annotations = map[string]string{"dev.cosignproject.cosign/signature": sig}
		if tt.log != "" {
			d.Annotations["dev.sigstore.cosign/bundle"] = tt.log
		}
		config, _ := oci.PushBytes(t.Context(), l, oci.MediaTypeConfig, []byte("{}"))
		data, _ := json.Marshal(oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: config, Layers: []oci.Descriptor{d}})
		m, _ := oci.PushBytes(t.Context(), l, oci.MediaTypeManifest, data)
		if err := l.Tag(t.Context(), m, signature.Tag(ref.Digest)); err != nil {
			t.Fatal(err)
		}
		_, err := restricted(t, pub, `,"rekorPublicKeyDatas":["`+keyData(otherPEM)+`","`+keyData(logPEM)+`"]`).Verify(t.Context(), subject(ref), l, nil)
		if (err == nil) != (tt.want == "") || (err != nil && !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: want %q, got %v", name, tt.want, err)
		}
	}
}

// entryBy is cosign's annotation of an entry that a log signed.
func entryBy(t testing.TB, log crypto.Signer, body string) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(log.Public())
	if err != nil {
		t.Fatal(err)
	}
	payload := fmt.Sprintf(`{"body":%q,"integratedTime":1700000000,"logID":"%x","logIndex":7}`, base64.StdEncoding.EncodeToString([]byte(body)), sha256.Sum256(der))
	return `{"SignedEntryTimestamp":"` + sigOf(t, log, []byte(payload)) + `","Payload":` + payload + `}`
}
