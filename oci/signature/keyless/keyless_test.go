package keyless_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/testing/ca"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/oci/signature/keyless"
	"github.com/coffer-project/coffer/oci/signature/keyless/keylesstest"
)

const (
	issuer = "https://accounts.example.com"
	email  = "release@example.com"
)

func check(t *testing.T, name string, p *signature.Policy, s signature.Subject, f oci.Fetcher, want string) {
	t.Helper()
	v, err := p.Verify(t.Context(), s, f, nil)
	if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
		t.Errorf("%s: want %q, got %+v, %v", name, want, v, err)
	}
}

// Bundles of a virtual sigstore.
func TestBundles(t *testing.T) {
	t.Parallel()
	s, other := keylesstest.New(t), keylesstest.New(t)
	ref, subject := image(t)
	now := time.Now().Add(5 * time.Minute)
	attest := func(v *keylesstest.Sigstore, who, by string, statement []byte, at time.Time) *layout.Layout {
		e, err := v.AttestAtTime(who, by, statement, at, true)
		if err != nil {
			t.Fatal(err)
		}
		return putBundle(t, ref, v.BundleOf(t, e))
	}
	mixed := &keylesstest.Sigstore{Authority: s.Authority, Log: other.Log}
	good := statementFor(digest)
	for name, tt := range map[string]struct {
		store  *layout.Layout
		policy *signature.Policy
		want   string
	}{
		"good":              {attest(s, email, issuer, good, now), policy(t, s, email), ""},
		"another person":    {attest(s, "mallory@example.com", issuer, good, now), policy(t, s, email), "keyless:"},
		"another issuer":    {attest(s, email, "https://evil.example.com", good, now), policy(t, s, email), "keyless:"},
		"another authority": {attest(other, email, issuer, good, now), policy(t, s, email), "keyless:"},
		"another log":       {attest(s, email, issuer, good, now), policy(t, mixed, email), "keyless:"},
		"another image":     {attest(s, email, issuer, statementFor(oci.FromBytes([]byte("x"))), now), policy(t, s, email), "for another image"},
		"attestation":       {attest(s, email, issuer, []byte(strings.Replace(string(good), "cosign/sign", "cosign/else", 1)), now), policy(t, s, email), "predicateType"},
	} {
		check(t, name, tt.policy, subject, tt.store, tt.want)
	}
	e, err := s.AttestAtTime(email, issuer, good, now, true)
	if err != nil {
		t.Fatal(err)
	}
	changed := s.BundleOf(t, e)
	other2, err := s.AttestAtTime(email, issuer, good, now, true)
	if err != nil {
		t.Fatal(err)
	}
	var a, b map[string]json.RawMessage
	if err := json.Unmarshal(changed, &a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(s.BundleOf(t, other2), &b); err != nil {
		t.Fatal(err)
	}
	a["verificationMaterial"] = b["verificationMaterial"]
	swapped, _ := json.Marshal(a)
	check(t, "another's material", policy(t, s, email), subject, putBundle(t, ref, swapped), "keyless:")
}

// TestAttackExpiredCertificate: the certificate had expired, or was not valid
// yet, when the log took the signature in.
func TestAttackExpiredCertificate(t *testing.T) {
	t.Parallel()
	s := keylesstest.New(t)
	ref, subject := image(t)
	for name, at := range map[string]time.Duration{"later": 24 * time.Hour, "earlier": -24 * time.Hour} {
		e, err := s.AttestAtTime(email, issuer, statementFor(digest), time.Now().Add(at), true)
		if err != nil {
			t.Fatal(err)
		}
		check(t, name, policy(t, s, email), subject, putBundle(t, ref, s.BundleOf(t, e)), "keyless:")
	}
}

// The older form: certificate, chain and log entry in annotations.
func TestAnnotations(t *testing.T) {
	t.Parallel()
	s := keylesstest.New(t)
	ref, subject := image(t)
	payload := []byte(`{"critical":{"identity":{"docker-reference":"reg.example/shop/web"},"image":{"docker-manifest-digest":"` + string(digest) + `"},"type":"cosign container image signature"},"optional":null}`)
	e, err := s.SignAtTime(email, issuer, payload, time.Now().Add(5*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	v, _ := e.VerificationContent()
	content, _ := e.SignatureContent()
	entry := s.Entry(t, e, "hashedrekord")
	bundle, err := json.Marshal(map[string]any{
		"SignedEntryTimestamp": entry.GetInclusionPromise().GetSignedEntryTimestamp(),
		"Payload": map[string]any{"body": entry.GetCanonicalizedBody(), "integratedTime": entry.GetIntegratedTime(), "logIndex": entry.GetLogIndex(),
			"logID": hex.EncodeToString(entry.GetLogId().GetKeyId())},
	})
	if err != nil {
		t.Fatal(err)
	}
	good := map[string]string{
		"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(content.Signature()),
		"dev.sigstore.cosign/certificate":    string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.Certificate().Raw})),
		"dev.sigstore.cosign/chain":          s.Authority,
		"dev.sigstore.cosign/bundle":         string(bundle),
	}
	blocks := strings.SplitAfter(s.Authority, "-----END CERTIFICATE-----\n")
	rootOnly := &keylesstest.Sigstore{Authority: blocks[len(blocks)-2], Log: s.Log}
	without := func(name string) map[string]string {
		out := map[string]string{}
		for k, v := range good {
			if k != name {
				out[k] = v
			}
		}
		return out
	}
	for name, tt := range map[string]struct {
		annotations map[string]string
		payload     []byte
		policy      *signature.Policy
		want        string
	}{
		"good":           {good, payload, policy(t, s, email), ""},
		"root pinned":    {good, payload, policy(t, rootOnly, email), ""},
		"no chain":       {without("dev.sigstore.cosign/chain"), payload, policy(t, rootOnly, email), "keyless:"},
		"chain pinned":   {without("dev.sigstore.cosign/chain"), payload, policy(t, s, email), ""},
		"no certificate": {without("dev.sigstore.cosign/certificate"), payload, policy(t, s, email), ""},
		"no log":         {without("dev.sigstore.cosign/bundle"), payload, policy(t, s, email), "no entry of a transparency log"},
		"other payload":  {good, []byte(strings.Replace(string(payload), "shop/web", "shop/db", 1)), policy(t, s, email), "keyless:"},
		"another person": {good, payload, policy(t, s, "root@example.com"), "keyless:"},
	} {
		if name == "no certificate" {
			tt.want = "keyless:" // the chain's first certificate is then the leaf, which is the authority's
		}
		layer := oci.Describe("application/vnd.dev.cosign.simplesigning.v1+json", tt.payload)
		layer.Annotations = tt.annotations
		check(t, name, tt.policy, subject, put(t, ref, layer, tt.payload), tt.want)
	}
}

