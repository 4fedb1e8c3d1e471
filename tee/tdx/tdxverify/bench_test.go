package tdxverify_test

import (
	"testing"

	"github.com/google/go-tdx-guest/abi"
	"github.com/google/go-tdx-guest/verify"

	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
	"github.com/coffer-project/coffer/tee/tdx/tdxverify"
)

// BenchmarkVerify compares with google/go-tdx-guest, both without collateral,
// on the library's own vector. The peer starts from the parsed quote and we
// from the JSON. cold has a new verifier each time, warm knows the platform's
// attestation key, collateral is warm with Intel's documents judged as well.
func BenchmarkVerify(b *testing.B) {
	quote := noText(dcaptest.File(b, "tdx_quote_v4_spr_with_text_behind.bin"))
	data := evidence(b, quote, nil)
	options := tdxverify.Options{Now: at(dcaptest.At2023()), AllowMissingCollateral: true, AllowDebug: true}
	b.Run("peer", func(b *testing.B) {
		parsed, err := abi.QuoteToProto(quote)
		if err != nil {
			b.Fatal(err)
		}
		now := dcaptest.At2023()
		times := &verify.TimeSet{PckCertChain: now, TcbInfo: now, QeIdentity: now, PckCrl: now, RootCaCrl: now}
		for b.Loop() {
			if err := verify.TdxQuote(parsed, &verify.Options{Now: times}); err != nil {
				b.Fatal(err)
			}
		}
	})
	run := func(b *testing.B, v *tdxverify.Verifier, data []byte) {
		if _, err := v.Verify(b.Context(), data, anyReportData()); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			v := newVerifier(b, options)
			b.StartTimer()
			run(b, v, data)
		}
	})
	b.Run("warm", func(b *testing.B) {
		b.ReportAllocs()
		v := newVerifier(b, options)
		for b.Loop() {
			run(b, v, data)
		}
	})
	b.Run("collateral", func(b *testing.B) {
		b.ReportAllocs()
		options := options
		options.Collateral = dcaptest.Intel2023(b)
		v := newVerifier(b, options)
		data := evidence(b, dcaptest.File(b, "tdx_quote_v4_debug.bin"), nil)
		for b.Loop() {
			run(b, v, data)
		}
	})
}
