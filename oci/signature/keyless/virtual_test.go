package keyless_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/oci/signature/keyless"
	"github.com/coffer-project/coffer/oci/signature/keyless/keylesstest"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// policy demands a keyless signature by who.
func policy(t testing.TB, s *keylesstest.Sigstore, who string) *signature.Policy {
	t.Helper()
	return parse(t, fmt.Sprintf(`{"type":"sigstoreSigned","fulcio":{"caData":%q,"oidcIssuer":%q,"subjectEmail":%q},"rekorPublicKeyData":%q}`, b64(s.Authority), issuer, who, b64(s.Log)))
}

func parse(t testing.TB, requirement string) *signature.Policy {
	t.Helper()
	p, err := signature.ParsePolicy([]byte(`{"default":[`+requirement+`]}`), signature.WithKeyless(keyless.New()))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func statementFor(d oci.Digest) []byte {
	return []byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"` + d.Hex() + `"}}],"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}`)
}

// put stores one layer as the signature image of ref.
func put(t testing.TB, ref oci.Reference, layer oci.Descriptor, data []byte) *layout.Layout {
	t.Helper()
	l, err := layout.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if err := l.Push(t.Context(), layer, strings.NewReader(string(data))); err != nil {
		t.Fatal(err)
	}
	config, err := oci.PushBytes(t.Context(), l, oci.MediaTypeConfig, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := json.Marshal(oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: config, Layers: []oci.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := oci.PushBytes(t.Context(), l, oci.MediaTypeManifest, m)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(t.Context(), d, signature.Tag(ref.Digest)); err != nil {
		t.Fatal(err)
	}
	return l
}

func putBundle(t testing.TB, ref oci.Reference, bundle []byte) *layout.Layout {
	t.Helper()
	return put(t, ref, oci.Describe("application/vnd.dev.sigstore.bundle.v0.3+json", bundle), bundle)
}

var digest = oci.FromBytes([]byte("image"))

func image(t testing.TB) (oci.Reference, signature.Subject) {
	t.Helper()
	ref, err := oci.ParseReference("reg.example/shop/web@" + string(digest))
	if err != nil {
		t.Fatal(err)
	}
	return ref, signature.Subject{Ref: ref, Digests: []oci.Digest{digest}}
}
