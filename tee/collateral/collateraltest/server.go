// Package collateraltest is a service of collateral for tests: AMD's, Intel's,
// NVIDIA's and Hygon's paths on one address, under roots that it makes itself.
// It keeps rates, delays, breaks and lies as told, and counts what it is asked.
//
// Nothing it issues is worth anything outside of a test: [Server.Checks] are the
// checks that take its roots for the vendors'.
package collateraltest

import (
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coffer-project/coffer/tee/collateral"
	"github.com/coffer-project/coffer/tee/snp"
)

// Lie is a way of answering wrongly.
type Lie string

// The lies. Those about content keep status 200.
const (
	Truth      Lie = ""
	OtherChip  Lie = "the certificate of another chip"
	OtherTCB   Lie = "the certificate of another patch level"
	OtherFMSPC Lie = "another platform family"
	OtherRoot  Lie = "signed under a root that nobody knows"
	HTML       Lie = "a page for browsers"
	Garbage    Lie = "random bytes"
	Truncated  Lie = "half of the content, with the length of the half"
	Twice      Lie = "the content twice"
	Endless    Lie = "content without end"
	Cut        Lie = "the connection ends in the middle"
	Reset      Lie = "the connection ends before the answer"
	Drip       Lie = "a byte each second"
	Redirect   Lie = "a redirect to http"
	Circle     Lie = "a redirect to itself"
	NoChain    Lie = "no issuer chain"
	Old        Lie = "a document of last year"
	NotFound   Lie = "status 404"
	Broken     Lie = "status 500"
	Forbidden  Lie = "status 403"
	Silent     Lie = "no answer"
	Overloaded Lie = "status 503"
)

// Behaviour is how the server answers.
type Behaviour struct {
	// Interval is the least time between two VCEKs; sooner requests get
	// status 429. All: it holds for every request, not only for VCEKs.
	Interval time.Duration
	All      bool
	// RetryAfter is how the 429 says when to come again: "seconds", "date",
	// "rounded down" or "" (not at all).
	RetryAfter string
	// Delay is how long each answer takes.
	Delay time.Duration
	Lie   Lie
	// LieTimes is how many answers are lies; 0: all.
	LieTimes int
	// Lifetime of dated documents; 0: 30 days.
	Lifetime time.Duration
}

// Server is the service. Create it with [New].
type Server struct {
	now func() time.Time

	mu        sync.Mutex
	behaviour Behaviour
	lied      int
	last      time.Time // when the last VCEK was given
	requests  []string
	answers   map[string]int // path and query → answers with status 200
	refused   int
	amd       *amdAuthority
	strange   *amdAuthority
	intel     *intelAuthority
	other     *intelAuthority
	nvidia    *nvidiaAuthority
	rims      map[string][]byte
	hygon     map[string][]byte
}

// New makes a server whose documents are dated by now (nil: time.Now).
func New(now func() time.Time) (*Server, error) {
	if now == nil {
		now = time.Now
	}
	s := &Server{now: now, answers: map[string]int{}, rims: map[string][]byte{}, hygon: map[string][]byte{}}
	var err error
	if s.amd, err = newAMD(now()); err != nil {
		return nil, err
	}
	if s.strange, err = newAMD(now()); err != nil {
		return nil, err
	}
	if s.intel, err = newIntel(now()); err != nil {
		return nil, err
	}
	if s.other, err = newIntel(now()); err != nil {
		return nil, err
	}
	s.nvidia, err = newNVIDIA(now())
	return s, err
}

// Fork returns another server with the same roots, that behaves and counts on
// its own: making roots takes a while.
func (s *Server) Fork(now func() time.Time) *Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now == nil {
		now = time.Now
	}
	return &Server{
		now: now, answers: map[string]int{}, rims: maps.Clone(s.rims), hygon: maps.Clone(s.hygon),
		amd: s.amd.fork(), strange: s.strange.fork(), intel: s.intel, other: s.other, nvidia: s.nvidia,
	}
}

// Set changes how the server answers from now on.
func (s *Server) Set(b Behaviour) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.behaviour, s.lied = b, 0
}

// Reset forgets what was counted.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests, s.refused = nil, 0
	clear(s.answers)
}

// Requests returns how many requests there were whose path contains part.
func (s *Server) Requests(part string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.requests {
		if strings.Contains(r, part) {
			n++
		}
	}
	return n
}

// Answers returns how many of them were answered with status 200, and
// the greatest number of such answers to one path and query.
func (s *Server) Answers(part string) (total, most int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r, n := range s.answers {
		if strings.Contains(r, part) {
			total += n
			most = max(most, n)
		}
	}
	return total, most
}

// Refused returns how many requests got status 429.
func (s *Server) Refused() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refused
}

