package snpverify

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

// ca is a root with an intermediate, for chips that the software TEE does not
// simulate.
type ca struct {
	arkKey, askKey *rsa.PrivateKey
	ark, ask       *x509.Certificate
}

var testCA = sync.OnceValues(func() (*ca, error) {
	c := &ca{}
	var err error
	if c.arkKey, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		return nil, err
	}
	if c.askKey, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		return nil, err
	}
	template := func(name string, serial int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: at("2025-01-01")(), NotAfter: at("2045-01-01")(), SignatureAlgorithm: x509.SHA384WithRSAPSS,
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
	}
	if c.ark, err = sign(template("test root", 1), nil, &c.arkKey.PublicKey, c.arkKey); err != nil {
		return nil, err
	}
	c.ask, err = sign(template("test intermediate", 2), c.ark, &c.askKey.PublicKey, c.arkKey)
	return c, err
})

func sign(template, issuer *x509.Certificate, public any, key *rsa.PrivateKey) (*x509.Certificate, error) {
	if issuer == nil {
		issuer = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func (c *ca) root() DevelopmentRoot {
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.ask.Raw})
	return DevelopmentRoot{Name: "test", PEM: append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.ark.Raw})...)}
}

// amdExtension is one of AMD's, below their arc.
func amdExtension(value []byte, tail ...int) pkix.Extension {
	return pkix.Extension{Id: append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, tail...), Value: value}
}

func der(t testing.TB, v any, params string) []byte {
	t.Helper()
	b, err := asn1.MarshalWithParams(v, params)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// turinExtensions are those of a Turin VCEK: with an FMC level and an 8-byte
// hardware identifier.
func turinExtensions(t testing.TB, tcb snp.TCB, hwid []byte) []pkix.Extension {
	level := func(n uint8) []byte { return der(t, int(n), "") }
	return []pkix.Extension{
		amdExtension(level(1), 1), amdExtension(der(t, "Turin", "ia5"), 2),
		amdExtension(level(*tcb.FMC), 3, 9), amdExtension(level(tcb.Bootloader), 3, 1), amdExtension(level(tcb.TEE), 3, 2),
		amdExtension(level(tcb.SNP), 3, 3), amdExtension(level(tcb.Microcode), 3, 8), amdExtension(hwid, 4),
	}
}

func (c *ca) chip(t testing.TB, commonName string, extensions []pkix.Extension) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := sign(&x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: commonName},
		NotBefore: at("2025-01-01")(), NotAfter: at("2032-01-01")(), SignatureAlgorithm: x509.SHA384WithRSAPSS,
		ExtraExtensions: extensions,
	}, c.ask, &key.PublicKey, c.askKey)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// signReport signs r with key and returns its evidence.
func signReport(t testing.TB, r snp.Report, key *ecdsa.PrivateKey, certs ...snp.Certificate) json.RawMessage {
	t.Helper()
	raw, err := r.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha512.Sum384(raw[:snp.SignedSize])
	rr, ss, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	rr.FillBytes(r.Signature.R[:])
	ss.FillBytes(r.Signature.S[:])
	slices.Reverse(r.Signature.R[:])
	slices.Reverse(r.Signature.S[:])
	if raw, err = r.Bytes(); err != nil {
		t.Fatal(err)
	}
	return evidenceOf(t, raw, certs...)
}

func ptr[T any](v T) *T { return &v }

// turin is a version 5 report of a Turin chip.
func turin(t testing.TB) (snp.Report, *ca, *x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	authority, err := testCA()
	if err != nil {
		t.Fatal(err)
	}
	tcb := snp.TCB{FMC: ptr[uint8](1), Bootloader: 2, TEE: 3, SNP: 4, Microcode: 200}
	hwid := []byte{0x1e, 0x55, 0x0a, 0x8e, 0xe5, 0xcf, 0x9f, 0x4d}
	cert, key := authority.chip(t, "SEV-VCEK", turinExtensions(t, tcb, hwid))
	r := snp.Report{
		Version: 5, Policy: snp.PolicyReserved1, SigAlgo: snp.SigECDSAP384SHA384,
		CurrentTCB: tcb, ReportedTCB: tcb, CommittedTCB: tcb, LaunchTCB: tcb,
		CPUIDFamily: ptr[uint8](0x1A), CPUIDModel: ptr[uint8](2), CPUIDStepping: ptr[uint8](1),
		LaunchMitigation: ptr[uint64](1 << 63), CurrentMitigation: ptr[uint64](3),
	}
	copy(r.ChipID[:], hwid)
	copy(r.ReportData[:], "bound")
	return r, authority, cert, key
}

