package tests

import (
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/dcap/dcaptest"
	"github.com/coffer-project/coffer/tee/snp"
)

// vendors is a mirror of AMD's and Intel's services with what these really
// issued. It answers after a while, as it is told, and counts.
type vendors struct {
	t   *testing.T
	url string

	mu    sync.Mutex
	asked map[string]int
	// instead replaces answers to paths that contain the key.
	instead map[string]http.HandlerFunc
	down    bool
}

const vendorDelay = 200 * time.Millisecond

func newVendors(t *testing.T) *vendors {
	t.Helper()
	v := &vendors{t: t, asked: map[string]int{}, instead: map[string]http.HandlerFunc{}}
	server := httptest.NewServer(v)
	t.Cleanup(server.Close)
	v.url = server.URL
	return v
}

func (v *vendors) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	v.asked[r.URL.RequestURI()]++
	answer := v.answer
	for part, f := range v.instead {
		if strings.Contains(r.URL.RequestURI(), part) {
			answer = f
		}
	}
	if v.down {
		answer = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	}
	v.mu.Unlock()
	delay := time.NewTimer(vendorDelay) // so that a crowd arrives before the answer
	defer delay.Stop()
	select {
	case <-delay.C:
		answer(w, r)
	case <-r.Context().Done():
	}
}

func (v *vendors) answer(w http.ResponseWriter, r *http.Request) {
	file := func(name, header, chain string) {
		if chain != "" {
			w.Header().Set(header, url.PathEscape(string(dcaptest.File(v.t, chain))))
		}
		_, _ = w.Write(dcaptest.File(v.t, name)) // the client may be gone
	}
	switch path := r.URL.Path; {
	case path == "/tdx/certification/v4/tcb" && r.URL.Query().Get("fmspc") == "50806F000000":
		file("tcb_info_tdx_50806f000000_2023-06.json", "TCB-Info-Issuer-Chain", "chain_signing_2018.pem")
	case path == "/tdx/certification/v4/qe/identity":
		file("qe_identity_tdx_2023-06.json", "SGX-Enclave-Identity-Issuer-Chain", "chain_signing_2018.pem")
	case path == "/sgx/certification/v4/pckcrl":
		file("pck_crl_platform_2023-06.der", "SGX-PCK-CRL-Issuer-Chain", "chain_platform_ca.pem")
	case path == "/sgx/certification/v4/rootcacrl":
		_, _ = w.Write([]byte(hex.EncodeToString(dcaptest.File(v.t, "root_crl_2023.der"))))
	case strings.HasPrefix(path, "/vcek/v1/"):
		for report, vcek := range chips() {
			raw := vector(v.t, "snp/testdata/"+report)
			if r, err := snp.DecodeReport(raw); err == nil && strings.Contains(path, hex.EncodeToString(r.ChipID[:8])) {
				_, _ = w.Write(vector(v.t, "snp/testdata/"+vcek))
				return
			}
		}
		http.NotFound(w, r)
	default:
		http.NotFound(w, r)
	}
}

// chips are the published reports with the certificates of their chips.
func chips() map[string]string {
	return map[string]string{
		"test-report.bin": "test-vcek.der", "azure-genoa-report.bin": "azure-genoa-vcek.der", "genoa-v5-report.bin": "genoa-v5-vcek.der",
		"turin-report.bin": "turin-vcek.der", "azure-report.bin": "azure-vcek.der",
	}
}

func (v *vendors) set(change func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change()
}

// requests lists what was asked for since the last call.
func (v *vendors) requests() map[string]int {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := v.asked
	v.asked = map[string]int{}
	return out
}

// each demands that so many different things were asked for, each once.
func (v *vendors) each(what string, n int) {
	v.t.Helper()
	asked := v.requests()
	for uri, times := range asked {
		if times != 1 || len(asked) != n {
			v.t.Errorf("%s: %s was asked for %d times, %d different things; want %d, each once", what, uri, times, len(asked), n)
		}
	}
	if len(asked) != n {
		v.t.Errorf("%s: asked for %d things, want %d", what, len(asked), n)
	}
}

