package tpmverify_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/teetest"
	"github.com/coffer-project/coffer/tee/tpm"
	"github.com/coffer-project/coffer/tee/tpm/tpmverify"
)

func TestCertificates(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	ca, ak := ecKey(t, elliptic.P384()), ecKey(t, elliptic.P256())
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now, NotAfter: now.AddDate(1, 0, 0), BasicConstraintsValid: true}
	}
	issue := func(c, parent *x509.Certificate, public any, by *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, c, parent, public, by)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	root := template("TPM authority")
	root.IsCA, root.KeyUsage = true, x509.KeyUsageCertSign
	rootDER := issue(root, root, ca.Public(), ca)
	// A TPM's certificate has a critical alternative name that Go does not read.
	alternative := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: directoryName(t)}
	leaf := template("attestation key")
	leaf.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 3}}
	leaf.ExtraExtensions = []pkix.Extension{alternative}
	good := issue(leaf, root, ak.Public(), ca)
	plain := template("endorsement key")
	plain.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}
	noAK := issue(plain, root, ak.Public(), ca)
	isCA := *leaf
	isCA.IsCA = true
	authority := issue(&isCA, root, ak.Public(), ca)
	otherKey := issue(leaf, root, ca.Public(), ca)
	otherRoot := issue(leaf, leaf, ak.Public(), ak)

	// Anybody can make a certificate of a key that takes very long to use.
	huge := template("TPM authority")
	huge.IsCA, huge.KeyUsage = true, x509.KeyUsageCertSign
	n := new(big.Int).SetBit(big.NewInt(1), 60_000, 1)
	slow := issue(huge, root, &rsa.PublicKey{N: n, E: 1<<31 - 1}, ca)

	raw := signer{ak, tpm.AlgECDSA, tpm.AlgSHA256}.evidence(t, nil)
	for name, c := range map[string]struct {
		chain  [][]byte
		at     time.Time
		checks []string
	}{
		"good":             {[][]byte{good}, now, nil},
		"with the root":    {[][]byte{good, rootDER}, now, nil},
		"in a loop":        {[][]byte{good, good, rootDER, rootDER}, now, nil},
		"none":             {nil, now, []string{"tpm.ak"}},
		"expired":          {[][]byte{good}, now.AddDate(2, 0, 0), []string{"tpm.ak_certificate", "tpm.ak"}},
		"not yet valid":    {[][]byte{good}, now.AddDate(-1, 0, 0), []string{"tpm.ak_certificate", "tpm.ak"}},
		"endorsement key":  {[][]byte{noAK}, now, []string{"tpm.ak_certificate", "tpm.ak"}},
		"authority":        {[][]byte{authority}, now, []string{"tpm.ak_certificate", "tpm.ak"}},
		"another key":      {[][]byte{otherKey}, now, []string{"tpm.ak_certificate", "tpm.ak"}},
		"another root":     {[][]byte{otherRoot}, now, []string{"tpm.ak_certificate", "tpm.ak"}},
		"no certificate":   {[][]byte{{1, 2, 3}}, now, []string{"tpm.ak_certificate", "tpm.ak"}},
		"more behind":      {[][]byte{append(bytes.Clone(good), 0)}, now, []string{"tpm.ak_certificate", "tpm.ak"}},
		"enormous key":     {[][]byte{good, slow}, now, []string{"tpm.ak_certificate", "tpm.ak"}},
		"root as the leaf": {[][]byte{rootDER}, now, []string{"tpm.ak_certificate", "tpm.ak"}},
	} {
		v := verifier(t, tpmverify.Options{AKRoots: [][]byte{rootDER}, Now: func() time.Time { return c.at }})
		e, err := tpm.ParseEvidence(raw)
		if err != nil {
			t.Fatal(err)
		}
		e.AKCertificates = c.chain
		with, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		if c.checks != nil {
			if got := refused(t, v, with, tee.Expected{ReportData: nonce()}); !slices.Equal(got, c.checks) {
				t.Errorf("%s: expected %v, got %v", name, c.checks, got)
			}
			continue
		}
		got, err := v.Verify(t.Context(), with, tee.Expected{ReportData: nonce()})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got.Claims["ak_certified"] != true || got.Claims["ak_trusted"] != true || got.Claims["ak_certificate_subject"] != "CN=attestation key" {
			t.Errorf("%s: %v", name, got.Claims)
		}
	}
	teetest.EachBit(t, "certificate", good, func(m []byte) bool {
		e, err := tpm.ParseEvidence(raw)
		if err != nil {
			return false
		}
		e.AKCertificates = [][]byte{m}
		with, err := e.JSON()
		if err != nil {
			return false
		}
		v := verifier(t, tpmverify.Options{AKRoots: [][]byte{rootDER}, Now: func() time.Time { return now }})
		_, err = v.Verify(context.Background(), with, tee.Expected{ReportData: nonce()})
		return err == nil
	})
}

func directoryName(t testing.TB) []byte {
	t.Helper()
	name, err := asn1.Marshal(pkix.Name{CommonName: "id:00010203"}.ToRDNSequence())
	if err != nil {
		t.Fatal(err)
	}
	tagged, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name})
	if err != nil {
		t.Fatal(err)
	}
	out, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: tagged})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
