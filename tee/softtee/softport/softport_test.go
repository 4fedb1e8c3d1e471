package softport

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

// report is an unsigned report over data.
func report(t testing.TB, data [ReportDataSize]byte) []byte {
	t.Helper()
	r := snp.Report{Version: 2, Policy: snp.PolicyReserved1, ReportData: data, HostData: [32]byte{1, 2, 3}}
	raw, err := r.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// host returns an attester whose port is served by serve.
func host(t testing.TB, serve func(io.ReadWriter) error) tee.Attester {
	return New(func(context.Context) (io.ReadWriteCloser, error) {
		guest, end := net.Pipe()
		go func() {
			defer func() { _ = end.Close() }()
			_ = serve(end) // the guest's side shows what went wrong
		}()
		return guest, nil
	})
}

// honest answers each request.
func honest(t testing.TB, rw io.ReadWriter) error {
	for {
		q, err := ReadRequest(rw)
		if err != nil {
			return err
		}
		if err := WriteReport(rw, q.ID, report(t, q.ReportData), []snp.Certificate{{Type: snp.CertVCEK, Data: []byte("chip")}}); err != nil {
			return err
		}
	}
}

func TestAttester(t *testing.T) {
	t.Parallel()
	a := host(t, func(rw io.ReadWriter) error { return honest(t, rw) })
	if a.TEE() != tee.SNP {
		t.Errorf("TEE: got %s", a.TEE())
	}
	for _, n := range []int{0, 48, 64} {
		data := bytes.Repeat([]byte{9}, n)
		evidence, err := a.Evidence(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		e, err := snp.ParseEvidence(evidence)
		if err != nil {
			t.Fatal(err)
		}
		if want := [64]byte(tee.Fit(data, 64)); e.AttestationReport.ReportData != want {
			t.Errorf("report data: got %x, want %x", e.AttestationReport.ReportData, want)
		}
		if diff := cmp.Diff([]snp.Certificate{{Type: snp.CertVCEK, Data: []byte("chip")}}, e.CertChain); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := a.Evidence(t.Context(), make([]byte, 65)); err == nil {
		t.Error("65 bytes of report data: no error")
	}
	initData, err := a.InitData(t.Context())
	if want := append([]byte{1, 2, 3}, make([]byte, 29)...); err != nil || !bytes.Equal(initData, want) {
		t.Errorf("initdata: got %x, %v", initData, err)
	}
}

func TestHostileHost(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		serve func(rw io.ReadWriter, q Request) error
		want  string
	}{
		{"refusal", func(rw io.ReadWriter, q Request) error {
			return WriteRefusal(rw, q.ID, "not today\x1b[31m"+strings.Repeat("x", 4096))
		}, `refused the report: "not today\x1b[31m`},
		{"hangs up", func(io.ReadWriter, Request) error { return nil }, "unexpected EOF"},
		{"half a header", func(rw io.ReadWriter, _ Request) error { return write(rw, []byte(magic)) }, "unexpected EOF"},
		{"half a payload", func(rw io.ReadWriter, q Request) error {
			return write(rw, head(version, kindReport, q.ID, snp.ReportSize))
		}, "unexpected EOF"},
		{"wrong magic", func(rw io.ReadWriter, _ Request) error { return write(rw, make([]byte, headerSize)) }, "malformed"},
		{"wrong version", func(rw io.ReadWriter, q Request) error { return write(rw, head(2, kindReport, q.ID, snp.ReportSize)) }, "version 2"},
		{"a request", func(rw io.ReadWriter, q Request) error { return write(rw, head(version, kindRequest, q.ID, 64)) }, "kind 1"},
		{"too long", func(rw io.ReadWriter, q Request) error { return write(rw, head(version, kindReport, q.ID, 1<<32-1)) }, "payload"},
		{"too short", func(rw io.ReadWriter, q Request) error { return write(rw, head(version, kindReport, q.ID, 3)) }, "payload"},
		{"another's report", func(rw io.ReadWriter, q Request) error {
			return WriteReport(rw, q.ID, report(t, [64]byte{1}), nil)
		}, "another request"},
		{"no report", func(rw io.ReadWriter, q Request) error {
			return writeFrame(rw, frame{kind: kindReport, id: q.ID, payload: make([]byte, snp.ReportSize)})
		}, "version"},
		{"broken certificate table", func(rw io.ReadWriter, q Request) error {
			return writeFrame(rw, frame{kind: kindReport, id: q.ID, payload: append(report(t, q.ReportData), 1)})
		}, "certificate table"},
		{"stale without end", func(rw io.ReadWriter, q Request) error {
			for {
				if err := WriteReport(rw, q.ID+1, report(t, q.ReportData), nil); err != nil {
					return err
				}
			}
		}, "other requests"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			a := host(t, func(rw io.ReadWriter) error {
				q, err := ReadRequest(rw)
				if err != nil {
					return err
				}
				return tc.serve(rw, q)
			})
			evidence, err := a.Evidence(t.Context(), []byte("data"))
			if err == nil || !strings.Contains(err.Error(), tc.want) || evidence != nil {
				t.Errorf("got %s, %v; want an error with %q", evidence, err, tc.want)
			}
			if err != nil && (len(err.Error()) > 2000 || strings.ContainsRune(err.Error(), '\x1b')) {
				t.Errorf("the host wrote freely into the error: %q", err)
			}
		})
	}
}

func TestStaleResponsesAreSkipped(t *testing.T) {
	t.Parallel()
	a := host(t, func(rw io.ReadWriter) error {
		q, err := ReadRequest(rw)
		if err != nil {
			return err
		}
		for i := range uint64(maxStale) {
			if err := WriteReport(rw, q.ID+1+i, report(t, [64]byte{8}), nil); err != nil {
				return err
			}
		}
		return WriteReport(rw, q.ID, report(t, q.ReportData), nil)
	})
	if _, err := a.Evidence(t.Context(), []byte("data")); err != nil {
		t.Error(err)
	}
}

func TestSilentHost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		silent := func(rw io.ReadWriter) error {
			_, err := io.Copy(io.Discard, rw)
			return err
		}
		// Without a deadline of the caller's, the package has its own.
		start := time.Now()
		_, err := host(t, silent).Evidence(t.Context(), nil)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != Timeout {
			t.Errorf("after %s: got %v", time.Since(start), err)
		}
		// A caller that waits for its turn can give up.
		a := host(t, silent)
		ctx, cancel := context.WithCancel(t.Context())
		first := make(chan error, 1)
		go func() { _, err := a.Evidence(ctx, nil); first <- err }()
		synctest.Wait()
		short, done := context.WithTimeout(t.Context(), time.Second)
		defer done()
		if _, err := a.InitData(short); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "earlier request") {
			t.Errorf("second caller: got %v", err)
		}
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("first caller: got %v", err)
		}
	})
}

