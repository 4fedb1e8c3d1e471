package tdxverify_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tdx-guest/verify"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/dcap/dcapmint"
	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
	"github.com/coffer-project/coffer/tee/tdx"
	"github.com/coffer-project/coffer/tee/tdx/tdxverify"
)

// Intel's collateral says nothing about a platform under another root, and the
// other way round.
func TestRootsDoNotMix(t *testing.T) {
	t.Parallel()
	w, other := dcaptest.New(t, dcap.TDX), dcaptest.New(t, dcap.TDX)
	data := evidence(t, dcaptest.TDQuote(t, w.Quoter(t), nil), nil)
	want := []string{"tdx.collateral pck_crl.issuer_chain", "tdx.collateral qe_identity.issuer_chain", "tdx.collateral root_ca_crl.issuer_chain", "tdx.collateral tcb_info.issuer_chain"}
	second := other.Root(t)
	second.Name = "other"
	mixed := w.Root(t)
	mixed.Collateral = second.Collateral
	v := newVerifier(t, tdxverify.Options{Now: at(w.Now), DevelopmentRoots: []dcap.DevelopmentRoot{mixed, second}})
	_, err := v.Verify(t.Context(), data, anyReportDataOf("x"))
	if diff := cmp.Diff(want, failedChecks(t, err)); diff != "" {
		t.Errorf("%s%v", diff, err)
	}
	// An unknown root is named.
	v = newVerifier(t, tdxverify.Options{Now: at(w.Now), DevelopmentRoots: []dcap.DevelopmentRoot{second}})
	_, err = v.Verify(t.Context(), data, anyReportDataOf("x"))
	if diff := cmp.Diff([]string{"tdx.chain certification_data"}, failedChecks(t, err)); diff != "" || !strings.Contains(err.Error(), "O=Test") {
		t.Errorf("%s%v", diff, err)
	}
	// A real quote does not become simulated by a development root.
	real2023 := dcaptest.Intel2023(t)
	v = newVerifier(t, tdxverify.Options{Now: at(dcaptest.At2023()), Collateral: real2023, AllowDebug: true, DevelopmentRoots: []dcap.DevelopmentRoot{second}})
	r, err := v.Verify(t.Context(), evidence(t, dcaptest.File(t, "tdx_quote_v4_debug.bin"), nil), anyReportData())
	if err != nil || r.Simulated {
		t.Errorf("got %v, simulated %v", err, r != nil && r.Simulated)
	}
}

func anyReportDataOf(s string) tee.Expected { return tee.Expected{ReportData: []byte(s)} }

// A root certificate that was issued again for the same key and name is as good;
// one for another key is not.
func TestReissuedRoot(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	v := newVerifier(t, ofWorld(t, w))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		key  *ecdsa.PrivateKey
		want []string
	}{"same key": {w.Authority.Root.Key, nil}, "another key": {key, []string{"tdx.chain certification_data"}}} {
		template := *w.Authority.Root.Certificate
		template.SerialNumber, template.NotAfter, template.PublicKey = big.NewInt(5), w.Now.AddDate(5, 0, 0), &tc.key.PublicKey
		der, err := x509.CreateCertificate(rand.Reader, &template, &template, &tc.key.PublicKey, tc.key)
		if err != nil {
			t.Fatal(err)
		}
		p := w.Quoter(t)
		p.Chain = pemOf(p.PCK.Certificate, w.Authority.Platform.Certificate, &x509.Certificate{Raw: der})
		_, err = v.Verify(t.Context(), evidence(t, dcaptest.TDQuote(t, p, nil), nil), anyReportDataOf("x"))
		if diff := cmp.Diff(tc.want, failedChecks(t, err)); diff != "" {
			t.Errorf("%s: %s%v", name, diff, err)
		}
	}
}

