package snpverify

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/validate"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

func vector(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func at(s string) func() time.Time {
	when, err := time.Parse(time.DateOnly, s)
	if err != nil {
		panic(err)
	}
	return func() time.Time { return when }
}

// evidenceOf is evidence as an attester would send it.
func evidenceOf(t testing.TB, report []byte, certs ...snp.Certificate) json.RawMessage {
	t.Helper()
	e, err := snp.NewEvidence(report, certs)
	if err != nil {
		t.Fatal(err)
	}
	data, err := e.JSON()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func newVerifier(t testing.TB, o Options) tee.Verifier {
	t.Helper()
	v, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// checks are the identifiers of the failures in err.
func checks(t testing.TB, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	refusal, ok := errors.AsType[*tee.Error](err)
	if !ok {
		t.Fatalf("got error %v, want a *tee.Error", err)
	}
	var out []string
	for _, f := range refusal.Failures {
		out = append(out, f.Check)
	}
	return out
}

func TestVectors(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, report, cert string
		kind               snp.CertType
		now                string
		want               []string // failed checks; nil: genuine
	}{
		{"milan vcek", "test-report.bin", "test-vcek.der", snp.CertVCEK, "2024-06-01", nil},
		{"milan vcek, before its time", "test-report.bin", "test-vcek.der", snp.CertVCEK, "2022-01-01", []string{"snp.chain"}},
		{"milan vcek, after its time", "test-report.bin", "test-vcek.der", snp.CertVCEK, "2031-01-01", []string{"snp.chain"}},
		{"milan vcek as vlek", "test-report.bin", "test-vcek.der", snp.CertVLEK, "2024-06-01", []string{"snp.chain"}},
		{"changed vcek, legacy", "test-report.bin", "test-vcek-invalid-legacy.der", snp.CertVCEK, "2024-06-01", []string{"snp.signature", "snp.chain", "snp.tcb", "snp.chip_id"}},
		{"changed vcek, new", "test-report.bin", "test-vcek-invalid-new.der", snp.CertVCEK, "2024-06-01", []string{"snp.signature", "snp.chain", "snp.tcb", "snp.chip_id"}},
		{"azure vcek", "azure-report.bin", "azure-vcek.der", snp.CertVCEK, "2024-06-01", nil},
		{"another chip's vcek", "test-report.bin", "azure-vcek.der", snp.CertVCEK, "2024-06-01", []string{"snp.signature", "snp.chip_id"}},
		// The report was asked for at VMPL 1; nothing else is wrong with it.
		{"vlek", "test-vlek-report.bin", "test-vlek.der", snp.CertVLEK, "2025-02-01", []string{"snp.vmpl"}},
		{"vlek, expired", "test-vlek-report.bin", "test-vlek.der", snp.CertVLEK, "2026-02-01", []string{"snp.chain", "snp.vmpl"}},
		{"vlek report with a vcek", "test-vlek-report.bin", "test-vcek.der", snp.CertVLEK, "2025-02-01", []string{"snp.certificate", "snp.vmpl"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			report := vector(t, tc.report)
			v := newVerifier(t, Options{Now: at(tc.now)})
			evidence := evidenceOf(t, report, snp.Certificate{Type: tc.kind, Data: vector(t, tc.cert)})
			want := tee.Expected{ReportData: report[0x50:0x90], InitData: report[0xC0:0xE0]}
			for _, run := range []string{"cold", "warm"} {
				result, err := v.Verify(t.Context(), evidence, want)
				if diff := cmp.Diff(tc.want, checks(t, err)); diff != "" {
					t.Fatalf("%s: failed checks (-want +got):\n%s%v", run, diff, err)
				}
				if (err == nil) == (result == nil) {
					t.Fatalf("%s: got result %v and error %v", run, result, err)
				}
				if result == nil {
					continue
				}
				if result.Simulated || result.Claims["simulated"] != false {
					t.Error("real hardware counts as simulated")
				}
				if !bytes.Equal(result.ReportData, want.ReportData) || !bytes.Equal(result.InitData, want.InitData) {
					t.Error("the result's fields are not the report's")
				}
			}
		})
	}
}

// go-sev-guest, used whole, has to judge genuine evidence as this package does.
func TestAgreesWithLibrary(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		report, cert string
		vlek, ok     bool
	}{
		{"test-report.bin", "test-vcek.der", false, true},
		{"azure-report.bin", "azure-vcek.der", false, true},
		{"test-vlek-report.bin", "test-vlek.der", true, true},
		{"test-report.bin", "test-vcek-invalid-legacy.der", false, false},
		{"test-report.bin", "test-vcek-invalid-new.der", false, false},
		{"test-report.bin", "azure-vcek.der", false, false},
	} {
		proto, err := abi.ReportToProto(vector(t, tc.report))
		if err != nil {
			t.Fatal(err)
		}
		a := &spb.Attestation{Report: proto, CertificateChain: &spb.CertificateChain{}}
		if tc.vlek {
			a.CertificateChain.VlekCert = vector(t, tc.cert)
		} else {
			a.CertificateChain.VcekCert = vector(t, tc.cert)
		}
		amd, err := amdRoots()[0].load()
		if err != nil {
			t.Fatal(err)
		}
		err = verify.SnpAttestation(a, &verify.Options{
			DisableCertFetching: true, Now: at("2025-02-01")(),
			TrustedRoots: map[string][]*trust.AMDRootCerts{"Milan": {withLine(amd.certs, "Milan")}},
		})
		if (err == nil) != tc.ok {
			t.Errorf("%s with %s: the library says %v", tc.report, tc.cert, err)
		}
		if !tc.ok {
			continue
		}
		err = validate.SnpAttestation(a, &validate.Options{
			GuestPolicy:               abi.SnpPolicy{SMT: true},
			ReportData:                proto.ReportData,
			PermitProvisionalFirmware: true,
		})
		if err != nil {
			t.Errorf("%s with %s: the library's validation says %v", tc.report, tc.cert, err)
		}
	}
}

func withLine(r *trust.AMDRootCerts, line string) *trust.AMDRootCerts {
	return &trust.AMDRootCerts{ProductLine: line, ProductCerts: r.ProductCerts}
}

// Every change to a genuine report has to be noticed.
func TestFlippedBits(t *testing.T) {
	t.Parallel()
	report := vector(t, "azure-report.bin")
	cert := snp.Certificate{Type: snp.CertVCEK, Data: vector(t, "azure-vcek.der")}
	v := newVerifier(t, Options{Now: at("2024-06-01")})
	for i := range report {
		changed := slices.Clone(report)
		changed[i] ^= 1 << (i % 8)
		e, err := snp.NewEvidence(changed, []snp.Certificate{cert})
		if err != nil {
			continue // has no JSON form
		}
		data, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		// The binding follows the change, so that only the signature can tell.
		_, err = v.Verify(t.Context(), data, tee.Expected{ReportData: changed[0x50:0x90], InitData: changed[0xC0:0xE0]})
		if len(checks(t, err)) == 0 {
			t.Errorf("byte %#x changed: accepted", i)
		}
	}
	der := cert.Data
	for i := 0; i < len(der); i += 7 {
		changed := slices.Clone(der)
		changed[i] ^= 1 << (i % 8)
		data := evidenceOf(t, report, snp.Certificate{Type: snp.CertVCEK, Data: changed})
		_, err := v.Verify(t.Context(), data, tee.Expected{ReportData: report[0x50:0x90]})
		if len(checks(t, err)) == 0 {
			t.Errorf("certificate byte %#x changed: accepted", i)
		}
	}
}

// The roots in the library are those that the vectors have, from another source.
func TestPinnedRoots(t *testing.T) {
	t.Parallel()
	for i, name := range []string{"milan", "genoa", "turin"} {
		r, err := amdRoots()[i].load()
		if err != nil {
			t.Fatal(err)
		}
		var ders [][]byte
		for rest := vector(t, name+"_ask_ark_asvk.pem"); ; {
			var b *pem.Block
			if b, rest = pem.Decode(rest); b == nil {
				break
			}
			ders = append(ders, b.Bytes)
		}
		c := r.certs.ProductCerts
		if len(ders) != 3 || !bytes.Equal(ders[0], c.Ask.Raw) || !bytes.Equal(ders[1], c.Ark.Raw) || !bytes.Equal(ders[2], c.Asvk.Raw) {
			t.Errorf("%s: embedded certificates differ from the vectors'", name)
		}
		changed := amdRoots()[i]
		changed.ark = amdRoots()[(i+1)%3].ark
		if _, err := changed.load(); err == nil {
			t.Errorf("%s: a root other than the pinned one was taken", name)
		}
	}
}

func TestMissingCertificate(t *testing.T) {
	t.Parallel()
	report := vector(t, "test-report.bin")
	v := newVerifier(t, Options{Now: at("2024-06-01")})
	_, err := v.Verify(t.Context(), evidenceOf(t, report), tee.Expected{ReportData: report[0x50:0x90]})
	if diff := cmp.Diff([]string{"snp.chain"}, checks(t, err)); diff != "" {
		t.Error(diff)
	}
}

func TestNothingExpected(t *testing.T) {
	t.Parallel()
	report := vector(t, "test-report.bin")
	v := newVerifier(t, Options{Now: at("2024-06-01")})
	data := evidenceOf(t, report, snp.Certificate{Type: snp.CertVCEK, Data: vector(t, "test-vcek.der")})
	if _, err := v.Verify(t.Context(), data, tee.Expected{}); err == nil {
		t.Error("evidence was accepted that is bound to nothing")
	}
}

func BenchmarkVerify(b *testing.B) {
	report := vector(b, "test-report.bin")
	data := evidenceOf(b, report, snp.Certificate{Type: snp.CertVCEK, Data: vector(b, "test-vcek.der")})
	want := tee.Expected{ReportData: report[0x50:0x90]}
	b.Run("cold", func(b *testing.B) {
		v := newVerifier(b, Options{Now: at("2024-06-01")})
		for b.Loop() {
			v.(*verifier).chains = chains{}
			if _, err := v.Verify(b.Context(), data, want); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("warm", func(b *testing.B) {
		v := newVerifier(b, Options{Now: at("2024-06-01")})
		for b.Loop() {
			if _, err := v.Verify(b.Context(), data, want); err != nil {
				b.Fatal(err)
			}
		}
	})
}
