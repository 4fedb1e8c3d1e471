package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

func TestSecrets(t *testing.T) {
	each(t, func(t *testing.T, o Options) {
		ctx := t.Context()
		a, b := openData(t, o), openData(t, o)
		// All get the one that was kept.
		got := make([]secret.Bytes, 8)
		var wg sync.WaitGroup
		for i := range got {
			wg.Go(func() {
				var err error
				got[i], err = []*Store{a, b}[i%2].Secret(ctx, "cookie", func() ([]byte, error) { return fmt.Appendf(nil, "made by %d", i), nil })
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, x := range got {
			if x.Len() == 0 || !x.Equal(got[0]) {
				t.Errorf("%q and %q", x.Expose(), got[0].Expose())
			}
		}
		if _, err := a.Secret(ctx, "none", func() ([]byte, error) { return nil, io.ErrUnexpectedEOF }); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v", err)
		}
		if _, _, err := b.SecretWithVersion(ctx, "none"); !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v", err)
		}
		// Sealed under a data key that the other replica has yet to learn.
		if err := a.RotateDataKey(ctx); err != nil {
			t.Fatal(err)
		}
		if err := a.SetSecret(ctx, "cookie", []byte("second")); err != nil {
			t.Fatal(err)
		}
		if v, err := b.SecretVersion(ctx, "cookie"); err != nil || v != 2 {
			t.Errorf("version %d, %v", v, err)
		}
		if x, v, err := b.SecretWithVersion(ctx, "cookie"); err != nil || v != 2 || string(x.Expose()) != "second" {
			t.Errorf("%q, %d, %v", x.Expose(), v, err)
		}
		if err := b.SwapSecret(ctx, "cookie", 1, []byte("late")); !errors.Is(err, ErrConflict) {
			t.Errorf("got %v", err)
		}
		if err := b.SwapSecret(ctx, "cookie", 2, []byte("third")); err != nil {
			t.Error(err)
		}
		if err := b.SwapSecret(ctx, "new", 1, []byte("x")); !errors.Is(err, ErrConflict) {
			t.Errorf("got %v", err)
		}
		if _, _, err := b.SecretWithVersion(ctx, "new"); !errors.Is(err, ErrNotFound) {
			t.Errorf("a refused swap left something: %v", err)
		}
		for _, name := range []string{"", "a\x00", strings.Repeat("x", maxSecretName+1)} {
			if err := a.SetSecret(ctx, name, nil); err == nil {
				t.Errorf("name %q: want an error", name)
			}
		}
		// An older version under a newer number does not open.
		if _, err := a.exec(ctx, "test", "UPDATE secrets SET version = 9 WHERE name = ?", "cookie"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := a.SecretWithVersion(ctx, "cookie"); err == nil {
			t.Error("a secret moved between versions: want an error")
		}
	})
}

func TestTenants(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, c *testClock) {
		ctx := t.Context()
		if err := s.CreateTenant(ctx, acme, ""); !errors.Is(err, ErrExists) {
			t.Errorf("got %v", err)
		}
		for _, name := range []tenant.Name{"", "*", "A"} {
			if err := s.CreateTenant(ctx, name, ""); err == nil {
				t.Errorf("%q: want an error", name)
			}
		}
		list, err := s.Tenants(ctx)
		want := []Tenant{{Name: acme, Description: "Acme", Enabled: true, Created: c.now()}, {Name: tenant.Default, Description: "the default tenant", Enabled: true, Created: c.now()}}
		if err != nil || cmp.Diff(want, list) != "" {
			t.Errorf("%v %s", err, cmp.Diff(want, list))
		}
		before, err := s.Generation(ctx, acme)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SetTenantEnabled(ctx, acme, false); err != nil {
			t.Fatal(err)
		}
		for _, n := range []tenant.Name{acme, "nobody", "\x00"} {
			if _, err := s.Generation(ctx, n); err == nil || n != "\x00" && !errors.Is(err, ErrNoTenant) {
				t.Errorf("%q: got %v", n, err)
			}
		}
		// What happened to a disabled tenant is recorded.
		if _, err := s.Append(ctx, acme, attestation("")); err != nil {
			t.Error(err)
		}
		if err := s.SetTenantEnabled(ctx, acme, true); err != nil {
			t.Fatal(err)
		}
		if g, err := s.Generation(ctx, acme); err != nil || g <= before {
			t.Errorf("generation %d after %d, %v", g, before, err)
		}
		if err := s.SetTenantEnabled(ctx, "nobody", true); !errors.Is(err, ErrNoTenant) {
			t.Errorf("got %v", err)
		}
		if err := s.SetTenantEnabled(ctx, tenant.Default, false); err == nil {
			t.Error("the default tenant was disabled")
		}
	})
}