// A list by another intermediate of the same name says nothing.
func TestListOfAnotherIntermediate(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	p := w.Quoter(t)
	old := w.Authority.Platform
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := *old.Certificate
	template.SerialNumber = big.NewInt(6)
	der, err := x509.CreateCertificate(rand.Reader, &template, w.Authority.Root.Certificate, &key.PublicKey, w.Authority.Root.Key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	w.Authority.Platform = dcapmint.Holder{Certificate: c, Key: key}
	v := newVerifier(t, ofWorld(t, w))
	_, err = v.Verify(t.Context(), evidence(t, dcaptest.TDQuote(t, p, nil), nil), anyReportDataOf("x"))
	if diff := cmp.Diff([]string{"tdx.collateral pck_crl.issuer_chain"}, failedChecks(t, err)); diff != "" {
		t.Errorf("%s%v", diff, err)
	}
}

// What is minted has the real shape: go-tdx-guest accepts it whole, once it is
// told to trust the root.
func TestMintedQuotesAgreeWithLibrary(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	p := w.Quoter(t)
	trusted := x509.NewCertPool()
	trusted.AddCert(w.Authority.Root.Certificate)
	times := &verify.TimeSet{PckCertChain: w.Now, TcbInfo: w.Now, QeIdentity: w.Now, PckCrl: w.Now, RootCaCrl: w.Now}
	for name, edit := range map[string]func(*tdx.Quote){"version 5": nil, "version 5, TD 1.0": body10(5, [16]byte{5, 0, 6}), "version 4": body10(4, [16]byte{5, 0, 6})} {
		quote := dcaptest.TDQuote(t, p, edit)
		if err := verify.RawTdxQuote(quote, &verify.Options{Now: times, TrustedRoots: trusted}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		quote[100] ^= 1
		if err := verify.RawTdxQuote(quote, &verify.Options{Now: times, TrustedRoots: trusted}); err == nil {
			t.Errorf("%s: the library accepts a changed quote", name)
		}
	}
}

// The roles in the hierarchy cannot be swapped.
func TestWrongChains(t *testing.T) {
	t.Parallel()
	w, other := dcaptest.New(t, dcap.TDX), dcaptest.New(t, dcap.TDX)
	v := newVerifier(t, ofWorld(t, w))
	a := w.Authority
	for name, tc := range map[string]struct {
		chain func(p *dcapmint.Platform) []*x509.Certificate
		want  string
	}{
		"wrong CA": {func(p *dcapmint.Platform) []*x509.Certificate {
			return []*x509.Certificate{p.PCK.Certificate, a.Processor.Certificate, a.Root.Certificate}
		}, "tdx.chain"},
		"CA of another root": {func(p *dcapmint.Platform) []*x509.Certificate {
			return []*x509.Certificate{p.PCK.Certificate, other.Authority.Platform.Certificate, a.Root.Certificate}
		}, "tdx.chain"},
		"another root": {func(p *dcapmint.Platform) []*x509.Certificate {
			return []*x509.Certificate{p.PCK.Certificate, a.Platform.Certificate, other.Authority.Root.Certificate}
		}, "tdx.chain"},
		"signing certificate": {func(*dcapmint.Platform) []*x509.Certificate {
			return []*x509.Certificate{a.Signing.Certificate, a.Platform.Certificate, a.Root.Certificate}
		}, "tdx.certificate"},
		"loop": {func(*dcapmint.Platform) []*x509.Certificate {
			return []*x509.Certificate{a.Root.Certificate, a.Root.Certificate, a.Root.Certificate}
		}, "tdx.chain"},
		"root as CA": {func(p *dcapmint.Platform) []*x509.Certificate {
			return []*x509.Certificate{p.PCK.Certificate, a.Root.Certificate, a.Root.Certificate}
		}, "tdx.chain"},
		"without root": {func(p *dcapmint.Platform) []*x509.Certificate {
			return []*x509.Certificate{p.PCK.Certificate, a.Platform.Certificate}
		}, "tdx.certificate"},
		"too long": {func(p *dcapmint.Platform) []*x509.Certificate {
			return []*x509.Certificate{p.PCK.Certificate, a.Platform.Certificate, a.Platform.Certificate, a.Root.Certificate}
		}, "tdx.certificate"},
		"reversed": {func(p *dcapmint.Platform) []*x509.Certificate {
			return []*x509.Certificate{a.Root.Certificate, a.Platform.Certificate, p.PCK.Certificate}
		}, "tdx.chain"},
	} {
		p := w.Quoter(t)
		p.Chain = pemOf(tc.chain(p)...)
		_, err := v.Verify(t.Context(), evidence(t, dcaptest.TDQuote(t, p, nil), nil), anyReportDataOf("x"))
		got := failedChecks(t, err)
		if len(got) != 1 || got[0] != tc.want+" certification_data" {
			t.Errorf("%s: expected %s, got %v: %v", name, tc.want, got, err)
		}
	}
}