// bare is a report without its chip's certificate, which the trustee has to get.
func bare(t testing.TB, report string) (json.RawMessage, []byte) {
	t.Helper()
	raw := vector(t, "snp/testdata/"+report)
	e, err := snp.NewEvidence(raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return doc, raw[0x50:0x90]
}

// crowd has many ask at once; all must get a token.
func (j *judge) crowd(name tee.Name, evidence json.RawMessage, data []byte) appraised {
	j.t.Helper()
	const many = 16
	var all sync.WaitGroup
	out := make([]map[string]appraised, many)
	for i := range many {
		all.Go(func() {
			got, e := j.evaluate(name, evidence, data)
			if e != nil {
				j.t.Errorf("%v", e)
			}
			out[i] = got
		})
	}
	all.Wait()
	if j.t.Failed() {
		j.t.FailNow()
	}
	return out[0]["cpu0"]
}

// events are what happened to a vendor's collateral.
func (s *site) events(vendor, event string) float64 {
	s.t.Helper()
	f, _ := s.scrape()
	return value(f, "coffer_collateral_events_total", "vendor="+vendor, "event="+event)
}

// TestChipCertificates: the process gets a chip's certificate once for all who
// ask, keeps it beyond its own end, and answers from what it keeps when AMD's
// service is away.
func TestChipCertificates(t *testing.T) {
	t.Parallel()
	v := newVendors(t)
	dir := t.TempDir()
	text := "attestation_service.listen = \"127.0.0.1:0\"\ntee.snp.check_revocation = false\ncollateral.amd_kds = " + quote(v.url) + "\n"
	s := launch(t, the.plain, dir, text)
	evidence, data := bare(t, "test-report.bin")
	j := s.judge("chips")
	if got := j.crowd(tee.SNP, evidence, data); got.claim(tee.SNP, "simulated") != false {
		t.Errorf("%+v", got)
	}
	v.each("a crowd", 1)
	if s.events("amd", "fetch") != 1 || s.events("amd", "stored") != 1 || s.events("amd", "failed") != 0 {
		t.Errorf("events: %v fetched, %v stored, %v failed", s.events("amd", "fetch"), s.events("amd", "stored"), s.events("amd", "failed"))
	}
	// What is kept is the chip's: another's is asked for.
	other, otherData := bare(t, "turin-report.bin")
	if _, e := j.evaluate(tee.SNP, other, otherData); e != nil {
		t.Error(e)
	}
	v.each("another chip", 1)
	s.stop()

	v.set(func() { v.down = true })
	s = launch(t, the.plain, dir, text)
	j = s.again("chips")
	j.crowd(tee.SNP, evidence, data)
	v.each("after a restart", 0)
	if s.events("amd", "hit") == 0 {
		t.Error("no hit was counted")
	}
	unknown, data := bare(t, "genoa-v5-report.bin")
	_, e := j.evaluate(tee.SNP, unknown, data)
	j.denied("the service is away", e, http.StatusServiceUnavailable, "snp.chain")
	// Where it was looked for is for the operator.
	if e != nil && strings.Contains(e.Error(), v.url) || !strings.Contains(s.log.String(), v.url) {
		t.Errorf("the client: %v; the log:\n%s", e, tail(s.log.String()))
	}
	if s.events("amd", "failed") == 0 {
		t.Error("no failure was counted")
	}
}

// TestLyingVendor: whatever a service or a proxy before it sends, evidence is
// not judged by it, and the answer says in which way it failed.
func TestLyingVendor(t *testing.T) {
	t.Parallel()
	v := newVendors(t)
	send := func(status int, body []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(status)
			_, _ = w.Write(body) // the client may be gone
		}
	}
	// Each has a chip of its own: what failed is not asked for again at once.
	lies := map[string]struct {
		what   string
		answer http.HandlerFunc
		reason string
	}{
		"test-report.bin":        {"another chip's certificate", send(http.StatusOK, vector(t, "snp/testdata/azure-vcek.der")), "invalid"},
		"azure-genoa-report.bin": {"a log-in page", send(http.StatusOK, []byte("<!DOCTYPE html><html>log in</html>")), "invalid"},
		"genoa-v5-report.bin":    {"a changed certificate", send(http.StatusOK, vector(t, "snp/testdata/test-vcek-invalid-new.der")), "invalid"},
		"azure-report.bin":       {"no such chip", send(http.StatusNotFound, nil), "unknown"},
	}
	for report, lie := range lies {
		r, err := snp.DecodeReport(vector(t, "snp/testdata/"+report))
		if err != nil {
			t.Fatal(err)
		}
		v.instead[hex.EncodeToString(r.ChipID[:8])] = lie.answer
	}
	s := launch(t, the.plain, "", "attestation_service.listen = \"127.0.0.1:0\"\ntee.snp.check_revocation = false\nlimits.request_timeout = \"3s\"\ncollateral.amd_kds = "+quote(v.url)+"\n")
	j := s.judge("lies")
	for _, report := range []string{"test-report.bin", "azure-genoa-report.bin", "genoa-v5-report.bin", "azure-report.bin"} {
		lie := lies[report]
		evidence, data := bare(t, report)
		_, e := j.evaluate(tee.SNP, evidence, data)
		j.denied(lie.what, e, http.StatusServiceUnavailable, "snp.chain")
		if e != nil && !slices.ContainsFunc(e.Info.Reasons, func(r kbs.Reason) bool { return r.Got == lie.reason && strings.Contains(r.Expected, "VCEK") }) {
			t.Errorf("%s: %+v; want %q", lie.what, e.Info, lie.reason)
		}
		if e != nil && strings.Contains(e.Error(), v.url) {
			t.Errorf("%s: the client learns the service's address: %v", lie.what, e)
		}
	}
	// What came is not kept.
	if s.events("amd", "stored") != 0 || s.events("amd", "throttled") != 0 {
		t.Errorf("%v stored, %v throttled", s.events("amd", "stored"), s.events("amd", "throttled"))
	}
	// A service that wants to be left alone is waited for as long as a request
	// may take.
	v.set(func() { v.instead["/vcek/v1/Turin/"] = send(http.StatusTooManyRequests, nil) })
	evidence, data := bare(t, "turin-report.bin")
	_, e := j.evaluate(tee.SNP, evidence, data)
	if e == nil || e.Status != http.StatusServiceUnavailable || strings.Contains(e.Error(), v.url) || s.events("amd", "throttled") == 0 {
		t.Errorf("throttled: %v, %v events", e, s.events("amd", "throttled"))
	}
}

