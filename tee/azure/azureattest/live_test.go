package azureattest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/azure"
	"github.com/coffer-project/coffer/tee/azure/azureattest"
	"github.com/coffer-project/coffer/tee/azure/azureverify"
	"github.com/coffer-project/coffer/tee/dcap"
	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
	"github.com/coffer-project/coffer/tee/snp/snpverify"
	"github.com/coffer-project/coffer/tee/tdx"
	"github.com/coffer-project/coffer/tee/tdx/tdxverify"
	"github.com/coffer-project/coffer/tee/tpm/tpmattest"
)

// start runs a TPM of the test's own, with an attestation key where Azure has it.
// reportSize is less than Azure's 2600: swtpm has no larger indexes.
// paravisor is a TPM that answers user data with a new HCL report, some readings
// later.
// power puts the report of the machine's start into the index.
// report makes an HCL report over user data.
// Send implements transport.TPM.
func now() time.Time { return time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC) }

// chip is a made-up SNP processor; making one takes seconds.
// snpGuest is a guest of that chip, and the chip's certificate.
// service is a metadata service.
func attester(t *testing.T, o azureattest.Options) *azureattest.Attester {
	t.Helper()
	a, err := azureattest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func reportData() []byte {
	out := make([]byte, 48)
	_, _ = rand.Read(out)
	return out
}

func TestSNP(t *testing.T) {
	t.Parallel()
	processor, guest, vcek := snpGuest(t)
	p := &paravisor{TPM: start(t), t: t, kind: azure.SNPReport, hardware: guest.Report, delay: 3}
	if _, err := azureattest.New(azureattest.Options{TPM: p}); !errors.Is(err, azureattest.ErrNotAzure) {
		t.Errorf("a TPM without a report: expected ErrNotAzure, got %v", err)
	}
	p.power()
	a := attester(t, azureattest.Options{TPM: p, IMDS: service(t, vcek, nil).URL})
	hardware, err := snpverify.New(snpverify.Options{Now: now, DevelopmentRoots: []snpverify.DevelopmentRoot{{Name: "test", PEM: processor.RootPEM()}}})
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, a, tee.AzureSNPVTPM, azureverify.NewSNP(hardware, azureverify.Options{RequireV2: true}))

	vendor, err := snpverify.New(snpverify.Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	data := reportData()
	raw, err := a.Evidence(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := azureverify.NewSNP(vendor, azureverify.Options{}).Verify(t.Context(), raw, tee.Expected{ReportData: data}); err == nil {
		t.Error("a made-up chip was accepted without its root")
	}
}

func TestTDX(t *testing.T) {
	t.Parallel()
	w := dcaptest.New(t, dcap.TDX)
	quoter := w.Quoter(t)
	hardware := func(reportData [64]byte) ([]byte, error) {
		report := make([]byte, azure.TDReportSize)
		copy(report[128:], reportData[:])
		binary.LittleEndian.PutUint64(report[512:], uint64(tdx.AttributeSEPTVEDisable))
		binary.LittleEndian.PutUint64(report[520:], 0xE7)
		copy(report[528:], bytes.Repeat([]byte{0x4D}, 48))
		return report, nil
	}
	quote := func(report []byte) []byte {
		raw := dcaptest.TDQuote(t, quoter, func(q *tdx.Quote) {
			q.Header.Version, q.BodyType, q.TEETCBSVN = 4, tdx.BodyTDReport10, [16]byte{5, 0, 6}
			q.TDAttributes, q.XFAM = tdx.Attributes(binary.LittleEndian.Uint64(report[512:])), binary.LittleEndian.Uint64(report[520:])
			q.MRTD, q.ReportData = [48]byte(report[528:]), [64]byte(report[128:])
			q.MRConfigID, q.MROwner, q.MROwnerConfig, q.RTMR = [48]byte{}, [48]byte{}, [48]byte{}, [4][48]byte{}
		})
		return append(raw, make([]byte, 70)...) // as Azure's service pads
	}
	p := &paravisor{TPM: start(t), t: t, kind: azure.TDXReport, hardware: hardware}
	p.power()
	a := attester(t, azureattest.Options{TPM: p, IMDS: service(t, nil, quote).URL + "/"})
	v, err := tdxverify.New(tdxverify.Options{Now: func() time.Time { return w.Now }, DevelopmentRoots: []dcap.DevelopmentRoot{w.Root(t)}})
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, a, tee.AzureTDXVTPM, azureverify.NewTDX(v, azureverify.Options{RequireV2: true}))
}

// roundTrip attests, verifies, binds initdata and attests again.
func roundTrip(t *testing.T, a *azureattest.Attester, name tee.Name, v tee.Verifier) {
	t.Helper()
	if a.TEE() != name {
		t.Fatalf("detected %s", a.TEE())
	}
	digest := sha256.Sum256([]byte("initdata"))
	for _, c := range []struct {
		data []byte
		init []byte
	}{{reportData(), nil}, {reportData(), nil}, {[]byte("challenge"), nil}, {append(reportData(), make([]byte, 16)...), digest[:]}} {
		if c.init != nil {
			if err := a.BindInitData(t.Context(), c.init); err != nil {
				t.Fatal(err)
			}
		}
		raw, err := a.Evidence(t.Context(), c.data)
		if err != nil {
			t.Fatal(err)
		}
		got, err := v.Verify(t.Context(), raw, tee.Expected{ReportData: c.data, InitData: c.init})
		if err != nil {
			t.Fatal(err)
		}
		field, err := a.InitData(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !got.Simulated || got.Claims["hardware_report_fresh"] != true || got.TEE != name || !bytes.Equal(field, got.InitData) {
			t.Errorf("result: %+v", got)
		}
		other := slices.Clone(c.data)
		other[0] ^= 1
		if _, err := v.Verify(t.Context(), raw, tee.Expected{ReportData: other}); err == nil {
			t.Error("other report data were accepted")
		}
		if _, err := v.Verify(t.Context(), raw, tee.Expected{ReportData: c.data, InitData: bytes.Repeat([]byte{1}, 32)}); err == nil {
			t.Error("other initdata were accepted")
		}
	}
	for _, bad := range [][]byte{nil, {}, make([]byte, 65)} {
		if _, err := a.Evidence(t.Context(), bad); err == nil {
			t.Errorf("%d bytes of report data were accepted", len(bad))
		}
	}
}

// TestSlowParavisor: a report that never comes ends with the wait, and one that
// nobody waits for with the caller.
func TestSlowParavisor(t *testing.T) {
	t.Parallel()
	_, guest, vcek := snpGuest(t)
	p := &paravisor{TPM: start(t), t: t, kind: azure.SNPReport, hardware: guest.Report, delay: 1 << 20}
	p.power()
	url := service(t, vcek, nil).URL
	a := attester(t, azureattest.Options{TPM: p, IMDS: url, Wait: 200 * time.Millisecond})
	if _, err := a.Evidence(t.Context(), reportData()); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "user-data") {
		t.Errorf("expected the end of the wait, got %v", err)
	}
	a = attester(t, azureattest.Options{TPM: p, IMDS: url})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := a.Evidence(ctx, reportData()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("expected the end of the context, got %v", err)
	}
	if _, err := a.InitData(t.Context()); err != nil {
		t.Errorf("after a request that was given up: %v", err)
	}
}

// TestBadService: what the host may answer.
func TestBadService(t *testing.T) {
	t.Parallel()
	_, guest, _ := snpGuest(t)
	p := &paravisor{TPM: start(t), t: t, kind: azure.SNPReport, hardware: guest.Report}
	p.power()
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		says    string
	}{
		"error":    {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "busy", http.StatusServiceUnavailable) }, "503"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, "302"},
		"no JSON":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "invalid character"},
		"empty":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") }, "vcekCert"},
		"no PEM":   {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"vcekCert":"x"}`) }, "vcekCert"},
		"a key": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"vcekCert":"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}`)
		}, "vcekCert"},
		"endless": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, strings.Repeat(" ", 1<<20)) }, "at most"},
	} {
		s := httptest.NewServer(c.handler)
		a := attester(t, azureattest.Options{TPM: p, IMDS: s.URL})
		if _, err := a.Evidence(t.Context(), reportData()); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: expected an error with %q, got %v", name, c.says, err)
		}
		s.Close()
	}
}

// TestMalformedReport: an index that holds something else.
func TestMalformedReport(t *testing.T) {
	t.Parallel()
	s := start(t)
	if err := tpmattest.WriteNV(s, azureattest.IndexReport, bytes.Repeat([]byte{0xAA}, 1500)); err != nil {
		t.Fatal(err)
	}
	if _, err := azureattest.Detect(s); err == nil || errors.Is(err, azureattest.ErrNotAzure) {
		t.Errorf("expected an error about the report, got %v", err)
	}
	if _, err := azureattest.New(azureattest.Options{}); err == nil {
		t.Error("an attester without a TPM")
	}
}
