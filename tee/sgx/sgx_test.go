package sgx_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
	"github.com/coffer-project/coffer/tee/sgx"
)

func TestParseQuote(t *testing.T) {
	t.Parallel()
	raw := dcaptest.File(t, "sgx_quote_v3_debug.bin")
	q, err := sgx.ParseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(q.SignedBytes(), q.Signed) || len(q.Signed) != 432 {
		t.Error("header and report do not encode to what they were read from")
	}
	section, err := q.Signature.Bytes(3)
	if err != nil || !bytes.Equal(section, raw[432:]) {
		t.Errorf("the signature section does not encode to what it was read from: %v", err)
	}
	if q.QESVN() != [2]byte{8} || q.PCESVN() != [2]byte{13} || q.Report.MREnclave[0] != 0x8f || q.Report.Flags != 7 || q.Report.XFRM != 0xe7 {
		t.Errorf("got %+v", q.Report)
	}
}

func TestFromRaw(t *testing.T) {
	t.Parallel()
	raw := dcaptest.File(t, "sgx_quote_v3_debug.bin")
	data, err := sgx.FromRaw(raw)
	if err != nil {
		t.Fatal(err)
	}
	e, err := sgx.ParseEvidence(data)
	if err != nil || !bytes.Equal(e.Quote, raw) {
		t.Errorf("got %v", err)
	}
	for _, other := range [][]byte{nil, raw[:100], append(bytes.Clone(raw), 0), dcaptest.File(t, "tdx_quote_v5.bin")} {
		if _, err := sgx.FromRaw(other); err == nil {
			t.Errorf("accepted: %d bytes", len(other))
		}
	}
	if _, err := (&sgx.Evidence{}).JSON(); err == nil {
		t.Error("evidence without a quote")
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	raw := dcaptest.File(t, "sgx_quote_v3_debug.bin")
	data, err := sgx.FromRaw(raw)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		data []byte
		odd  string
	}{"raw": {raw, "debug"}, "JSON": {data, "debug"}, "padded": {append(bytes.Clone(raw), 1, 2), "2 bytes behind"}, "cut": {raw[:2000], "expected"}} {
		i, err := sgx.Inspect(tc.data)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		body, ok := i.Fields["body"].(map[string]any)
		if i.TEE != tee.SGX || !ok || body["mr_enclave"] != "8f173e4613ff05c52aaf04162d234edae8c9977eae47eb2299ae16a553011c68" || !strings.Contains(strings.Join(i.Odd, "\n"), tc.odd) {
			t.Errorf("%s: %+v", name, i)
		}
	}
	for _, other := range [][]byte{nil, []byte("{}"), []byte("{"), dcaptest.File(t, "tdx_quote_v5.bin")} {
		if _, err := sgx.Inspect(other); err == nil {
			t.Errorf("accepted: %.20q", other)
		}
	}
}

func FuzzParseQuote(f *testing.F) {
	f.Add(dcaptest.File(f, "sgx_quote_v3_debug.bin"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _ = sgx.Inspect(raw)
		q, err := sgx.ParseQuote(raw)
		if err != nil {
			return
		}
		section, err := q.Signature.Bytes(3)
		if err != nil || !bytes.Equal(append(q.SignedBytes(), section...), raw) {
			t.Error("a quote has two encodings")
		}
	})
}