// Endpoints are the services at that base URL.
func (s *Server) Endpoints(base string) collateral.Endpoints {
	return collateral.Endpoints{
		KDS: base, PCS: base, IntelRootCRL: base + "/IntelSGXRootCA.der", RIM: base, OCSP: base + "/ocsp", Hygon: base,
	}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.URL.RequestURI())
	b := s.behaviour
	if b.LieTimes > 0 && s.lied >= b.LieTimes {
		b.Lie = Truth
	} else if b.Lie != Truth {
		s.lied++
	}
	wait := s.throttle(b, r)
	s.mu.Unlock()
	if wait > 0 {
		retryAfter(w.Header(), b.RetryAfter, wait)
		http.Error(w, "too many requests", http.StatusTooManyRequests)
		return
	}
	if b.Delay > 0 && !pause(r, b.Delay) {
		return
	}
	body, header, err := s.answer(r, b)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	for name, values := range header {
		w.Header()[name] = values
	}
	if status, page, done := lie(w, r, b.Lie, body); done {
		return
	} else if status != http.StatusOK {
		http.Error(w, page, status)
		return
	}
	s.mu.Lock()
	s.answers[r.URL.RequestURI()]++
	s.mu.Unlock()
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}

// throttle returns how long the caller is too early. s.mu is held.
func (s *Server) throttle(b Behaviour, r *http.Request) time.Duration {
	if b.Interval <= 0 || !b.All && !isVCEK(r.URL.Path) {
		return 0
	}
	now := time.Now()
	if !s.last.IsZero() {
		if wait := b.Interval - now.Sub(s.last); wait > 0 {
			s.refused++
			return wait
		}
	}
	s.last = now
	return 0
}

func isVCEK(path string) bool {
	return strings.HasPrefix(path, "/vcek/v1/") && !strings.HasSuffix(path, "/cert_chain") && !strings.HasSuffix(path, "/crl")
}

func retryAfter(h http.Header, how string, wait time.Duration) {
	seconds := int((wait + time.Second - 1) / time.Second)
	switch how {
	case "seconds":
		h.Set("Retry-After", strconv.Itoa(seconds))
	case "rounded down":
		h.Set("Retry-After", strconv.Itoa(int(wait/time.Second)))
	case "date":
		now := time.Now().UTC()
		h.Set("Date", now.Format(http.TimeFormat))
		h.Set("Retry-After", now.Add(time.Duration(seconds)*time.Second).Format(http.TimeFormat))
	}
}

// pause waits, and reports whether the caller still does.
func pause(r *http.Request, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

// answer is the true answer to a request, or one that lies about content.
func (s *Server) answer(r *http.Request, b Behaviour) ([]byte, http.Header, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case len(p) == 4 && p[1] == "v1" && (p[0] == "vcek" || p[0] == "vlek"):
		body, err := s.kds(p, r.URL.Query(), b)
		return body, nil, err
	case len(p) >= 4 && p[1] == "certification" && p[2] == "v4" || len(p) == 1 && p[0] == "IntelSGXRootCA.der":
		return s.pcs(p, r.URL.Query(), b)
	case len(p) == 3 && p[0] == "v1" && p[1] == "rim":
		body, err := s.rim(p[2], b)
		return body, nil, err
	case len(p) == 1 && p[0] == "ocsp":
		body, err := s.nvidia.respond(r, s.dates(b))
		return body, nil, err
	case len(p) == 1 && p[0] == "hsk_cek":
		body, ok := s.hygon[r.URL.Query().Get("snumber")]
		if b.Lie == OtherRoot {
			body = append([]byte("x"), body...)
		}
		return body, nil, found(ok)
	}
	return nil, nil, found(false)
}

func found(ok bool) error {
	if !ok {
		return fmt.Errorf("no such thing")
	}
	return nil
}

// dates are those of a document that is issued now.
func (s *Server) dates(b Behaviour) (d dates) {
	lifetime := b.Lifetime
	if lifetime == 0 {
		lifetime = 30 * 24 * time.Hour
	}
	d.from = s.now().UTC().Add(-time.Minute).Truncate(time.Second)
	if b.Lie == Old {
		d.from = d.from.AddDate(-1, 0, 0)
	}
	d.to = d.from.Add(time.Minute + lifetime)
	return d
}

type dates struct{ from, to time.Time }

func (s *Server) kds(p []string, q url.Values, b Behaviour) ([]byte, error) {
	g := snp.Generation(p[2])
	authority := s.amd
	if b.Lie == OtherRoot {
		authority = s.strange
	}
	signer := snp.SignerVCEK
	if p[0] == "vlek" {
		signer = snp.SignerVLEK
	}
	switch p[3] {
	case "cert_chain":
		return authority.chain(g, signer)
	case "crl":
		return authority.crl(g, s.dates(b))
	}
	chip, err := hex.DecodeString(p[3])
	tcb, ok := levels(g, q)
	if err != nil || !ok {
		return nil, found(false)
	}
	switch b.Lie {
	case OtherChip:
		chip[0] ^= 1
	case OtherTCB:
		tcb.SNP++
	}
	der, _, err := authority.vcek(g, chip, tcb)
	return der, err
}

// levels reads the patch levels of a query, in the spelling of AMD's service.
func levels(g snp.Generation, q url.Values) (snp.TCB, bool) {
	var t snp.TCB
	ok := true
	read := func(name string) uint8 {
		n, err := strconv.ParseUint(q.Get(name), 10, 8)
		ok = ok && err == nil && len(q.Get(name)) >= 2 && len(q[name]) == 1
		return uint8(n)
	}
	t.Bootloader, t.TEE, t.SNP, t.Microcode = read("blSPL"), read("teeSPL"), read("snpSPL"), read("ucodeSPL")
	if g == snp.Turin {
		fmc := read("fmcSPL")
		t.FMC = &fmc
	}
	return t, ok
}
