package snpverify

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/validate"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/softtee"
	"github.com/coffer-project/coffer/tee/softtee/softport"
)

// processors makes two simulated chips once: their RSA keys take a while.
var processors = sync.OnceValues(func() ([2]*softtee.Processor, error) {
	var out [2]*softtee.Processor
	for i := range out {
		dir, err := mkTemp()
		if err != nil {
			return out, err
		}
		if out[i], err = softtee.LoadOrCreate(dir, rand.Reader, at("2026-01-01")()); err != nil {
			return out, err
		}
	}
	return out, nil
})

func chip(t testing.TB, i int) *softtee.Processor {
	t.Helper()
	all, err := processors()
	if err != nil {
		t.Fatal(err)
	}
	return all[i]
}

func launch(t testing.TB, p *softtee.Processor, policy softtee.Policy) *softtee.Guest {
	t.Helper()
	g, err := p.Launch(measure.Launch{Firmware: make([]byte, 4096), Kernel: []byte("kernel"), VCPUs: 1, VCPUModel: "EPYC-v4"}, policy)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// softEvidence is evidence of a guest over the serial port protocol.
func softEvidence(t testing.TB, g *softtee.Guest, reportData []byte) json.RawMessage {
	t.Helper()
	a := softport.New(dial(t, g))
	e, err := a.Evidence(t.Context(), reportData)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestDevelopmentRoot(t *testing.T) {
	t.Parallel()
	good, other := chip(t, 0), chip(t, 1)
	hostData := sha256.Sum256([]byte("initdata"))
	reportData := bytes.Repeat([]byte{7}, 48)
	guest := launch(t, good, softtee.Policy{HostData: hostData})
	evidence := softEvidence(t, guest, reportData)
	want := tee.Expected{ReportData: reportData, InitData: hostData[:]}
	goodRoot := DevelopmentRoot{Name: "laptop", PEM: good.RootPEM()}
	otherRoot := DevelopmentRoot{Name: "other", PEM: other.RootPEM()}
	now := at("2026-02-01")

	t.Run("configured", func(t *testing.T) {
		t.Parallel()
		v := newVerifier(t, Options{Now: now, DevelopmentRoots: []DevelopmentRoot{otherRoot, goodRoot}})
		for range 2 {
			r, err := v.Verify(t.Context(), evidence, want)
			if err != nil {
				t.Fatal(err)
			}
			if !r.Simulated || r.Claims["simulated"] != true || r.Claims["development_root"] != "laptop" || r.Claims["development_root_sha256"] != good.Fingerprint() {
				t.Errorf("the result does not say that it is simulated: %v", r.Claims)
			}
			m := guest.Measurement()
			if r.Claims["measurement"] != hex.EncodeToString(m[:]) {
				t.Errorf("measurement: got %v, want %x", r.Claims["measurement"], m)
			}
		}
	})
	for name, roots := range map[string][]DevelopmentRoot{"not configured": nil, "another configured": {otherRoot}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVerifier(t, Options{Now: now, DevelopmentRoots: roots})
			_, err := v.Verify(t.Context(), evidence, want)
			if diff := cmp.Diff([]string{"snp.chain"}, failed(t, err)); diff != "" {
				t.Fatalf("%s\n%v", diff, err)
			}
			for _, text := range []string{good.Fingerprint(), "DEVELOPMENT, NOT HARDWARE", "development_roots"} {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("the refusal does not mention %q: %v", text, err)
				}
			}
		})
	}
	t.Run("expired", func(t *testing.T) {
		t.Parallel()
		v := newVerifier(t, Options{Now: at("2035-01-01"), DevelopmentRoots: []DevelopmentRoot{goodRoot}})
		_, err := v.Verify(t.Context(), evidence, want)
		if diff := cmp.Diff([]string{"snp.chain"}, failed(t, err)); diff != "" || !strings.Contains(err.Error(), "expired") {
			t.Errorf("%s\n%v", diff, err)
		}
	})
	t.Run("expires while it is remembered", func(t *testing.T) {
		t.Parallel()
		clock := now()
		v := newVerifier(t, Options{Now: func() time.Time { return clock }, DevelopmentRoots: []DevelopmentRoot{goodRoot}})
		if _, err := v.Verify(t.Context(), evidence, want); err != nil {
			t.Fatal(err)
		}
		clock = clock.AddDate(10, 0, 0)
		if _, err := v.Verify(t.Context(), evidence, want); err == nil {
			t.Error("an expired chain was taken from the cache")
		}
	})
	t.Run("real hardware beside it", func(t *testing.T) {
		t.Parallel()
		report := vector(t, "test-report.bin")
		real := evidenceOf(t, report, snp.Certificate{Type: snp.CertVCEK, Data: vector(t, "test-vcek.der")})
		v := newVerifier(t, Options{Now: now, DevelopmentRoots: []DevelopmentRoot{goodRoot}})
		r, err := v.Verify(t.Context(), real, tee.Expected{ReportData: report[0x50:0x90]})
		if err != nil || r.Simulated {
			t.Errorf("got %v, %v", r, err)
		}
	})
	t.Run("AMD's certificates attached", func(t *testing.T) {
		t.Parallel()
		// Certificates in the evidence must not become anchors.
		e, err := snp.ParseEvidence(evidence)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := e.Report()
		if err != nil {
			t.Fatal(err)
		}
		amd, err := loadAMD(snp.Milan)
		if err != nil {
			t.Fatal(err)
		}
		data := evidenceOf(t, raw, e.CertChain[0],
			snp.Certificate{Type: snp.CertASK, Data: amd.ask.Raw},
			snp.Certificate{Type: snp.CertARK, Data: amd.ark.Raw})
		_, err = newVerifier(t, Options{Now: now}).Verify(t.Context(), data, want)
		if diff := cmp.Diff([]string{"snp.chain"}, failed(t, err)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("another guest's evidence, another key", func(t *testing.T) {
		t.Parallel()
		v := newVerifier(t, Options{Now: now, DevelopmentRoots: []DevelopmentRoot{goodRoot}})
		_, err := v.Verify(t.Context(), evidence, tee.Expected{ReportData: []byte("another"), InitData: []byte("another")})
		if diff := cmp.Diff([]string{"snp.report_data", "snp.host_data"}, failed(t, err)); diff != "" {
			t.Error(diff)
		}
	})
}

func TestGuestPolicy(t *testing.T) {
	t.Parallel()
	p := chip(t, 0)
	root := []DevelopmentRoot{{Name: "laptop", PEM: p.RootPEM()}}
	for _, tc := range []struct {
		name   string
		policy uint64
		debug  bool
		want   []string
	}{
		{"default", 0, false, nil},
		{"debug", softtee.DefaultGuestPolicy | snp.PolicyDebug, false, []string{"snp.debug"}},
		{"debug, allowed", softtee.DefaultGuestPolicy | snp.PolicyDebug, true, nil},
		{"migration", softtee.DefaultGuestPolicy | snp.PolicyMigrateMA, true, []string{"snp.migration"}},
		{"both", softtee.DefaultGuestPolicy | snp.PolicyMigrateMA | snp.PolicyDebug, false, []string{"snp.debug", "snp.migration"}},
		{"reserved bit missing", snp.PolicySMT, false, []string{"snp.format"}},
		{"unknown bit", softtee.DefaultGuestPolicy | 1<<40, false, []string{"snp.format"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			v := newVerifier(t, Options{Now: at("2026-02-01"), DevelopmentRoots: root, AllowDebug: tc.debug})
			data := softEvidence(t, launch(t, p, softtee.Policy{GuestPolicy: tc.policy}), []byte("x"))
			r, err := v.Verify(t.Context(), data, tee.Expected{ReportData: []byte("x")})
			if diff := cmp.Diff(tc.want, failed(t, err)); diff != "" {
				t.Fatalf("%s\n%v", diff, err)
			}
			if r != nil && r.Claims["policy_debug_allowed"] != tc.debug {
				t.Errorf("claim policy_debug_allowed: got %v", r.Claims["policy_debug_allowed"])
			}
		})
	}
}

func TestMinimumTCB(t *testing.T) {
	t.Parallel()
	p := chip(t, 0)
	data := softEvidence(t, launch(t, p, softtee.Policy{}), []byte("x"))
	for _, tc := range []struct {
		name    string
		minimum map[snp.Generation]MinimumTCB
		want    []string
	}{
		{"none", nil, nil},
		{"met", map[snp.Generation]MinimumTCB{snp.Milan: EveryTCB(snp.TCB{Bootloader: 4, SNP: 24, Microcode: 219})}, nil},
		{"not met", map[snp.Generation]MinimumTCB{snp.Milan: EveryTCB(snp.TCB{SNP: 25})}, []string{"snp.minimum_tcb", "snp.minimum_tcb", "snp.minimum_tcb"}},
		{"committed not met", map[snp.Generation]MinimumTCB{snp.Milan: {Committed: snp.TCB{Microcode: 255}}}, []string{"snp.minimum_tcb"}},
		{"another generation only", map[snp.Generation]MinimumTCB{snp.Genoa: {}}, []string{"snp.minimum_tcb"}},
	} {
		v := newVerifier(t, Options{Now: at("2026-02-01"), DevelopmentRoots: []DevelopmentRoot{{Name: "laptop", PEM: p.RootPEM()}}, MinimumTCB: tc.minimum})
		_, err := v.Verify(t.Context(), data, tee.Expected{ReportData: []byte("x")})
		if diff := cmp.Diff(tc.want, failed(t, err)); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
	}
}

// The software TEE's reports and certificates have the real shape: go-sev-guest
// accepts them whole, once it is told to trust the root.
func TestSoftwareTEEAgreesWithLibrary(t *testing.T) {
	t.Parallel()
	p := chip(t, 0)
	e, err := snp.ParseEvidence(softEvidence(t, launch(t, p, softtee.Policy{}), []byte("x")))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := e.Report()
	if err != nil {
		t.Fatal(err)
	}
	proto, err := abi.ReportToProto(raw)
	if err != nil {
		t.Fatal(err)
	}
	a := &spb.Attestation{Report: proto, CertificateChain: &spb.CertificateChain{VcekCert: e.CertChain[0].Data}}
	r, err := loadDevelopment(DevelopmentRoot{Name: "laptop", PEM: p.RootPEM()})
	if err != nil {
		t.Fatal(err)
	}
	options := &verify.Options{
		DisableCertFetching: true, Now: at("2026-02-01")(),
		TrustedRoots: map[string][]*trust.AMDRootCerts{"Milan": {peerRoot(r)}},
	}
	if err := verify.SnpAttestation(a, options); err != nil {
		t.Errorf("verify: %v", err)
	}
	if err := validate.SnpAttestation(a, &validate.Options{GuestPolicy: abi.SnpPolicy{SMT: true}}); err != nil {
		t.Errorf("validate: %v", err)
	}
	options.TrustedRoots = nil
	if err := verify.SnpAttestation(a, options); err == nil {
		t.Error("the library takes the software TEE for AMD's")
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	p := chip(t, 0)
	amdBundle := trust.AskArkMilanVcekBytes
	for name, o := range map[string]Options{
		"no name":                {DevelopmentRoots: []DevelopmentRoot{{PEM: p.RootPEM()}}},
		"no certificates":        {DevelopmentRoots: []DevelopmentRoot{{Name: "x"}}},
		"not PEM":                {DevelopmentRoots: []DevelopmentRoot{{Name: "x", PEM: []byte("root")}}},
		"four certificates":      {DevelopmentRoots: []DevelopmentRoot{{Name: "x", PEM: append(p.RootPEM(), p.RootPEM()...)}}},
		"two chains":             {DevelopmentRoots: []DevelopmentRoot{{Name: "x", PEM: mix(p.RootPEM(), chip(t, 1).RootPEM())}}},
		"AMD's root":             {DevelopmentRoots: []DevelopmentRoot{{Name: "x", PEM: amdBundle}}},
		"another's VLEK issuer":  {DevelopmentRoots: []DevelopmentRoot{{Name: "x", PEM: append(p.RootPEM(), first(chip(t, 1).RootPEM())...)}}},
		"unknown generation":     {MinimumTCB: map[snp.Generation]MinimumTCB{"Naples": {}}},
		"FMC on Milan":           {MinimumTCB: map[snp.Generation]MinimumTCB{snp.Milan: {Launch: snp.TCB{FMC: ptr[uint8](1)}}}},
		"VMPL 4":                 {VMPL: []uint32{0, 4}},
		"unknown policy flag":    {RequirePolicy: 1 << 40},
		"reserved policy flag":   {ForbidPolicy: snp.PolicyReserved1},
		"unknown platform flag":  {ForbidPlatform: 1 << 8},
		"required and forbidden": {RequirePlatform: snp.PlatformECC, ForbidPlatform: snp.PlatformECC},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func first(bundle []byte) []byte {
	const end = "-----END CERTIFICATE-----\n"
	text, _, _ := strings.Cut(string(bundle), end)
	return []byte(text + end)
}

// mix takes the first certificate of a and the second of b.
func mix(a, b []byte) []byte {
	const end = "-----END CERTIFICATE-----\n"
	first, _, _ := strings.Cut(string(a), end)
	_, second, _ := strings.Cut(string(b), end)
	return []byte(first + end + second)
}

// TestHugeIssuerCostsNothing: an issuer in the evidence is only there to be
// named, and its key is a stranger's choice.
func TestHugeIssuerCostsNothing(t *testing.T) {
	t.Parallel()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	const bits = 120_000
	leafKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	name := pkix.Name{CommonName: "huge"}
	signer := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: name, IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().AddDate(1, 0, 0)}
	modulus := new(big.Int).SetBit(big.NewInt(1), bits-1, 1)
	huge, err := x509.CreateCertificate(rand.Reader, signer, signer, &rsa.PublicKey{N: modulus, E: 1<<31 - 1}, key)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "leaf"}, NotAfter: time.Now().AddDate(1, 0, 0), SignatureAlgorithm: x509.SHA384WithRSAPSS}
	der, err := x509.CreateCertificate(rand.Reader, template, signer, &leafKey.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	// As long as the key, so that the check would begin.
	leaf.Signature = make([]byte, bits/8)
	var certs []snp.Certificate
	for range snp.MaxCertificates {
		certs = append(certs, snp.Certificate{Type: snp.CertASK, Data: huge})
	}
	start := time.Now()
	if got := chainEnd(leaf, certs); !strings.Contains(got, "is not in the evidence") {
		t.Error(got)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the explanation took %v", took)
	}
}