func TestTurin(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		change func(*snp.Report)
		want   []string
	}{
		{"genuine", func(*snp.Report) {}, nil},
		{"another chip", func(r *snp.Report) { r.ChipID[3]++ }, []string{"snp.chip_id"}},
		{"longer chip identifier", func(r *snp.Report) { r.ChipID[63]++ }, []string{"snp.chip_id"}},
		{"masked chip", func(r *snp.Report) { r.ChipID = [64]byte{} }, nil},
		{"another FMC", func(r *snp.Report) { r.ReportedTCB.FMC = ptr[uint8](0) }, []string{"snp.tcb"}},
		{"another microcode", func(r *snp.Report) { r.ReportedTCB.Microcode++ }, []string{"snp.tcb"}},
		{"not signed", func(r *snp.Report) { r.KeyInfo = 7 << 2 }, []string{"snp.signer"}},
		{"unknown signer", func(r *snp.Report) { r.KeyInfo = 3 << 2 }, []string{"snp.signer"}},
		{"unknown algorithm", func(r *snp.Report) { r.SigAlgo = 2 }, []string{"snp.signature"}},
		{"unknown processor", func(r *snp.Report) { r.CPUIDModel = ptr[uint8](0x50) }, []string{"snp.generation"}},
		{"VMPL", func(r *snp.Report) { r.VMPL = 3 }, []string{"snp.vmpl"}},
		{"migration agent", func(r *snp.Report) { r.ReportIDMA[0] = 1 }, []string{"snp.migration"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r, authority, cert, key := turin(t)
			tc.change(&r)
			v := newVerifier(t, Options{Now: at("2026-02-01"), DevelopmentRoots: []DevelopmentRoot{authority.root()}})
			result, err := v.Verify(t.Context(), signReport(t, r, key, snp.Certificate{Type: snp.CertVCEK, Data: cert.Raw}), tee.Expected{ReportData: []byte("bound")})
			if diff := cmp.Diff(tc.want, checks(t, err)); diff != "" {
				t.Fatalf("%s\n%v", diff, err)
			}
			if result == nil {
				return
			}
			for claim, want := range map[string]any{
				"generation": "Turin", "reported_tcb_fmc": 1, "reported_tcb_microcode": 200, "version": 5,
				"launch_mit_vector": "8000000000000000", "current_mit_vector": "0000000000000003",
			} {
				if got := result.Claims[claim]; got != want {
					t.Errorf("claim %s: got %v, want %v", claim, got, want)
				}
			}
		})
	}
}