func TestPortCannotBeOpened(t *testing.T) {
	t.Parallel()
	gone := errors.New("gone")
	a := New(func(context.Context) (io.ReadWriteCloser, error) { return nil, gone })
	if _, err := a.Evidence(t.Context(), nil); !errors.Is(err, gone) || !strings.Contains(err.Error(), PortName) {
		t.Errorf("got %v", err)
	}
}

func TestWriteReportRefuses(t *testing.T) {
	t.Parallel()
	if WriteReport(io.Discard, 1, make([]byte, 10), nil) == nil {
		t.Error("a short report: no error")
	}
	large := slices.Repeat([]snp.Certificate{{Type: snp.CertASK, Data: make([]byte, snp.MaxCertificate)}}, 3)
	if WriteReport(io.Discard, 1, make([]byte, snp.ReportSize), large) == nil {
		t.Error("a large certificate table: no error")
	}
}

func write(w io.Writer, b []byte) error { _, err := w.Write(b); return err }

func head(v, kind byte, id uint64, length uint32) []byte {
	b := append([]byte(magic), v, kind, 0, 0)
	b = binary.BigEndian.AppendUint64(b, id)
	return binary.BigEndian.AppendUint32(b, length)
}

func FuzzReadRequest(f *testing.F) {
	var good bytes.Buffer
	if err := writeRequest(&good, Request{ID: 7, ReportData: [64]byte{1}}); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	var quote bytes.Buffer
	if err := writeRequest(&quote, Request{ID: 7, Format: TDX, ReportData: [64]byte{1}}); err != nil {
		f.Fatal(err)
	}
	f.Add(quote.Bytes())
	f.Add(head(version, kindRequest, 1, 1<<31))
	f.Fuzz(func(t *testing.T, data []byte) {
		q, err := ReadRequest(bytes.NewReader(data))
		if err != nil {
			if q != (Request{}) {
				t.Fatal("both a request and an error")
			}
			return
		}
		var again bytes.Buffer
		if err := writeRequest(&again, q); err != nil || !bytes.HasPrefix(data, again.Bytes()) {
			t.Fatalf("request changed (%v)", err)
		}
	})
}

func FuzzReadResponse(f *testing.F) {
	var good, refusal, quote bytes.Buffer
	if err := errors.Join(
		WriteReport(&good, 7, report(f, [64]byte{1}), []snp.Certificate{{Type: snp.CertVCEK, Data: []byte("chip")}}),
		WriteRefusal(&refusal, 7, "no"),
		WriteQuote(&quote, 7, []byte("quote"), []byte("log")),
	); err != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{good.Bytes(), refusal.Bytes(), quote.Bytes(), head(version, kindReport, 1, 1<<31), head(version, kindQuote, 1, 1<<31)} {
		f.Add(b, false)
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, data []byte, td bool) {
		format := SNP
		if td {
			format = TDX
		}
		resp, err := readResponse(bytes.NewReader(data), Request{Format: format})
		if err != nil {
			if resp.report != nil || resp.quote != nil || resp.refusal != "" {
				t.Fatal("both a response and an error")
			}
			return
		}
		if resp.report != nil && (td || len(resp.report) != snp.ReportSize) {
			t.Fatalf("report of %d bytes", len(resp.report))
		}
		if resp.quote == nil {
			return
		}
		if !td || len(resp.quote) == 0 || len(resp.quote) > maxQuote || len(resp.log) > maxEventLog {
			t.Fatalf("quote of %d bytes, log of %d", len(resp.quote), len(resp.log))
		}
		var again bytes.Buffer
		if err := WriteQuote(&again, resp.id, resp.quote, resp.log); err != nil || !bytes.HasPrefix(data, again.Bytes()) {
			t.Fatalf("response changed (%v)", err)
		}
	})
}
