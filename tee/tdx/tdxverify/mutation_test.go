package tdxverify_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
	"github.com/coffer-project/coffer/tee/internal/teetest"
	"github.com/coffer-project/coffer/tee/tdx"
	"github.com/coffer-project/coffer/tee/tdx/tdxverify"
)

// Every bit of a quote is signed, or part of what vouches for a signature, or
// of a length that has to be exact: none can be flipped. Of the second quote
// only what comes before the certificates.
func TestEachBitOfRealQuotes(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, tdxverify.Options{Now: at(dcaptest.At2023()), Collateral: dcaptest.Intel2023(t), AllowDebug: true})
	teetest.EachBit(t, "version 4", dcaptest.File(t, "tdx_quote_v4_debug.bin"), func(quote []byte) bool { return genuine(t, v, evidence(t, quote, nil)) })

	v = newVerifier(t, tdxverify.Options{Now: at(dcaptest.At2026()), AllowMissingCollateral: true})
	quote := dcaptest.File(t, "tdx_quote_v5.bin")
	chain := bytes.Index(quote, []byte("-----BEGIN"))
	teetest.EachBit(t, "version 5", quote[:chain], func(head []byte) bool {
		return genuine(t, v, evidence(t, append(head[:chain:chain], quote[chain:]...), nil))
	})
}

// genuine fails the test for errors that are neither a refusal nor that
// collateral is lacking.
func genuine(t testing.TB, v *tdxverify.Verifier, data json.RawMessage) bool {
	_, err := v.Verify(t.Context(), data, anyReportData())
	if err == nil {
		return true
	}
	if e, ok := errors.AsType[*tee.Error](err); ok {
		for _, f := range e.Failures {
			if !strings.HasPrefix(f.Check, "tdx.") || f.Field == "" {
				t.Errorf("a failure without check or field: %s", f)
			}
		}
		return false
	}
	t.Errorf("expected *tee.Error, got %T: %v", err, err)
	return false
}

// A quote that is cut, padded or doubled is none.
func TestEachLength(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, tdxverify.Options{Now: at(dcaptest.At2026()), AllowMissingCollateral: true, AllowDebug: true})
	for _, name := range []string{"tdx_quote_v4_debug.bin", "tdx_quote_v5.bin"} {
		quote := dcaptest.File(t, name)
		if !genuine(t, v, evidence(t, quote, nil)) {
			t.Fatalf("%s: refused as it is", name)
		}
		teetest.EachPrefix(quote, func(cut []byte) {
			if genuine(t, v, evidence(t, cut, nil)) {
				t.Errorf("%s: genuine with %d bytes", name, len(cut))
			}
		})
		for what, other := range map[string][]byte{
			"padded": append(bytes.Clone(quote), 0), "doubled": append(bytes.Clone(quote), quote...), "too long": append(bytes.Clone(quote), make([]byte, tdx.MaxQuote)...),
			"text behind": append(bytes.Clone(quote), "text"...), "shifted": append([]byte{0}, quote...),
		} {
			if genuine(t, v, evidence(t, other, nil)) {
				t.Errorf("%s: genuine when %s", name, what)
			}
		}
	}
	for _, name := range []string{"tdx_quote_v4_azure_padded.bin", "tdx_quote_v4_spr_with_text_behind.bin"} {
		if genuine(t, v, evidence(t, dcaptest.File(t, name), nil)) {
			t.Errorf("%s: genuine with what is behind the quote", name)
		}
	}
}

// Lengths that lie, in both byte orders.
func TestLengths(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, tdxverify.Options{Now: at(dcaptest.At2026()), AllowMissingCollateral: true, AllowDebug: true})
	quote := dcaptest.File(t, "tdx_quote_v5.bin")
	const section = 48 + 6 + 648
	for name, at := range map[string]int{"body size": 50, "signature data": section, "certification data": section + 4 + 128 + 2, "QE certification data": section + 4 + 128 + 6 + 384 + 64 + 2 + 32 + 2} {
		old := binary.LittleEndian.Uint32(quote[at:])
		if old == 0 || old > 5000 {
			t.Fatalf("%s: there is no length at %d: %d", name, at, old)
		}
		for _, n := range []uint32{0, 1, old - 1, old + 1, 1 << 31, 0xFFFFFFFF, 0xFFFFFFFF - old, 0x7FFFFFFF} {
			other := bytes.Clone(quote)
			binary.LittleEndian.PutUint32(other[at:], n)
			if genuine(t, v, evidence(t, other, nil)) {
				t.Errorf("%s: genuine with %d", name, n)
			}
		}
		other := bytes.Clone(quote)
		binary.BigEndian.PutUint32(other[at:], old)
		if genuine(t, v, evidence(t, other, nil)) {
			t.Errorf("%s: genuine with the other byte order", name)
		}
	}
}