func TestChipCertificate(t *testing.T) {
	t.Parallel()
	r, authority, _, _ := turin(t)
	good := turinExtensions(t, r.ReportedTCB, r.ChipID[:8])
	without := func(i int) []pkix.Extension { return slices.Delete(slices.Clone(good), i, i+1) }
	with := func(i int, value []byte) []pkix.Extension {
		out := slices.Clone(good)
		out[i].Value = value
		return out
	}
	for name, tc := range map[string]struct {
		commonName string
		extensions []pkix.Extension
		signer     snp.Signer
		ok         bool
	}{
		"good":                    {"SEV-VCEK", good, snp.SignerVCEK, true},
		"HWID as OCTET STRING":    {"SEV-VCEK", with(7, der(t, make([]byte, 64), "")), snp.SignerVCEK, true},
		"no product":              {"SEV-VCEK", without(1), snp.SignerVCEK, false},
		"no FMC":                  {"SEV-VCEK", without(2), snp.SignerVCEK, true},
		"no microcode":            {"SEV-VCEK", without(6), snp.SignerVCEK, false},
		"no HWID":                 {"SEV-VCEK", without(7), snp.SignerVCEK, false},
		"short HWID":              {"SEV-VCEK", with(7, []byte{1, 2, 3}), snp.SignerVCEK, false},
		"level beyond a byte":     {"SEV-VCEK", with(3, der(t, 256, "")), snp.SignerVCEK, false},
		"negative level":          {"SEV-VCEK", with(3, der(t, -1, "")), snp.SignerVCEK, false},
		"level with a tail":       {"SEV-VCEK", with(3, append(der(t, 1, ""), 0)), snp.SignerVCEK, false},
		"product as UTF8String":   {"SEV-VCEK", with(1, der(t, "Turin", "utf8")), snp.SignerVCEK, false},
		"another common name":     {"SEV-VLEK", good, snp.SignerVCEK, false},
		"VLEK without a provider": {"SEV-VLEK", without(7), snp.SignerVLEK, false},
	} {
		cert, _ := authority.chip(t, tc.commonName, tc.extensions)
		if _, err := parseChipCertificate(cert.Raw, tc.signer); (err == nil) != tc.ok {
			t.Errorf("%s: got error %v", name, err)
		}
	}
	// A certificate of the right name with a key of another kind.
	if _, err := parseChipCertificate(authority.ask.Raw, snp.SignerVCEK); err == nil {
		t.Error("an RSA certificate was taken for a chip's")
	}
}

// fakeKDS serves bodies by URL and counts.
type fakeKDS struct {
	bodies map[string][]byte
	calls  atomic.Int32
}

func (f *fakeKDS) Get(_ context.Context, url string) ([]byte, error) {
	f.calls.Add(1)
	if b, ok := f.bodies[url]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("%s: no such thing", url)
}

func TestFetchesCertificate(t *testing.T) {
	t.Parallel()
	r, authority, cert, key := turin(t)
	const url = "https://kdsintf.amd.com/vcek/v1/Turin/1e550a8ee5cf9f4d?fmcSPL=01&blSPL=02&teeSPL=03&snpSPL=04&ucodeSPL=200"
	kds := &fakeKDS{bodies: map[string][]byte{url: cert.Raw}}
	v := newVerifier(t, Options{Now: at("2026-02-01"), DevelopmentRoots: []DevelopmentRoot{authority.root()}, Getter: kds})
	data := signReport(t, r, key)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := v.Verify(t.Context(), data, tee.Expected{ReportData: []byte("bound")}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if _, err := v.Verify(t.Context(), data, tee.Expected{ReportData: []byte("bound")}); err != nil {
		t.Error(err)
	}
	if n := kds.calls.Load(); n < 1 || n > 8 {
		t.Errorf("got %d requests for one certificate", n)
	}

	// What cannot be fetched is no judgement about the evidence.
	v = newVerifier(t, Options{Now: at("2026-02-01"), Getter: &fakeKDS{}})
	_, err := v.Verify(t.Context(), data, tee.Expected{ReportData: []byte("bound")})
	if _, refusal := errors.AsType[*tee.Error](err); err == nil || refusal {
		t.Errorf("got %v, want an error that is no refusal", err)
	}
	// Nor is the end of the context.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Verify(ctx, data, tee.Expected{ReportData: []byte("bound")}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestRevocation(t *testing.T) {
	t.Parallel()
	authority, err := testCA()
	if err != nil {
		t.Fatal(err)
	}
	list := func(from, to time.Time, revoked ...int64) []byte {
		template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: from, NextUpdate: to, SignatureAlgorithm: x509.SHA384WithRSAPSS}
		for _, serial := range revoked {
			template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
				x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: from})
		}
		b, err := x509.CreateRevocationList(rand.Reader, template, authority.ark, authority.arkKey)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	r, err := loadDevelopment(authority.root())
	if err != nil {
		t.Fatal(err)
	}
	const url = "https://kdsintf.amd.com/vcek/v1/Milan/crl"
	now, month := at("2026-02-01"), 30*24*time.Hour
	changed := list(now().Add(-month), now().Add(month))
	changed[len(changed)-1] ^= 1
	for _, tc := range []struct {
		name     string
		body     []byte
		failures int
		err      bool
	}{
		{"nothing revoked", list(now().Add(-month), now().Add(month)), 0, false},
		{"another revoked", list(now().Add(-month), now().Add(month), 77), 0, false},
		{"intermediate revoked", list(now().Add(-month), now().Add(month), 77, 2), 1, false},
		{"out of date", list(now().Add(-2*month), now().Add(-month)), 0, true},
		{"from the future", list(now().Add(month), now().Add(2*month)), 0, true},
		{"bad signature", changed, 0, true},
		{"no list", []byte("x"), 0, true},
	} {
		kds := &fakeKDS{bodies: map[string][]byte{url: tc.body}}
		v := &verifier{now: now, collateral: collateral{get: kds, now: now}}
		for range 2 {
			failures, err := v.checkRevocation(t.Context(), r, snp.SignerVCEK, snp.Milan)
			if len(failures) != tc.failures || (err != nil) != tc.err {
				t.Errorf("%s: got %v, %v", tc.name, failures, err)
			}
		}
		if n := kds.calls.Load(); !tc.err && n != 1 {
			t.Errorf("%s: fetched %d times", tc.name, n)
		}
	}

	// With a list that cannot be had, real evidence is not judged.
	report := vector(t, "test-report.bin")
	data := evidenceOf(t, report, snp.Certificate{Type: snp.CertVCEK, Data: vector(t, "test-vcek.der")})
	v := newVerifier(t, Options{Now: at("2024-06-01"), Getter: &fakeKDS{}, CheckRevocation: true})
	_, err = v.Verify(t.Context(), data, tee.Expected{ReportData: report[0x50:0x90]})
	if _, refusal := errors.AsType[*tee.Error](err); err == nil || refusal {
		t.Errorf("got %v, want an error that is no refusal", err)
	}
}

