package snpverify

import (
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
	"math/big"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

// ca is a root with intermediates for both kinds of keys, for chips that the
// software TEE does not simulate.
type ca struct {
	key            *rsa.PrivateKey // of all three
	ark, ask, asvk *x509.Certificate
}

// amdName is a name as AMD's certificates have it.
func amdName(commonName string) pkix.Name {
	return pkix.Name{
		OrganizationalUnit: []string{"Engineering"}, Country: []string{"US"}, Locality: []string{"Santa Clara"},
		Province: []string{"CA"}, Organization: []string{"Advanced Micro Devices"}, CommonName: commonName,
	}
}

var testCA = sync.OnceValues(func() (*ca, error) {
	c := &ca{}
	var err error
	if c.key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		return nil, err
	}
	template := func(name string, serial int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: amdName(name),
			NotBefore: at("2025-01-01")(), NotAfter: at("2045-01-01")(), SignatureAlgorithm: x509.SHA384WithRSAPSS,
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
	}
	if c.ark, err = sign(template("ARK-Milan", 1), nil, &c.key.PublicKey, c.key); err != nil {
		return nil, err
	}
	if c.ask, err = sign(template("SEV-Milan", 2), c.ark, &c.key.PublicKey, c.key); err != nil {
		return nil, err
	}
	c.asvk, err = sign(template("SEV-VLEK-Milan", 3), c.ark, &c.key.PublicKey, c.key)
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
	var text []byte
	for _, cert := range []*x509.Certificate{c.ask, c.ark, c.asvk} {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return DevelopmentRoot{Name: "test", PEM: text}
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

// milanExtensions are those of a Milan VCEK, vlekExtensions of a VLEK.
func milanExtensions(t testing.TB, product string, tcb snp.TCB, hwid []byte) []pkix.Extension {
	level := func(n uint8) []byte { return der(t, int(n), "") }
	return []pkix.Extension{
		amdExtension(level(0), 1), amdExtension(der(t, product, "ia5"), 2),
		amdExtension(level(tcb.Bootloader), 3, 1), amdExtension(level(tcb.TEE), 3, 2), amdExtension(level(tcb.SNP), 3, 3),
		amdExtension(level(0), 3, 4), amdExtension(level(0), 3, 5), amdExtension(level(0), 3, 6), amdExtension(level(0), 3, 7),
		amdExtension(level(tcb.Microcode), 3, 8), amdExtension(hwid, 4),
	}
}

func vlekExtensions(t testing.TB, tcb snp.TCB, csp string) []pkix.Extension {
	out := milanExtensions(t, "Milan", tcb, nil)
	out[len(out)-1] = amdExtension(der(t, csp, "ia5"), 5)
	return out
}

func (c *ca) chip(t testing.TB, commonName string, extensions []pkix.Extension) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issuer := c.ask
	if commonName == "SEV-VLEK" {
		issuer = c.asvk
	}
	cert, err := sign(&x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: amdName(commonName),
		NotBefore: at("2025-01-01")(), NotAfter: at("2032-01-01")(), SignatureAlgorithm: x509.SHA384WithRSAPSS,
		ExtraExtensions: extensions,
	}, issuer, &key.PublicKey, c.key)
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
	signRaw(t, raw, key)
	return evidenceOf(t, raw, certs...)
}

// signRaw puts a signature by key into a report.
func signRaw(t testing.TB, raw []byte, key *ecdsa.PrivateKey) {
	t.Helper()
	sum := sha512.Sum384(raw[:snp.SignedSize])
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range []*big.Int{r, s} {
		number := n.FillBytes(make([]byte, 72))
		slices.Reverse(number)
		copy(raw[snp.SignedSize+72*i:], number)
	}
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
		{"report version 4", func(r *snp.Report) { r.Version, r.LaunchMitigation, r.CurrentMitigation = 4, nil, nil }, nil},
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
			if diff := cmp.Diff(tc.want, failed(t, err)); diff != "" {
				t.Fatalf("%s\n%v", diff, err)
			}
			if result == nil {
				return
			}
			want := map[string]any{"generation": "Turin", "reported_tcb_fmc": 1, "reported_tcb_microcode": 200, "version": 4}
			if r.Version == 5 {
				want["version"], want["launch_mit_vector"], want["current_mit_vector"] = 5, "8000000000000000", "0000000000000003"
			}
			for claim, want := range want {
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
		"reserved level of zero":  {"SEV-VCEK", append(slices.Clone(good), amdExtension(der(t, 0, ""), 3, 6)), snp.SignerVCEK, true},
		"reserved level":          {"SEV-VCEK", append(slices.Clone(good), amdExtension(der(t, 1, ""), 3, 6)), snp.SignerVCEK, false},
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

func FuzzVerify(f *testing.F) {
	report := vector(f, "test-report.bin")
	data := evidenceOf(f, report, snp.Certificate{Type: snp.CertVCEK, Data: vector(f, "test-vcek.der")})
	f.Add([]byte(data))
	f.Add([]byte(`{}`))
	f.Add(vector(f, "genoa-evidence.json"))
	f.Add([]byte(evidenceOf(f, vector(f, "test-vlek-report.bin"), snp.Certificate{Type: snp.CertVLEK, Data: vector(f, "test-vlek.der")})))
	f.Add([]byte(evidenceOf(f, report, snp.Certificate{Type: snp.CertASK, Data: vector(f, "turin-vcek.der")})))
	v := newVerifier(f, Options{Now: at("2024-06-01")})
	f.Fuzz(func(t *testing.T, evidence []byte) {
		r, err := v.Verify(t.Context(), evidence, tee.Expected{ReportData: report[0x50:0x90]})
		if (r == nil) == (err == nil) {
			t.Fatalf("got result %v and error %v", r, err)
		}
		if err != nil {
			_, refusal := errors.AsType[*tee.Error](err)
			if _, missing := errors.AsType[*tee.UnavailableError](err); !refusal && !missing {
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
