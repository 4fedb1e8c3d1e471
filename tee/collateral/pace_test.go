package collateral_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/collateral"
	"github.com/coffer-project/coffer/tee/collateral/collateraltest"
	"github.com/coffer-project/coffer/tee/snp"
)

// A thousand attestations of ten chips against a service that gives one VCEK in
// ten seconds: ten VCEKs, no error, and hardly a request that is refused.
func TestThousandAttestations(t *testing.T) {
	prepare(t)
	for _, tc := range []struct {
		retryAfter string
		interval   time.Duration // known beforehand
		refused    int           // at most
		within     time.Duration
	}{
		{"seconds", 0, 1, 100 * time.Second},
		{"date", 0, 1, 100 * time.Second}, // and in memory only
		{"rounded down", 0, 2, 110 * time.Second},
		{"", 0, 5, 160 * time.Second},
		{"seconds", 10 * time.Second, 0, 91 * time.Second},
		{"", 10 * time.Second, 0, 91 * time.Second},
	} {
		t.Run(fmt.Sprintf("%q %s", tc.retryAfter, tc.interval), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t)
				s.Set(collateraltest.Behaviour{Interval: 10 * time.Second, RetryAfter: tc.retryAfter})
				var ev events
				c := newClient(t, s, func(o *collateral.Options) {
					if o.VCEKInterval, o.OnEvent = tc.interval, ev.on; tc.retryAfter != "date" {
						o.Dir = t.TempDir()
					}
				})
				start := time.Now()
				var work sync.WaitGroup
				for n := range 1000 {
					work.Go(func() {
						// Attestations need a revocation list too, which is not
						// throttled; it waits only while the service refuses.
						if _, err := c.AMD().VCEK(t.Context(), snp.Milan, chipID(n%10), tcb()); err != nil {
							t.Error(err)
						}
						if _, err := c.AMD().CRL(t.Context(), snp.Milan, snp.SignerVCEK); err != nil {
							t.Error(err)
						}
					})
				}
				work.Wait()
				if total, most := s.Answers("blSPL"); total != 10 || most != 1 {
					t.Errorf("expected 10 VCEK fetches, got %d, of one chip up to %d", total, most)
				}
				if total, _ := s.Answers("/crl"); total != 1 {
					t.Errorf("expected one fetch of the revocation list, got %d", total)
				}
				if s.Refused() > tc.refused || ev.count(collateral.EventThrottled) != s.Refused() {
					t.Errorf("expected at most %d refused requests, got %d", tc.refused, s.Refused())
				}
				if took := time.Since(start); took > tc.within {
					t.Errorf("expected it to take at most %s, got %s", tc.within, took)
				}
			})
		})
	}
}