// What Rekor's own code makes of an entry, checked by our verifier with the
// certificate's key pinned: kinds dsse 0.0.1 and hashedrekord 0.0.2.
func TestPinnedKeyWithRealEntries(t *testing.T) {
	t.Parallel()
	s, other := keylesstest.New(t), keylesstest.New(t)
	ref, subject := image(t)
	one, err := s.AttestAtTime(email, issuer, statementFor(digest), time.Now().Add(5*time.Minute), true)
	if err != nil {
		t.Fatal(err)
	}
	two, err := s.AttestHashedRekordV2(email, issuer, statementFor(digest))
	if err != nil {
		t.Fatal(err)
	}
	for name, e := range map[string]*ca.TestEntity{"dsse 0.0.1": one, "hashedrekord 0.0.2": two} {
		v, _ := e.VerificationContent()
		key := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: v.Certificate().RawSubjectPublicKeyInfo})
		store := putBundle(t, ref, s.BundleOf(t, e))
		for who, tt := range map[string]struct{ log, want string }{"its log": {s.Log, ""}, "another log": {other.Log, "is in no transparency log that the policy names"}} {
			p := parse(t, fmt.Sprintf(`{"type":"sigstoreSigned","keyData":%q,"rekorPublicKeyData":%q}`, b64(string(key)), b64(tt.log)))
			check(t, name+", "+who, p, subject, store, tt.want)
		}
	}
}

// A published bundle of the public sigstore, by its pinned roots and offline.
// It was signed by a workflow and not by a person, and is about a package by its
// sha512, so that no policy for images accepts it; but log, time and
// certificate are as they should be, and under other roots they are not.
func TestPublished(t *testing.T) {
	t.Parallel()
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join("..", "testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	in := signature.KeylessSignature{Bundle: read("intoto-bundle-v0.1.json"), ArtifactSHA256: make([]byte, 32)}
	good := signature.KeylessTrust{CACertificates: read("fulcio-public-good.pem"), OIDCIssuer: issuer, SubjectEmail: email, LogKeys: [][]byte{read("rekor-public-good.pem")}}
	otherCA, otherLog := good, good
	otherCA.CACertificates = []byte(keylesstest.New(t).Authority)
	otherLog.LogKeys = [][]byte{read("rekor-scaffolding.pem")}
	for want, trust := range map[string]signature.KeylessTrust{"artifact digest": good, "leaf certificate": otherCA, "log entries": otherLog} {
		_, err := keyless.New().Verify(t.Context(), in, trust)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// What a policy could give that is no trust at all.
func TestBadTrust(t *testing.T) {
	t.Parallel()
	s := keylesstest.New(t)
	e, err := s.AttestAtTime(email, issuer, statementFor(digest), time.Now().Add(5*time.Minute), true)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("image"))
	good := signature.KeylessTrust{CACertificates: []byte(s.Authority), OIDCIssuer: issuer, SubjectEmail: email, LogKeys: [][]byte{[]byte(s.Log)}}
	in := signature.KeylessSignature{Bundle: s.BundleOf(t, e), ArtifactSHA256: sum[:]}
	if _, err := keyless.New().Verify(t.Context(), in, good); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*signature.KeylessTrust){
		"no authority": func(t *signature.KeylessTrust) { t.CACertificates = nil },
		"no log":       func(t *signature.KeylessTrust) { t.LogKeys = nil },
		"bad log":      func(t *signature.KeylessTrust) { t.LogKeys = [][]byte{[]byte("x")} },
		"no issuer":    func(t *signature.KeylessTrust) { t.OIDCIssuer = "" },
		"no email":     func(t *signature.KeylessTrust) { t.SubjectEmail = "" },
	} {
		trust := good
		spoil(&trust)
		if _, err := keyless.New().Verify(t.Context(), in, trust); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	in.ArtifactSHA256 = make([]byte, 32)
	if _, err := keyless.New().Verify(t.Context(), in, good); err == nil {
		t.Error("another artifact was accepted")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := keyless.New().Verify(ctx, in, good); err == nil {
		t.Error("a cancelled context was ignored")
	}
}