func TestHTTPGetter(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/good":
			_, _ = w.Write([]byte("body"))
		case "/big":
			_, _ = w.Write(make([]byte, maxCollateral+1))
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	g := NewHTTPGetter(server.Client())
	if b, err := g.Get(t.Context(), server.URL+"/good"); err != nil || string(b) != "body" {
		t.Errorf("got %q, %v", b, err)
	}
	for _, path := range []string{"/big", "/none"} {
		if _, err := g.Get(t.Context(), server.URL+path); err == nil {
			t.Errorf("%s: no error", path)
		}
	}
}

func FuzzVerify(f *testing.F) {
	report := vector(f, "test-report.bin")
	data := evidenceOf(f, report, snp.Certificate{Type: snp.CertVCEK, Data: vector(f, "test-vcek.der")})
	f.Add([]byte(data))
	f.Add([]byte(`{}`))
	v := newVerifier(f, Options{Now: at("2024-06-01")})
	f.Fuzz(func(t *testing.T, evidence []byte) {
		r, err := v.Verify(t.Context(), evidence, tee.Expected{ReportData: report[0x50:0x90]})
		if (r == nil) == (err == nil) {
			t.Fatalf("got result %v and error %v", r, err)
		}
		if err != nil {
			if _, refusal := errors.AsType[*tee.Error](err); !refusal {
				t.Fatalf("malformed evidence is no refusal: %v", err)
			}
		}
	})
}

func FuzzChipCertificate(f *testing.F) {
	f.Add(vector(f, "test-vcek.der"), uint8(snp.SignerVCEK))
	f.Add(vector(f, "test-vlek.der"), uint8(snp.SignerVLEK))
	f.Add(vector(f, "test-vcek-invalid-new.der"), uint8(snp.SignerVCEK))
	f.Fuzz(func(t *testing.T, der []byte, signer uint8) {
		c, err := parseChipCertificate(der, snp.Signer(signer))
		if (c == nil) == (err == nil) {
			t.Fatalf("got certificate %v and error %v", c, err)
		}
	})
}
