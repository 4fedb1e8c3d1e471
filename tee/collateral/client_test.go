package collateral_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/collateral"
	"github.com/coffer-project/coffer/tee/collateral/collateraltest"
	"github.com/coffer-project/coffer/tee/snp"
)

var newAuthority = sync.OnceValues(func() (*collateraltest.Server, error) { return collateraltest.New(nil) })

// newServer is a server of the test's own.
func newServer(t testing.TB) *collateraltest.Server {
	t.Helper()
	authority, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	s := authority.Fork(nil)
	s.SetRIM(rimID, []byte("<SoftwareIdentity/>"))
	s.SetHygon("KPA64911240507", bytes.Repeat([]byte("HSK and CEK"), 100))
	return s
}

const rimID = "NV_GPU_DRIVER_GH100_535.104.05"

// prepare makes the authority before a bubble begins: its keys take real time.
func prepare(t testing.TB) { newServer(t) }

// pass lets time pass in a bubble.
func pass(d time.Duration) { <-time.After(d) }

// events counts what happens.
type events struct {
	mu  sync.Mutex
	all []collateral.Event
}

func (e *events) on(ev collateral.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, ev)
}

func (e *events) count(k collateral.EventType) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, ev := range e.all {
		if ev.Type == k {
			n++
		}
	}
	return n
}

// newClient is a client of the server without a network, changed by change.
func newClient(t testing.TB, s *collateraltest.Server, change func(*collateral.Options)) *collateral.Client {
	t.Helper()
	o := collateral.Options{
		Endpoints: s.Endpoints("https://collateral.test"), Checks: s.Checks(), HTTP: &http.Client{Transport: s.Transport()},
	}
	if change != nil {
		change(&o)
	}
	c, err := collateral.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func chipID(n int) []byte {
	id := bytes.Repeat([]byte{7}, 64)
	copy(id, fmt.Sprintf("chip %d", n))
	return id
}

func tcb() snp.TCB { return snp.TCB{Bootloader: 3, SNP: 8, Microcode: 115} }

// everything are items of every kind.
func everything(t testing.TB) []collateral.Item {
	t.Helper()
	fmc := uint8(1)
	var out []collateral.Item
	add := func(i collateral.Item, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, i)
	}
	add(collateral.VCEKItem(snp.Milan, chipID(1), tcb()))
	add(collateral.VCEKItem(snp.Turin, []byte("turin id"), snp.TCB{FMC: &fmc, Bootloader: 1, TEE: 2, SNP: 3, Microcode: 200}))
	add(collateral.AMDItem(collateral.AMDChain, snp.Genoa, snp.SignerVCEK))
	add(collateral.AMDItem(collateral.AMDChain, snp.Genoa, snp.SignerVLEK))
	add(collateral.AMDItem(collateral.AMDCRL, snp.Milan, snp.SignerVCEK))
	add(collateral.AMDItem(collateral.AMDCRL, snp.Turin, snp.SignerVLEK))
	for _, k := range []string{"tdx", "sgx"} {
		add(collateral.TCBInfoItem(k, [6]byte{0, 0xA0, 0x6D, 8}, collateral.Standard))
		add(collateral.TCBInfoItem(k, [6]byte{0, 0xA0, 0x6D, 8}, collateral.Early))
		add(collateral.QEIdentityItem(k, collateral.Standard))
	}
	add(collateral.PCKCRLItem("platform"))
	add(collateral.PCKCRLItem("processor"))
	add(collateral.RootCRLItem(), nil)
	add(collateral.RIMItem(rimID))
	add(collateral.HSKCEKItem("KPA64911240507"))
	return out
}