// Signatures out of range, keys off the curve, other algorithms.
func TestSignatures(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	v := newVerifier(t, ofWorld(t, w))
	quote := dcaptest.TDQuote(t, w.Quoter(t), nil)
	if !genuine(t, v, evidence(t, quote, nil)) && false {
		t.Fatal()
	}
	order, _ := new(big.Int).SetString("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
	prime, _ := new(big.Int).SetString("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff", 16)
	zero := make([]byte, 32)
	const section = 48 + 6 + 648 + 4
	places := map[string]int{"quote signature": section, "QE signature": section + 128 + 6 + 384}
	for name, at := range places {
		r, s := bytes.Clone(quote[at:at+32]), bytes.Clone(quote[at+32:at+64])
		plus := func(b []byte) []byte {
			sum := new(big.Int).Add(new(big.Int).SetBytes(b), order).Bytes()
			return append(make([]byte, max(0, 32-len(sum))), sum[max(0, len(sum)-32):]...)
		}
		for what, pair := range map[string][2][]byte{
			"zero": {zero, zero}, "r zero": {zero, s}, "s zero": {r, zero}, "r is n": {order.Bytes(), s}, "s is n": {r, order.Bytes()},
			"all ones": {bytes.Repeat([]byte{0xff}, 32), bytes.Repeat([]byte{0xff}, 32)}, "swapped": {s, r}, "r + n": {plus(r), s}, "reversed": {reverse(r), reverse(s)},
		} {
			other := bytes.Clone(quote)
			copy(other[at:], pair[0])
			copy(other[at+32:], pair[1])
			if genuine(t, v, evidence(t, other, nil)) {
				t.Errorf("%s: genuine with %s", name, what)
			}
		}
	}
	for what, key := range map[string][]byte{
		"zero": make([]byte, 64), "off the curve": append(bytes.Clone(quote[section+64:section+127]), quote[section+127]^1),
		"x is p": append(prime.Bytes(), quote[section+96:section+128]...),
	} {
		other := bytes.Clone(quote)
		copy(other[section+64:], key)
		if genuine(t, v, evidence(t, other, nil)) {
			t.Errorf("genuine with the attestation key %s", what)
		}
	}
	for _, kind := range []uint16{0, 1, 3, 4, 0x0200} { // 3: ECDSA P-384
		other := bytes.Clone(quote)
		binary.LittleEndian.PutUint16(other[2:], kind)
		if genuine(t, v, evidence(t, other, nil)) {
			t.Errorf("genuine with the attestation key type %d", kind)
		}
	}
}

func reverse(b []byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[len(b)-1-i] = b[i]
	}
	return out
}