func TestRetention(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, c *testClock) {
		ctx := t.Context()
		s.o.AuditRetention = time.Hour
		for range 10 {
			if _, err := s.Append(ctx, acme, attestation("")); err != nil {
				t.Fatal(err)
			}
			c.advance(20 * time.Minute)
		}
		count := func() (seqs []int64) {
			if err := s.sweep(ctx); err != nil {
				t.Fatal(err)
			}
			l, err := s.Entries(ctx, acme, audit.Query{After: -1})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range l {
				seqs = append(seqs, e.Seq)
			}
			return seqs
		}
		if got := count(); len(got) != 10 {
			t.Errorf("without a checkpoint: %v", got)
		}
		for _, seq := range []int64{2, 4, 9} {
			for _, jws := range []string{"first", "second"} {
				if err := s.SaveCheckpoint(ctx, acme, seq, jws, c.now()); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, seq := range []int64{0, 11} {
			if err := s.SaveCheckpoint(ctx, acme, seq, "x", c.now()); err == nil {
				t.Errorf("checkpoint %d: want an error", seq)
			}
		}
		// The newest entry is of minute 180: those from minute 120 on stay.
		if got, want := count(), []int64{4, 5, 6, 7, 8, 9, 10}; cmp.Diff(want, got) != "" {
			t.Error(cmp.Diff(want, got))
		}
		// A clock that is years ahead does not empty the log.
		c.advance(100_000 * time.Hour)
		if got := count(); len(got) != 7 {
			t.Errorf("years ahead: %v", got)
		}
		list, err := s.Checkpoints(ctx, acme, 2, 0)
		if err != nil || len(list) != 2 || list[0].Seq != 4 || list[0].JWS != "first" {
			t.Errorf("%+v, %v", list, err)
		}
		if e, err := s.Append(ctx, acme, attestation("")); err != nil || e.Seq != 11 {
			t.Errorf("%+v, %v", e, err)
		}
	})
}

func TestCursor(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, _ *testClock) {
		for _, tc := range []struct{ set, want int64 }{{0, 0}, {5, 5}, {3, 5}, {7, 7}} {
			if err := s.SetCursor(t.Context(), acme, "hook", tc.set); err != nil {
				t.Fatal(err)
			}
			if got, found, err := s.Cursor(t.Context(), acme, "hook"); err != nil || !found || got != tc.want {
				t.Errorf("%d, %v; expected %d", got, err, tc.want)
			}
		}
		if got, found, err := s.Cursor(t.Context(), tenant.Default, "hook"); err != nil || found || got != 0 {
			t.Errorf("%d, %v", got, err)
		}
	})
}

func TestRun(t *testing.T) {
	t.Parallel()
	s := openData(t, dataOptions(t, "sqlite", newTestClock().now))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestClassify(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		err  error
		want class
	}{
		"serialization":  {&pgconn.PgError{Code: "40001"}, transient},
		"deadlock":       {&pgconn.PgError{Code: "40P01"}, transient},
		"shutdown":       {&pgconn.PgError{Code: "57P01"}, broken},
		"starting":       {&pgconn.PgError{Code: "57P03"}, broken},
		"standby":        {&pgconn.PgError{Code: "25006"}, broken},
		"connection":     {&pgconn.PgError{Code: "08006"}, broken},
		"cached plan":    {&pgconn.PgError{Code: "0A000", Message: "cached plan must not change result type"}, broken},
		"not supported":  {&pgconn.PgError{Code: "0A000"}, permanent},
		"disk full":      {&pgconn.PgError{Code: "53100"}, unable},
		"io":             {&pgconn.PgError{Code: "58030"}, unable},
		"corrupted":      {&pgconn.PgError{Code: "XX001"}, unable},
		"password":       {&pgconn.ConnectError{}, broken},
		"wrong password": {fmt.Errorf("x: %w", &pgconn.PgError{Code: "28P01"}), permanent},
		"empty code":     {&pgconn.PgError{}, permanent},
		"eof":            {fmt.Errorf("x: %w", io.ErrUnexpectedEOF), broken},
		"reset":          {&net.OpError{Op: "read", Err: syscall.ECONNRESET}, broken},
		"deadline":       {context.DeadlineExceeded, permanent},
		"ours":           {ErrConflict, permanent},
	} {
		if got := classify(tc.err); got != tc.want {
			t.Errorf("%s: got %d, expected %d", name, got, tc.want)
		}
	}
}

func TestRetry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &Store{o: Options{Observer: nobody{}, RetryFor: 20 * time.Second, DatabaseURL: "postgres://"}}
		lost := &pgconn.PgError{Code: "57P01", Message: "going down"}
		start, tries := time.Now(), 0
		err := s.retry(t.Context(), "read", "x", func(context.Context) error { tries++; return lost })
		if !errors.Is(err, ErrUnavailable) || !errors.Is(err, lost) || time.Since(start) != 20*time.Second || tries < 20 || tries > 80 {
			t.Errorf("%v after %v and %d tries", err, time.Since(start), tries)
		}
		// A connection that is silent leaves time for another.
		tries = 0
		if err := s.retry(t.Context(), "read", "x", func(ctx context.Context) error {
			if tries++; tries > 1 {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}); err != nil || tries != 2 {
			t.Errorf("%v after %d tries", err, tries)
		}
		// An answer is not asked for again, also where it came late.
		tries = 0
		if err := s.retry(t.Context(), "read", "x", func(ctx context.Context) error {
			tries++
			<-ctx.Done()
			return ErrConflict
		}); !errors.Is(err, ErrConflict) || tries != 1 {
			t.Errorf("%v after %d tries", err, tries)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		if err := s.retry(ctx, "read", "x", func(context.Context) error { return lost }); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}