// TestStaleCollateral: Intel's documents are fetched once for a crowd, kept over
// a restart, and past their date judge on only where the operator says so, which
// the token tells.
func TestStaleCollateral(t *testing.T) {
	t.Parallel()
	v := newVendors(t)
	dir := t.TempDir()
	text := "attestation_service.listen = \"127.0.0.1:0\"\ntee.tdx.allow_debug = true\ncollateral.max_age = \"720h\"\ncollateral.intel_pcs = " + quote(v.url) + "\n"
	x := environments(t)["tdx v4, a debug guest, old collateral"]
	s := embedAt(t, dcaptest.At2023(), dir, text, developmentLater)
	if got := s.judge("tdx").crowd(tee.TDX, x.evidence, x.data); got.claim(tee.TDX, "tcb_status") != "UpToDate" || got.claim(tee.TDX, "collateral_expiration_status") != "0" {
		t.Errorf("%+v", got.Evidence)
	}
	v.each("a crowd", 4)
	s.stop()
	v.set(func() { v.down = true })
	s = embedAt(t, dcaptest.At2023(), dir, text, developmentLater)
	s.again("tdx").crowd(tee.TDX, x.evidence, x.data)
	v.each("after a restart", 0)
	s.stop()
	// The documents expire while the service is away.
	later := dcaptest.At2023().AddDate(0, 0, 14)
	s = embedAt(t, later, dir, text+"tee.tdx.allow_stale_collateral = true\n", developmentLater)
	j := s.again("tdx")
	list, e := j.evaluate(tee.TDX, x.evidence, x.data)
	if e != nil {
		t.Fatal(e)
	}
	if got := list["cpu0"]; got.claim(tee.TDX, "collateral_expiration_status") != "1" || !slices.Contains(got.rules(), "tdx.collateral_expiration_status") {
		t.Errorf("%s %q", got.Status, got.rules())
	}
	if s.events("intel", "stale") == 0 || s.events("intel", "failed") == 0 {
		t.Errorf("%v stale, %v failed", s.events("intel", "stale"), s.events("intel", "failed"))
	}
}