// A quote signed by a key that its quoting enclave does not vouch for.
func TestOtherAttestationKey(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	v := newVerifier(t, ofWorld(t, w))
	p, thief := w.Quoter(t), w.Quoter(t)
	p.AttestationKey = thief.AttestationKey
	_, err := v.Verify(t.Context(), evidence(t, dcaptest.TDQuote(t, p, nil), nil), anyReportDataOf("x"))
	if got := failedChecks(t, err); len(got) != 1 || got[0] != "tdx.qe_report qe_report.report_data" {
		t.Errorf("got %v", got)
	}
	// An endorsement that is known helps no other quote.
	p = w.Quoter(t)
	if _, err := v.Verify(t.Context(), evidence(t, dcaptest.TDQuote(t, p, nil), nil), anyReportDataOf("x")); err != nil {
		t.Fatal(err)
	}
	quote := dcaptest.TDQuote(t, p, func(q *tdx.Quote) { q.MRTD[5] = 1 })
	other := dcaptest.TDQuote(t, p, nil)
	const section = 48 + 6 + 648
	_, err = v.Verify(t.Context(), evidence(t, append(other[:section:section], quote[section:]...), nil), anyReportDataOf("x"))
	if got := failedChecks(t, err); len(got) != 1 || got[0] != "tdx.signature signature" {
		t.Errorf("got %v", got)
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, tdxverify.Options{Now: at(dcaptest.At2026()), AllowMissingCollateral: true})
	good := string(evidence(t, dcaptest.File(t, "tdx_quote_v5.bin"), nil))
	quote := strings.TrimSuffix(good[strings.Index(good, `"quote":"`)+len(`"quote":"`):], `"}`)
	for name, doc := range map[string]string{
		"as it is": good, "without a log": `{"quote":"` + quote + `"}`, "spaces": " { \"cc_eventlog\" : null , \"quote\" : \"" + quote + "\" } ",
	} {
		if !genuine(t, v, json.RawMessage(doc)) {
			t.Errorf("%s: refused", name)
		}
	}
	for name, doc := range map[string]string{
		"empty": "", "null": "null", "an array": "[]", "nothing in it": "{}", "null quote": `{"quote":null}`, "an empty quote": `{"quote":""}`,
		"duplicate": `{"quote":"` + quote + `","quote":"` + quote + `"}`, "duplicate by escape": `{"quote":"` + quote + `","quot\u0065":"` + quote + `"}`,
		"unknown": `{"quote":"` + quote + `","x":1}`, "letter case": `{"Quote":"` + quote + `"}`, "twice": good + good, "text behind": good + "x",
		"line break": `{"quote":"` + quote[:64] + `\n` + quote[64:] + `"}`, "URL alphabet": `{"quote":"` + strings.NewReplacer("+", "-", "/", "_").Replace(quote) + `"}`,
		"padding": `{"quote":"` + quote + `="}`, "deep": strings.Repeat(`{"quote":`, 10000), "numbers": `{"quote":[1,2,3]}`, "huge": `{"quote":"` + strings.Repeat("AAAA", tdx.MaxQuote) + `"}`,
	} {
		if genuine(t, v, json.RawMessage(doc)) {
			t.Errorf("%s: genuine", name)
		}
	}
	for _, want := range []tee.Expected{{}, {ReportData: []byte("x")}} {
		if _, err := v.Verify(t.Context(), json.RawMessage(good), want); len(failedChecks(t, err)) != 1 {
			t.Errorf("bound to nothing: %v", err)
		}
	}
}

func TestCertificationData(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, tdxverify.Options{Now: at(dcaptest.At2026()), AllowMissingCollateral: true})
	quote := dcaptest.File(t, "tdx_quote_v5.bin")
	const section = 48 + 6 + 648 + 4 + 128
	for at, old := range map[int]uint16{section: dcapquote.CertificationQEReport, section + 6 + 384 + 64 + 2 + 32: dcapquote.CertificationPCKChain} {
		if got := binary.LittleEndian.Uint16(quote[at:]); got != old {
			t.Fatalf("no type at %d: %d", at, got)
		}
		for kind := range uint16(9) {
			other := bytes.Clone(quote)
			binary.LittleEndian.PutUint16(other[at:], kind)
			if genuine(t, v, evidence(t, other, nil)) != (kind == old) {
				t.Errorf("type %d at %d", kind, at)
			}
		}
	}
}

func FuzzVerify(f *testing.F) {
	for _, name := range []string{"tdx_quote_v4_debug.bin", "tdx_quote_v5.bin"} {
		f.Add([]byte(evidence(f, dcaptest.File(f, name), nil)))
	}
	quotes := [][]byte{dcaptest.File(f, "tdx_quote_v4_debug.bin"), dcaptest.File(f, "tdx_quote_v5.bin")}
	v := newVerifier(f, tdxverify.Options{Now: at(dcaptest.At2026()), AllowMissingCollateral: true, AllowDebug: true})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := v.Verify(t.Context(), data, anyReportData())
		if err != nil {
			return
		}
		for _, q := range quotes {
			if bytes.Contains(q, r.ReportData) {
				return
			}
		}
		t.Error("evidence of somebody else is genuine")
	})
}
