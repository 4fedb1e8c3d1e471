package softport

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap/dcapquote"
	"github.com/coffer-project/coffer/tee/tdx"
)

// quote is a quote over data that nobody signed.
func quote(t testing.TB, data [ReportDataSize]byte) []byte {
	t.Helper()
	q := tdx.Quote{
		Header:   dcapquote.Header{Version: 4, AttestationKeyType: dcapquote.KeyECDSAP256, TEEType: dcapquote.TEETypeTDX},
		BodyType: tdx.BodyTDReport10, BodySize: tdx.TDReport10Size, MRConfigID: [48]byte{1, 2, 3}, ReportData: data,
	}
	signed, err := q.SignedBytes()
	if err != nil {
		t.Fatal(err)
	}
	s := dcapquote.Signature{QEReport: make([]byte, dcapquote.EnclaveReportSize), Chain: []byte("chain")}
	section, err := s.Bytes(4)
	if err != nil {
		t.Fatal(err)
	}
	return append(signed, section...)
}

// tdHost returns the attester of a TD whose requests serve answers.
func tdHost(t testing.TB, serve func(rw io.ReadWriter, q Request) error) tee.Attester {
	return NewTDX(func(context.Context) (io.ReadWriteCloser, error) {
		guest, end := net.Pipe()
		go func() {
			defer func() { _ = end.Close() }()
			if q, err := ReadRequest(end); err == nil && q.Format == TDX {
				_ = serve(end, q) // the guest's side shows what went wrong
			}
		}()
		return guest, nil
	})
}

func TestTDXAttester(t *testing.T) {
	t.Parallel()
	log := []byte("log")
	a := tdHost(t, func(rw io.ReadWriter, q Request) error { return WriteQuote(rw, q.ID, quote(t, q.ReportData), log) })
	if a.TEE() != tee.TDX {
		t.Errorf("TEE: got %s", a.TEE())
	}
	for _, n := range []int{0, 48, 64} {
		data := bytes.Repeat([]byte{9}, n)
		evidence, err := a.Evidence(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		e, err := tdx.ParseEvidence(evidence)
		if err != nil {
			t.Fatal(err)
		}
		if want := quote(t, [64]byte(tee.Fit(data, 64))); !bytes.Equal(e.Quote, want) || !bytes.Equal(e.EventLog, log) {
			t.Errorf("%d bytes: got quote %x and log %q", n, e.Quote, e.EventLog)
		}
	}
	if _, err := a.Evidence(t.Context(), make([]byte, 65)); err == nil {
		t.Error("65 bytes of report data: no error")
	}
	initData, err := a.InitData(t.Context())
	if want := append([]byte{1, 2, 3}, make([]byte, 45)...); err != nil || !bytes.Equal(initData, want) {
		t.Errorf("initdata: got %x, %v", initData, err)
	}
	bare := tdHost(t, func(rw io.ReadWriter, q Request) error { return WriteQuote(rw, q.ID, quote(t, q.ReportData), nil) })
	if evidence, err := bare.Evidence(t.Context(), nil); err != nil || !strings.Contains(string(evidence), `"cc_eventlog":null`) {
		t.Errorf("without a log: got %.60s, %v", evidence, err)
	}
}

func TestHostileTDXHost(t *testing.T) {
	t.Parallel()
	payload := func(n uint32, rest int) []byte { return append(binary.BigEndian.AppendUint32(nil, n), make([]byte, rest)...) }
	for _, tc := range []struct {
		name  string
		serve func(rw io.ReadWriter, q Request) error
		want  string
	}{
		{"refusal", func(rw io.ReadWriter, q Request) error { return WriteRefusal(rw, q.ID, "no\x1b") }, `refused the report: "no\x1b`},
		{"a report", func(rw io.ReadWriter, q Request) error {
			return WriteReport(rw, q.ID, report(t, q.ReportData), nil)
		}, "kind 2"},
		{"another's quote", func(rw io.ReadWriter, q Request) error { return WriteQuote(rw, q.ID, quote(t, [64]byte{1}), nil) }, "another request"},
		{"no quote", func(rw io.ReadWriter, q Request) error { return WriteQuote(rw, q.ID, make([]byte, 100), nil) }, "header"},
		{"too long", func(rw io.ReadWriter, q Request) error { return write(rw, head(version, kindQuote, q.ID, 1<<32-1)) }, "payload"},
		{"too short", func(rw io.ReadWriter, q Request) error { return write(rw, head(version, kindQuote, q.ID, 4)) }, "payload"},
		{"length beyond the payload", func(rw io.ReadWriter, q Request) error {
			return writeFrame(rw, frame{kind: kindQuote, id: q.ID, payload: payload(101, 100)})
		}, "quote of 101 in 100"},
		{"length of the greatest number", func(rw io.ReadWriter, q Request) error {
			return writeFrame(rw, frame{kind: kindQuote, id: q.ID, payload: payload(1<<32-1, 100)})
		}, "malformed"},
		{"length zero", func(rw io.ReadWriter, q Request) error {
			return writeFrame(rw, frame{kind: kindQuote, id: q.ID, payload: payload(0, 100)})
		}, "quote of 0"},
		{"large quote", func(rw io.ReadWriter, q Request) error {
			return writeFrame(rw, frame{kind: kindQuote, id: q.ID, payload: payload(maxQuote+1, maxQuote+1)})
		}, "malformed"},
		{"large log", func(rw io.ReadWriter, q Request) error {
			return writeFrame(rw, frame{kind: kindQuote, id: q.ID, payload: payload(1, maxEventLog+2)})
		}, "malformed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			evidence, err := tdHost(t, tc.serve).Evidence(t.Context(), []byte("data"))
			if err == nil || !strings.Contains(err.Error(), tc.want) || evidence != nil {
				t.Errorf("got %s, %v; want an error with %q", evidence, err, tc.want)
			}
		})
	}
	for _, n := range []int{0, maxQuote + 1} {
		if WriteQuote(io.Discard, 1, make([]byte, n), nil) == nil {
			t.Errorf("a quote of %d bytes: no error", n)
		}
	}
	if WriteQuote(io.Discard, 1, make([]byte, 1), make([]byte, maxEventLog+1)) == nil {
		t.Error("a large log: no error")
	}
}
