package snpverify

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/validate"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

// peerRoot is a root as go-sev-guest takes it, for Milan.
func peerRoot(r *root) *trust.AMDRootCerts {
	return &trust.AMDRootCerts{ProductLine: "Milan", ProductCerts: &trust.ProductCerts{Ask: r.ask, Ark: r.ark, Asvk: r.asvk}}
}

// peerVerifies asks go-sev-guest, without fetching.
func peerVerifies(report, der []byte, kind snp.CertType, options verify.Options) error {
	proto, err := abi.ReportToProto(report)
	if err != nil {
		return err
	}
	a := &spb.Attestation{Report: proto, CertificateChain: &spb.CertificateChain{}}
	if kind == snp.CertVLEK {
		a.CertificateChain.VlekCert = der
	} else {
		a.CertificateChain.VcekCert = der
	}
	options.DisableCertFetching = true
	return verify.SnpAttestation(a, &options)
}

// go-sev-guest, used whole, has to judge evidence as this package does.
func TestAgreesWithLibrary(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		report, cert string
		kind         snp.CertType
		ok           bool
	}{
		{"test-report.bin", "test-vcek.der", snp.CertVCEK, true},
		{"azure-report.bin", "azure-vcek.der", snp.CertVCEK, true},
		{"google-report.bin", "google-vcek.der", snp.CertVCEK, true},
		{"azure-genoa-report.bin", "azure-genoa-vcek.der", snp.CertVCEK, true},
		{"test-vlek-report.bin", "test-vlek.der", snp.CertVLEK, true},
		{"test-report.bin", "test-vcek-invalid-legacy.der", snp.CertVCEK, false},
		{"test-report.bin", "test-vcek-invalid-new.der", snp.CertVCEK, false},
		{"test-report.bin", "azure-vcek.der", snp.CertVCEK, false},
	} {
		report, der := vector(t, tc.report), vector(t, tc.cert)
		now := at("2025-06-01")
		if tc.kind == snp.CertVLEK {
			now = at("2025-02-01")
		}
		options := verify.Options{Now: now()}
		if tc.kind == snp.CertVLEK { // the library embeds no intermediate for these
			amd, err := loadAMD(snp.Milan)
			if err != nil {
				t.Fatal(err)
			}
			options.TrustedRoots = map[string][]*trust.AMDRootCerts{"Milan": {peerRoot(amd)}}
		}
		if err := peerVerifies(report, der, tc.kind, options); (err == nil) != tc.ok {
			t.Errorf("%s with %s: the library says %v", tc.report, tc.cert, err)
		}
		v := newVerifier(t, Options{Now: now, VMPL: []uint32{0, 1}, AllowDebug: true})
		_, err := v.Verify(t.Context(), evidenceOf(t, report, snp.Certificate{Type: tc.kind, Data: der}), tee.Expected{ReportData: report[0x50:0x90]})
		if (err == nil) != tc.ok {
			t.Errorf("%s with %s: got %v", tc.report, tc.cert, err)
		}
		if !tc.ok {
			continue
		}
		proto, err := abi.ReportToProto(report)
		if err != nil {
			t.Fatal(err)
		}
		a := &spb.Attestation{Report: proto, CertificateChain: &spb.CertificateChain{VcekCert: der}}
		if tc.kind == snp.CertVLEK {
			a.CertificateChain = &spb.CertificateChain{VlekCert: der}
		}
		validation := &validate.Options{GuestPolicy: abi.SnpPolicy{SMT: true, Debug: true}, ReportData: proto.ReportData, PermitProvisionalFirmware: true}
		if err := validate.SnpAttestation(a, validation); err != nil {
			t.Errorf("%s with %s: the library's validation says %v", tc.report, tc.cert, err)
		}
	}
}

// What this package accepts the library accepts too: reports of any content
// that the chip signed, and reports and certificates changed afterwards.
func TestDifferential(t *testing.T) {
	t.Parallel()
	authority, err := testCA()
	if err != nil {
		t.Fatal(err)
	}
	r, err := loadDevelopment(authority.root())
	if err != nil {
		t.Fatal(err)
	}
	tcb := snp.TCB{Bootloader: 4, SNP: 24, Microcode: 219}
	id := slices.Repeat([]byte{7}, 64)
	cert, key := authority.chip(t, "SEV-VCEK", milanExtensions(t, "Milan-B0", tcb, id))
	base := snp.Report{
		Version: 3, Policy: snp.PolicyReserved1, SigAlgo: snp.SigECDSAP384SHA384, ChipID: [64]byte(id),
		CurrentTCB: tcb, ReportedTCB: tcb, CommittedTCB: tcb, LaunchTCB: tcb,
		CPUIDFamily: ptr[uint8](0x19), CPUIDModel: ptr[uint8](1), CPUIDStepping: ptr[uint8](1),
	}
	raw, err := base.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	now := at("2026-02-01")
	v := newVerifier(t, Options{Now: now, DevelopmentRoots: []DevelopmentRoot{authority.root()}})
	peer := verify.Options{Now: now(), TrustedRoots: map[string][]*trust.AMDRootCerts{"Milan": {peerRoot(r)}}}
	random := rand.New(rand.NewPCG(1, 2))
	both, stricter := 0, 0
	judge := func(report, der []byte) {
		theirs := peerVerifies(report, der, snp.CertVCEK, peer)
		e, err := snp.NewEvidence(report, []snp.Certificate{{Type: snp.CertVCEK, Data: der}})
		if err == nil {
			data, jsonErr := e.JSON()
			if jsonErr != nil {
				t.Fatal(jsonErr)
			}
			_, err = v.Verify(t.Context(), data, tee.Expected{AnyReportData: true, ReportData: report[0x50:0x90]})
		}
		switch {
		case err == nil && theirs != nil:
			t.Errorf("accepted what the library refuses: %v\nreport %x", theirs, report)
		case err == nil:
			both++
		case theirs == nil:
			stricter++
		}
	}
	const rounds = 400
	for range rounds {
		report := slices.Clone(raw)
		for range 1 + random.IntN(3) {
			report[random.IntN(snp.SignedSize)] ^= 1 << random.IntN(8)
		}
		signRaw(t, report, key)
		der := cert.Raw
		switch random.IntN(4) {
		case 0: // after the signature
			report[random.IntN(len(report))] ^= 1 << random.IntN(8)
		case 1:
			der = slices.Clone(der)
			der[random.IntN(len(der))] ^= 1 << random.IntN(8)
		}
		judge(report, der)
	}
	if both < rounds/10 || stricter < rounds/10 {
		t.Errorf("the test hardly tests: %d accepted by both, %d by the library only", both, stricter)
	}
}
