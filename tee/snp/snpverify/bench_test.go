package snpverify

import (
	"testing"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

// BenchmarkVerify compares one verification with go-sev-guest's
// (verify.SnpAttestation, which fetches nothing here) over the same evidence.
// Cold is a verifier that knows nothing, made anew each time; warm is one that
// has seen the chip. Both include the decoding of the JSON form and every other
// check, which the peer's share does not.
func BenchmarkVerify(b *testing.B) {
	report, der := vector(b, "test-report.bin"), vector(b, "test-vcek.der")
	data := evidenceOf(b, report, snp.Certificate{Type: snp.CertVCEK, Data: der})
	want := tee.Expected{ReportData: report[0x50:0x90]}
	options := Options{Now: at("2024-06-01")}
	b.Run("peer", func(b *testing.B) {
		proto, err := abi.ReportToProto(report)
		if err != nil {
			b.Fatal(err)
		}
		a := &spb.Attestation{Report: proto, CertificateChain: &spb.CertificateChain{VcekCert: der}}
		o := &verify.Options{DisableCertFetching: true, Now: options.Now()}
		for b.Loop() {
			if err := verify.SnpAttestation(a, o); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			if _, err := newVerifier(b, options).Verify(b.Context(), data, want); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("warm", func(b *testing.B) {
		v := newVerifier(b, options)
		for b.Loop() {
			if _, err := v.Verify(b.Context(), data, want); err != nil {
				b.Fatal(err)
			}
		}
	})
}