// The same over sockets, with a shorter interval and real time.
func TestThrottledForReal(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for real")
	}
	s := newServer(t)
	s.Set(collateraltest.Behaviour{Interval: 300 * time.Millisecond, RetryAfter: "seconds"})
	server := httptest.NewServer(s)
	defer server.Close()
	c := newClient(t, s, func(o *collateral.Options) { o.Endpoints, o.HTTP = s.Endpoints(server.URL), server.Client() })
	var work sync.WaitGroup
	for n := range 200 {
		work.Go(func() {
			if _, err := c.AMD().VCEK(t.Context(), snp.Milan, chipID(n%3), tcb()); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	if total, most := s.Answers("blSPL"); total != 3 || most != 1 || s.Refused() > 1 {
		t.Errorf("%d fetches, up to %d of one chip, %d refused", total, most, s.Refused())
	}
}

// A service that does not throttle but takes its time is asked four at a time.
func TestNoThrottleIsNoWait(t *testing.T) {
	prepare(t)
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.Set(collateraltest.Behaviour{Delay: time.Second})
		c := newClient(t, s, nil)
		start := time.Now()
		var work sync.WaitGroup
		for n := range 40 {
			work.Go(func() {
				if _, err := c.AMD().VCEK(t.Context(), snp.Milan, chipID(n), tcb()); err != nil {
					t.Error(err)
				}
			})
		}
		work.Wait()
		if took := time.Since(start); took > 13*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// One that gives up gets an error that says when to come again; the others get
// the certificate, for one request.
func TestGivingUp(t *testing.T) {
	prepare(t)
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.Set(collateraltest.Behaviour{Delay: 5 * time.Second})
		c := newClient(t, s, nil)
		var work sync.WaitGroup
		work.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := c.AMD().VCEK(ctx, snp.Milan, chipID(0), tcb())
			if _, ok := errors.AsType[*tee.CollateralError](err); !ok || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
		synctest.Wait() // the one that gives up has started it
		for range 10 {
			work.Go(func() {
				if _, err := c.AMD().VCEK(t.Context(), snp.Milan, chipID(0), tcb()); err != nil {
					t.Error(err)
				}
			})
		}
		work.Wait()
		if n := s.Requests(""); n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

// Of requests that wait for their turn, those that nobody wants any more are
// not sent; one that is on its way is finished and kept.
func TestAbandoned(t *testing.T) {
	prepare(t)
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.Set(collateraltest.Behaviour{Delay: 4 * time.Second})
		c := newClient(t, s, func(o *collateral.Options) { o.VCEKInterval = 10 * time.Second })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var work sync.WaitGroup
		for n := range 50 {
			work.Go(func() {
				_, err := c.AMD().VCEK(ctx, snp.Milan, chipID(n), tcb())
				refused, ok := errors.AsType[*tee.CollateralError](err)
				if !ok {
					t.Errorf("got %v", err)
				} else if refused.Reason == tee.CollateralThrottled && refused.RetryAfter <= 0 {
					t.Errorf("no word on when to come again: %v", err)
				}
			})
		}
		work.Wait()
		pass(time.Minute)
		if n := s.Requests("blSPL"); n != 1 {
			t.Errorf("%d requests although nobody waits", n)
		}
		if n, _ := s.Answers("blSPL"); n != 1 {
			t.Error("the request on its way was not finished")
		}
	})
}

// A service that refuses for ever costs a few requests, and its callers' time.
func TestRefusedForEver(t *testing.T) {
	prepare(t)
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		refuse := roundTrip(func(r *http.Request) (*http.Response, error) {
			w := httptest.NewRecorder()
			w.Header().Set("Retry-After", "999999999")
			w.WriteHeader(http.StatusTooManyRequests)
			s.ServeHTTP(httptest.NewRecorder(), r)
			return w.Result(), nil
		})
		c := newClient(t, s, func(o *collateral.Options) { o.HTTP = &http.Client{Transport: refuse} })
		start := time.Now()
		_, err := c.Get(t.Context(), collateral.RootCRLItem())
		if refused, ok := errors.AsType[*tee.CollateralError](err); !ok || refused.Reason != tee.CollateralThrottled || refused.RetryAfter <= 0 || refused.RetryAfter > 11*time.Minute {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took != collateral.DefaultPatience || s.Requests("") > 5 {
			t.Errorf("%d requests in %s", s.Requests(""), took)
		}
	})
}

// A queue that is too long is an error at once, not a heap of requests.
func TestQueueIsBounded(t *testing.T) {
	prepare(t)
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.Set(collateraltest.Behaviour{Lie: collateraltest.Silent})
		c := newClient(t, s, func(o *collateral.Options) { o.Timeout = time.Hour })
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		var mu sync.Mutex
		full := 0
		for n := range 1100 {
			work.Go(func() {
				_, err := c.AMD().VCEK(ctx, snp.Milan, chipID(n), tcb())
				if refused, ok := errors.AsType[*tee.CollateralError](err); ok && refused.Reason == tee.CollateralThrottled && !errors.Is(err, context.Canceled) {
					mu.Lock()
					full++
					mu.Unlock()
				}
			})
		}
		synctest.Wait()
		cancel()
		work.Wait()
		if full != 1100-1-1024 {
			t.Errorf("%d were turned away", full)
		}
	})
}
