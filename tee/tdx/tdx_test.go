package tdx_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
	"github.com/coffer-project/coffer/tee/internal/teetest"
	"github.com/coffer-project/coffer/tee/tdx"
)

func TestParseQuote(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		version uint16
		body    tdx.BodyType
		mrtd    byte
	}{"tdx_quote_v4_debug.bin": {4, tdx.BodyTDReport10, 0x70}, "tdx_quote_v5.bin": {5, tdx.BodyTDReport15, 0x73}} {
		raw := dcaptest.File(t, name)
		q, err := tdx.ParseQuote(raw)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := q.SignedBytes()
		if err != nil || !bytes.Equal(signed, q.Signed) {
			t.Errorf("%s: header and body do not encode to what they were read from: %v", name, err)
		}
		section, err := q.Signature.Bytes(tc.version)
		if err != nil || !bytes.Equal(section, raw[len(signed):]) {
			t.Errorf("%s: the signature section does not encode to what it was read from: %v", name, err)
		}
		if q.Header.Version != tc.version || q.BodyType != tc.body || q.MRTD[0] != tc.mrtd || (q.TEETCBSVN2 != nil) != (tc.body == tdx.BodyTDReport15) {
			t.Errorf("%s: got %+v", name, q)
		}
	}
}

func TestTrim(t *testing.T) {
	t.Parallel()
	padded := dcaptest.File(t, "tdx_quote_v4_azure_padded.bin")
	quote := tdx.Trim(padded)
	if len(quote) != 4936 {
		t.Fatalf("got %d bytes", len(quote))
	}
	if _, err := tdx.ParseQuote(quote); err != nil {
		t.Error(err)
	}
	text := dcaptest.File(t, "tdx_quote_v4_spr_with_text_behind.bin")
	for name, same := range map[string][]byte{
		"nothing behind": quote, "text behind": text, "none": nil, "no quote": []byte("hello"), "cut": quote[:700], "too long": append(bytes.Clone(quote), make([]byte, tdx.MaxQuote)...),
		"something in the padding": append(bytes.Clone(padded), 1),
	} {
		if got := tdx.Trim(same); !bytes.Equal(got, same) {
			t.Errorf("%s: %d of %d bytes", name, len(got), len(same))
		}
	}
}

