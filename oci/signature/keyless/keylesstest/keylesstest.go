// Package keylesstest is a virtual Fulcio and Rekor for tests, and writes its
// signatures as bundles.
package keylesstest

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"google.golang.org/protobuf/encoding/protojson"
)

// TB is what of a testing.TB is used.
type TB interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// Sigstore is a virtual Fulcio and Rekor, and what a policy pins of it.
type Sigstore struct {
	*ca.VirtualSigstore
	// Authority are the certificate authority's certificates in PEM, Log is the
	// transparency log's public key.
	Authority, Log string
}

// New makes one, with keys of its own.
func New(t TB) *Sigstore {
	t.Helper()
	v, err := ca.NewVirtualSigstore()
	if err != nil {
		t.Fatal(err)
	}
	s := &Sigstore{VirtualSigstore: v}
	for _, a := range v.FulcioCertificateAuthorities() {
		f, ok := a.(*root.FulcioCertificateAuthority)
		if !ok {
			t.Fatalf("%T", a)
		}
		for _, c := range append(f.Intermediates, f.Root) {
			s.Authority += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
		}
	}
	for _, l := range v.RekorLogs() {
		der, err := x509.MarshalPKIXPublicKey(l.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		s.Log = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	return s
}

// Entry is the log entry of a virtual signature, with what the log signed.
func (s *Sigstore) Entry(t TB, e *ca.TestEntity, kind string) *protorekor.TransparencyLogEntry {
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

// BundleOf writes a virtual signature as a bundle.
func (s *Sigstore) BundleOf(t TB, e *ca.TestEntity) []byte {
	t.Helper()
	v, err := e.VerificationContent()
	if err != nil {
		t.Fatal(err)
	}
	b := &protobundle.Bundle{
		MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content:     &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: v.Certificate().Raw}},
			TlogEntries: []*protorekor.TransparencyLogEntry{s.Entry(t, e, "dsse")},
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
