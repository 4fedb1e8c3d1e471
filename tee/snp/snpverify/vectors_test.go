package snpverify

import (
	"bytes"
	"crypto/x509"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

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
		{"changed vcek, legacy", "test-report.bin", "test-vcek-invalid-legacy.der", snp.CertVCEK, "2024-06-01", []string{"snp.chain", "snp.signature", "snp.tcb", "snp.chip_id"}},
		{"changed vcek, new", "test-report.bin", "test-vcek-invalid-new.der", snp.CertVCEK, "2024-06-01", []string{"snp.chain", "snp.signature", "snp.tcb", "snp.chip_id"}},
		{"azure vcek", "azure-report.bin", "azure-vcek.der", snp.CertVCEK, "2024-06-01", nil},
		{"google vcek, a debug guest", "google-report.bin", "google-vcek.der", snp.CertVCEK, "2024-06-01", []string{"snp.debug"}},
		{"azure genoa vcek", "azure-genoa-report.bin", "azure-genoa-vcek.der", snp.CertVCEK, "2025-12-01", nil},
		{"genoa vcek, version 5", "genoa-v5-report.bin", "genoa-v5-vcek.der", snp.CertVCEK, "2025-12-01", nil},
		{"turin vcek", "turin-report.bin", "turin-vcek.der", snp.CertVCEK, "2025-12-01", nil},
		{"another turin's vcek", "turin-report.bin", "turin-other-vcek.der", snp.CertVCEK, "2025-12-01", []string{"snp.signature", "snp.tcb", "snp.chip_id"}},
		{"azure genoa vcek, before its time", "azure-genoa-report.bin", "azure-genoa-vcek.der", snp.CertVCEK, "2025-01-01", []string{"snp.chain"}},
		{"genoa report, milan vcek", "azure-genoa-report.bin", "test-vcek.der", snp.CertVCEK, "2025-12-01", []string{"snp.chain", "snp.signature", "snp.tcb", "snp.chip_id"}},
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
				if diff := cmp.Diff(tc.want, failed(t, err)); diff != "" {
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

// The embedded certificates are those that the library embeds, from another
// source, and each intermediate is issued by its root.
func TestPinnedRoots(t *testing.T) {
	t.Parallel()
	peer := map[snp.Generation][2][]byte{
		snp.Milan: {trust.AskArkMilanVcekBytes, trust.AskArkMilanVlekBytes},
		snp.Genoa: {trust.AskArkGenoaVcekBytes, trust.AskArkGenoaVlekBytes},
		snp.Turin: {trust.AskArkTurinVcekBytes, trust.AskArkTurinVlekBytes},
	}
	for i, g := range generations() {
		r, err := loadAMD(g)
		if err != nil {
			t.Fatal(err)
		}
		vcek, err := parsePEM(peer[g][0])
		if err != nil {
			t.Fatal(err)
		}
		vlek, err := parsePEM(peer[g][1])
		if err != nil {
			t.Fatal(err)
		}
		if !r.ask.Equal(vcek[0]) || !r.ark.Equal(vcek[1]) || !r.asvk.Equal(vlek[0]) || !r.ark.Equal(vlek[1]) {
			t.Errorf("%s: embedded certificates differ from the library's", g)
		}
		for _, c := range []*x509.Certificate{r.ark, r.ask, r.asvk} {
			if err := c.CheckSignatureFrom(r.ark); err != nil {
				t.Errorf("%s: %s: %v", g, c.Subject, err)
			}
		}
		certs := []*x509.Certificate{r.ask, r.ark, r.asvk}
		other := amdPins(generations()[(i+1)%3])
		for n := range certs {
			pins := amdPins(g)
			pins[n] = other[n]
			if _, err := pinned(g, certs, pins); err == nil {
				t.Errorf("%s: certificate %d: another than the pinned one was taken", g, n)
			}
		}
		if _, err := pinned(g, certs[:2], amdPins(g)); err == nil {
			t.Errorf("%s: a certificate too few was taken", g)
		}
	}
	if _, err := loadAMD("Naples"); err == nil {
		t.Error("a generation without certificates was loaded")
	}
}

// Without its certificate nothing is known of a report, whatever is allowed.
func TestMissingCertificate(t *testing.T) {
	t.Parallel()
	for _, allow := range []bool{false, true} {
		v := newVerifier(t, Options{Now: at("2024-06-01"), AllowMissingCollateral: allow})
		for _, name := range []string{"test-report.bin", "test-vlek-report.bin"} {
			report := vector(t, name)
			want := tee.Expected{ReportData: report[0x50:0x90]}
			v.options.VMPL = []uint32{0, 1}
			_, err := v.Verify(t.Context(), evidenceOf(t, report), want)
			if diff := cmp.Diff([]string{"snp.chain"}, lacking(t, err)); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
			if c, ok := errors.AsType[*tee.CollateralError](err); !ok || c.Reason != tee.CollateralMissing {
				t.Errorf("%s: got %v", name, err)
			}
			// What speaks against the evidence goes first.
			_, err = v.Verify(t.Context(), evidenceOf(t, report), tee.Expected{ReportData: []byte("other")})
			if diff := cmp.Diff([]string{"snp.report_data", "snp.chain"}, failed(t, err)); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
	}
}

func TestNothingExpected(t *testing.T) {
	t.Parallel()
	report := vector(t, "test-report.bin")
	v := newVerifier(t, Options{Now: at("2024-06-01")})
	data := evidenceOf(t, report, snp.Certificate{Type: snp.CertVCEK, Data: vector(t, "test-vcek.der")})
	_, err := v.Verify(t.Context(), data, tee.Expected{})
	if diff := cmp.Diff([]string{"snp.report_data"}, failed(t, err)); diff != "" {
		t.Error(diff)
	}
	r, err := v.Verify(t.Context(), data, tee.Expected{AnyReportData: true})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"snp.report_data"}, names(r.Warnings)); diff != "" {
		t.Error(diff)
	}
}