func TestEvidence(t *testing.T) {
	t.Parallel()
	raw := dcaptest.File(t, "tdx_quote_v5.bin")
	data, err := tdx.FromRaw(raw)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(data), `{"cc_eventlog":null,"quote":"BQ`) {
		t.Errorf("got %.60s", data)
	}
	log := []byte("log")
	if data, err = (&tdx.Evidence{Quote: raw, EventLog: log}).JSON(); err != nil {
		t.Fatal(err)
	}
	e, err := tdx.ParseEvidence(data)
	if err != nil || !bytes.Equal(e.Quote, raw) || !bytes.Equal(e.EventLog, log) {
		t.Errorf("got %v", err)
	}
	// The long way reads the same.
	e, err = tdx.ParseEvidence([]byte(strings.Replace(string(data), `"quote"`, `"\u0071uote"`, 1)))
	if err != nil || !bytes.Equal(e.Quote, raw) || !bytes.Equal(e.EventLog, log) {
		t.Errorf("got %v", err)
	}
	for _, other := range [][]byte{nil, raw[:100], append(bytes.Clone(raw), 0), dcaptest.File(t, "sgx_quote_v3_debug.bin")} {
		if _, err := tdx.FromRaw(other); err == nil {
			t.Errorf("accepted: %d bytes", len(other))
		}
	}
	for _, other := range []tdx.Evidence{{}, {Quote: raw, EventLog: make([]byte, tdx.MaxEventLog+1)}, {Quote: make([]byte, tdx.MaxQuote+1)}} {
		if _, err := other.JSON(); err == nil {
			t.Errorf("accepted: %d and %d bytes", len(other.Quote), len(other.EventLog))
		}
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	raw := dcaptest.File(t, "tdx_quote_v5.bin")
	data, err := tdx.FromRaw(raw)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		data   []byte
		format string
		odd    string
	}{
		"raw": {raw, "quote, version 5, TD report 1.5", ""}, "JSON": {data, "quote, version 5, TD report 1.5", ""},
		"debug":           {dcaptest.File(t, "tdx_quote_v4_debug.bin"), "quote, version 4, TD report 1.0", "debug"},
		"padded":          {dcaptest.File(t, "tdx_quote_v4_azure_padded.bin"), "quote, version 4, TD report 1.0", "70 bytes behind the quote"},
		"text behind":     {dcaptest.File(t, "tdx_quote_v4_spr_with_text_behind.bin"), "quote, version 4, TD report 1.0", "39 bytes behind the quote"},
		"cut":             {raw[:2000], "quote, version 5, TD report 1.5", "expected"},
		"odd JSON":        {[]byte(strings.TrimSuffix(string(data), "}") + `,"x":1}`), "quote, version 5, TD report 1.5", "unknown field"},
		"without a chain": {raw[:706], "quote, version 5, TD report 1.5", "expected"},
	} {
		i, err := tdx.Inspect(tc.data)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if i.TEE != tee.TDX || i.Format != tc.format || !strings.Contains(strings.Join(i.Odd, "\n"), tc.odd) || tc.odd == "" && len(i.Odd) > 0 {
			t.Errorf("%s: %+v", name, i)
		}
	}
	for _, other := range [][]byte{nil, []byte("{}"), []byte("{"), dcaptest.File(t, "sgx_quote_v3_debug.bin"), raw[:600]} {
		if _, err := tdx.Inspect(other); err == nil {
			t.Errorf("accepted: %.20q", other)
		}
	}
}

// Parsing allocates less than four times its input.
func TestAllocations(t *testing.T) {
	raw := dcaptest.File(t, "tdx_quote_v5.bin")
	plain, err := (&tdx.Evidence{Quote: raw, EventLog: make([]byte, 64<<10)}).JSON()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"as attesters write it": plain, "the long way": bytes.Replace(plain, []byte(`"quote"`), []byte(`"\u0071uote"`), 1)} {
		got := teetest.Allocated(t, func() error {
			e, err := tdx.ParseEvidence(data)
			if err == nil {
				_, err = tdx.ParseQuote(e.Quote)
			}
			return err
		})
		if got >= 4*len(data) {
			t.Errorf("%s: %d bytes for %d", name, got, len(data))
		}
	}
}

func FuzzParseQuote(f *testing.F) {
	for _, name := range []string{"tdx_quote_v4_debug.bin", "tdx_quote_v5.bin", "tdx_quote_v4_azure_padded.bin"} {
		f.Add(dcaptest.File(f, name))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _ = tdx.Inspect(raw)
		raw = tdx.Trim(raw)
		q, err := tdx.ParseQuote(raw)
		if err != nil {
			return
		}
		signed, err := q.SignedBytes()
		if err != nil {
			t.Fatal(err)
		}
		section, err := q.Signature.Bytes(q.Header.Version)
		if err != nil || !bytes.Equal(append(signed, section...), raw) {
			t.Error("a quote has two encodings")
		}
	})
}

func FuzzParseEvidence(f *testing.F) {
	data, err := tdx.FromRaw(dcaptest.File(f, "tdx_quote_v5.bin"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(data))
	f.Add([]byte(`{"quote":"AAAA","cc_eventlog":"AA=="}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := tdx.ParseEvidence(data)
		if err != nil || len(e.Quote) == 0 {
			return
		}
		again, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		if f, err := tdx.ParseEvidence(again); err != nil || !bytes.Equal(e.Quote, f.Quote) || !bytes.Equal(e.EventLog, f.EventLog) {
			t.Errorf("evidence does not survive encoding: %v", err)
		}
	})
}