// Each kind is fetched, survives in the directory, and passes the checks again
// when it is read from there.
func TestEverything(t *testing.T) {
	s := newServer(t)
	dir := filepath.Join(t.TempDir(), "cache")
	c := newClient(t, s, func(o *collateral.Options) { o.Dir = dir })
	offline := newClient(t, s, func(o *collateral.Options) { o.Dir, o.Offline = dir, true })
	for _, i := range everything(t) {
		got, err := c.Get(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		if got.Item != i || len(got.Body) == 0 || !strings.HasPrefix(got.Source, "https://collateral.test/") || got.Fetched.IsZero() {
			t.Errorf("%s: got %+v", i, got)
		}
		again, err := offline.Get(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again.Body, got.Body) || !bytes.Equal(again.Chain, got.Chain) || !again.Fetched.Equal(got.Fetched) ||
			again.Source != got.Source || !again.NextUpdate.Equal(got.NextUpdate) || !again.Issued.Equal(got.Issued) {
			t.Errorf("%s: from the directory: got %+v, expected %+v", i, again, got)
		}
		if n := s.Requests(""); n != 1 {
			t.Errorf("%s: %d requests", i, n)
		}
		s.Reset()
		if parsed, err := collateral.ParseItem(i.String()); err != nil || parsed != i {
			t.Errorf("%s: reads as %s, %v", i, parsed, err)
		}
	}
	cert, issuer := s.Device()
	response, err := c.NVIDIA().OCSP(t.Context(), cert, issuer)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := offline.NVIDIA().OCSP(t.Context(), cert, issuer); err != nil || !bytes.Equal(response, again) {
		t.Errorf("OCSP from the directory: %v", err)
	}
	if _, err := c.NVIDIA().OCSP(t.Context(), issuer, cert); err == nil {
		t.Error("a status of a certificate that is not its issuer's")
	}
	private(t, dir)
}

// private checks that nobody else may read the directory, and that no temporary
// file is left in it.
func private(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %s", path, info.Mode())
		}
		if strings.HasPrefix(d.Name(), ".") {
			t.Errorf("%s is left", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestURLs(t *testing.T) {
	s := newServer(t)
	var urls []string
	c := newClient(t, s, func(o *collateral.Options) {
		o.Endpoints = collateral.Endpoints{PCS: "https://pccs.test:8081/sgx/certification/v4/"}
		o.HTTP = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			urls = append(urls, r.URL.String())
			return s.Transport().RoundTrip(r)
		})}
	})
	for _, i := range everything(t) {
		if _, err := c.Get(t.Context(), i); err != nil {
			t.Errorf("%s: %v", i, err)
		}
	}
	id := hex.EncodeToString(chipID(1))
	want := []string{
		"https://kdsintf.amd.com/vcek/v1/Milan/" + id + "?blSPL=03&teeSPL=00&snpSPL=08&ucodeSPL=115",
		"https://kdsintf.amd.com/vcek/v1/Turin/747572696e206964?fmcSPL=01&blSPL=01&teeSPL=02&snpSPL=03&ucodeSPL=200",
		"https://kdsintf.amd.com/vcek/v1/Genoa/cert_chain", "https://kdsintf.amd.com/vlek/v1/Genoa/cert_chain",
		"https://kdsintf.amd.com/vcek/v1/Milan/crl", "https://kdsintf.amd.com/vlek/v1/Turin/crl",
		"https://pccs.test:8081/tdx/certification/v4/tcb?fmspc=00A06D080000&update=standard", "https://pccs.test:8081/tdx/certification/v4/tcb?fmspc=00A06D080000&update=early",
		"https://pccs.test:8081/tdx/certification/v4/qe/identity?update=standard",
		"https://pccs.test:8081/sgx/certification/v4/tcb?fmspc=00A06D080000&update=standard", "https://pccs.test:8081/sgx/certification/v4/tcb?fmspc=00A06D080000&update=early",
		"https://pccs.test:8081/sgx/certification/v4/qe/identity?update=standard",
		"https://pccs.test:8081/sgx/certification/v4/pckcrl?ca=platform&encoding=der", "https://pccs.test:8081/sgx/certification/v4/pckcrl?ca=processor&encoding=der",
		"https://pccs.test:8081/sgx/certification/v4/rootcacrl", // in hex there
		"https://rim.attestation.nvidia.com/v1/rim/" + rimID, "https://cert.hygon.cn/hsk_cek?snumber=KPA64911240507",
	}
	if !slices.Equal(urls, want) {
		t.Errorf("got %q\nexpected %q", urls, want)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestOptions(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]collateral.Options{
		"update":   {Update: "late"},
		"scheme":   {Endpoints: collateral.Endpoints{KDS: "ftp://kds"}},
		"query":    {Endpoints: collateral.Endpoints{PCS: "https://pccs/?a=b"}},
		"host":     {Endpoints: collateral.Endpoints{RIM: "https://"}},
		"user":     {Endpoints: collateral.Endpoints{Hygon: "https://a:b@hygon"}},
		"negative": {MaxAge: -1},
		"pace":     {VCEKInterval: -1},
		"dir":      {Dir: "/dev/null/x"},
	} {
		if _, err := collateral.New(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// lies lists what the server does, and the reason the client has to give.
func lies() map[collateraltest.Lie]tee.CollateralReason {
	return map[collateraltest.Lie]tee.CollateralReason{
		collateraltest.OtherChip: tee.CollateralInvalid, collateraltest.OtherTCB: tee.CollateralInvalid, collateraltest.OtherFMSPC: tee.CollateralInvalid,
		collateraltest.OtherRoot: tee.CollateralInvalid, collateraltest.HTML: tee.CollateralInvalid, collateraltest.Garbage: tee.CollateralInvalid,
		collateraltest.Truncated: tee.CollateralInvalid, collateraltest.Twice: tee.CollateralInvalid, collateraltest.Endless: tee.CollateralInvalid,
		collateraltest.Redirect: tee.CollateralInvalid, collateraltest.Circle: tee.CollateralInvalid, collateraltest.NoChain: tee.CollateralInvalid,
		collateraltest.Cut: tee.CollateralUnreachable, collateraltest.Reset: tee.CollateralUnreachable, collateraltest.Drip: tee.CollateralUnreachable,
		collateraltest.Broken: tee.CollateralUnreachable, collateraltest.Forbidden: tee.CollateralUnreachable, collateraltest.Silent: tee.CollateralUnreachable,
		collateraltest.NotFound: tee.CollateralUnknown, collateraltest.Overloaded: tee.CollateralThrottled,
	}
}

// applies reports whether a lie is one for that kind of item.
func applies(l collateraltest.Lie, k collateral.Kind) bool {
	switch l {
	case collateraltest.OtherChip, collateraltest.OtherTCB:
		return k == collateral.VCEK
	case collateraltest.OtherFMSPC:
		return k == collateral.TCBInfo
	case collateraltest.NoChain:
		return k == collateral.TCBInfo || k == collateral.QEIdentity || k == collateral.PCKCRL
	}
	return true
}

// Whatever the server does, the answer is an error with the right reason and
// something to do about it, and nothing is stored.
func TestLies(t *testing.T) {
	prepare(t)
	for l, reason := range lies() {
		t.Run(strings.ReplaceAll(string(l), " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, i := range everything(t) {
					if !applies(l, i.Kind) {
						continue
					}
					s := newServer(t)
					dir := t.TempDir()
					c := newClient(t, s, func(o *collateral.Options) { o.Dir = dir })
					s.Set(collateraltest.Behaviour{Lie: l})
					start := time.Now()
					e, err := c.Get(t.Context(), i)
					if e != nil {
						t.Fatalf("%s: got something", i)
					}
					refused, ok := errors.AsType[*tee.CollateralError](err)
					if !ok || refused.Reason != reason || refused.Help() == "" || refused.Item == "" || !strings.HasPrefix(refused.Source, "https://") {
						t.Fatalf("%s: expected reason %q, got %v", i, reason, err)
					}
					if took := time.Since(start); took > 2*time.Minute {
						t.Errorf("%s: it took %s", i, took)
					}
					if files := tree(t, dir); len(files) > 0 {
						t.Errorf("%s: stored: %v", i, files)
					}
					// The flood after it costs the service nothing, and a
					// moment later the truth is taken.
					s.Reset()
					for range 20 {
						if _, err := c.Get(t.Context(), i); err == nil {
							t.Errorf("%s: got something", i)
						}
					}
					if n := s.Requests(""); n != 0 {
						t.Errorf("%s: %d requests although it just failed", i, n)
					}
					s.Set(collateraltest.Behaviour{})
					pass(time.Minute + time.Second)
					if _, err := c.Get(t.Context(), i); err != nil {
						t.Errorf("%s: after the lies: %v", i, err)
					}
				}
			})
		})
	}
}

// tree lists the files below a directory.
func tree(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return out
}

// A service that fails now and then is asked again at once.
func TestPassingFailures(t *testing.T) {
	prepare(t)
	for _, l := range []collateraltest.Lie{collateraltest.Broken, collateraltest.Reset, collateraltest.Cut, collateraltest.Overloaded} {
		synctest.Test(t, func(t *testing.T) {
			s := newServer(t)
			s.Set(collateraltest.Behaviour{Lie: l, LieTimes: 2, Delay: time.Second})
			if _, err := newClient(t, s, nil).Get(t.Context(), collateral.RootCRLItem()); err != nil {
				t.Errorf("%s: %v", l, err)
			}
		})
	}
}

func TestOffline(t *testing.T) {
	s := newServer(t)
	missing := filepath.Join(t.TempDir(), "none")
	c := newClient(t, s, func(o *collateral.Options) { o.Offline, o.Dir = true, missing })
	_, err := c.Get(t.Context(), collateral.RootCRLItem())
	if refused, ok := errors.AsType[*tee.CollateralError](err); !ok || refused.Reason != tee.CollateralMissing || !strings.Contains(refused.Help(), "coffer collateral fetch") {
		t.Errorf("got %v", err)
	}
	if s.Requests("") != 0 {
		t.Error("asked although offline")
	}
	if _, err := os.Stat(missing); err == nil {
		t.Error("the directory was made although offline")
	}
	if _, err := c.AMD().VCEK(t.Context(), snp.Milan, make([]byte, 64), tcb()); err == nil || !strings.Contains(err.Error(), "masks") {
		t.Errorf("a masked chip: %v", err)
	}
}

// Without a check for a kind, nothing of the kind is taken.
func TestNoCheck(t *testing.T) {
	prepare(t)
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		c := newClient(t, s, func(o *collateral.Options) { o.Checks = collateral.Checks{} })
		for _, i := range everything(t) {
			if _, err := c.Get(t.Context(), i); err == nil {
				t.Errorf("%s: taken unchecked", i)
			}
		}
	})
}

func TestClose(t *testing.T) {
	prepare(t)
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.Set(collateraltest.Behaviour{Lie: collateraltest.Silent})
		c := newClient(t, s, nil)
		var work sync.WaitGroup
		work.Go(func() {
			if _, err := c.Get(t.Context(), collateral.RootCRLItem()); err == nil {
				t.Error("got something")
			}
		})
		synctest.Wait()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		work.Wait()
		if _, err := c.Get(context.Background(), collateral.RootCRLItem()); err == nil {
			t.Error("a closed client fetches")
		}
	})
}
