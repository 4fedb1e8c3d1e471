package keyless_test

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/oci/signature/keyless"
)

// sigstore is a virtual Fulcio and Rekor, and what a policy pins of it.
type sigstore struct {
	*ca.VirtualSigstore
	authority, log string
}

func newSigstore(t testing.TB) *sigstore {
	t.Helper()
	v, err := ca.NewVirtualSigstore()
	if err != nil {
		t.Fatal(err)
	}
	s := &sigstore{VirtualSigstore: v}
	for _, a := range v.FulcioCertificateAuthorities() {
		f, ok := a.(*root.FulcioCertificateAuthority)
		if !ok {
			t.Fatalf("%T", a)
		}
		for _, c := range append(f.Intermediates, f.Root) {
			s.authority += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
		}
	}
	for _, l := range v.RekorLogs() {
		der, err := x509.MarshalPKIXPublicKey(l.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		s.log = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	return s
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// policy demands a keyless signature by who.
func (s *sigstore) policy(t testing.TB, who string) *signature.Policy {
	t.Helper()
	return parse(t, fmt.Sprintf(`{"type":"sigstoreSigned","fulcio":{"caData":%q,"oidcIssuer":%q,"subjectEmail":%q},"rekorPublicKeyData":%q}`, b64(s.authority), issuer, who, b64(s.log)))
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

// entry is the log entry of a virtual signature, with what the log signed.
func (s *sigstore) entry(t testing.TB, e *ca.TestEntity, kind string) *protorekor.TransparencyLogEntry {
	t.Helper()
	entries, err := e.TlogEntries()
	if err != nil {
		t.Fatal(err)
	}
	out := entries[0].TransparencyLogEntry()
	if out.GetKindVersion() != nil {
		return out // version 2, which signs nothing else
	}
	out.KindVersion = &protorekor.KindVersion{Kind: kind, Version: "0.0.1"}
	set, err := s.RekorSignPayload(tlog.RekorPayload{
		Body: base64.StdEncoding.EncodeToString(out.GetCanonicalizedBody()), IntegratedTime: out.GetIntegratedTime(), LogIndex: out.GetLogIndex(), LogID: hex.EncodeToString(out.GetLogId().GetKeyId()),
	})
	if err != nil {
		t.Fatal(err)
	}
	out.InclusionPromise = &protorekor.InclusionPromise{SignedEntryTimestamp: set}
	return out
}

// bundleOf writes a virtual signature as a bundle.
func (s *sigstore) bundleOf(t testing.TB, e *ca.TestEntity) []byte {
	t.Helper()
	v, err := e.VerificationContent()
	if err != nil {
		t.Fatal(err)
	}
	b := &protobundle.Bundle{
		MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content:     &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: v.Certificate().Raw}},
			TlogEntries: []*protorekor.TransparencyLogEntry{s.entry(t, e, "dsse")},
		},
	}
	content, err := e.SignatureContent()
	if err != nil {
		t.Fatal(err)
	}
	env := content.EnvelopeContent().RawEnvelope()
	payload, err := base64.StdEncoding.DecodeString(env.Payload)
	if err != nil {
		t.Fatal(err)
	}
	b.Content = &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
		Payload: payload, PayloadType: env.PayloadType, Signatures: []*protodsse.Signature{{Sig: content.Signature()}},
	}}
	data, err := protojson.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return data
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
