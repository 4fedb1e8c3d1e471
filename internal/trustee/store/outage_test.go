package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/pgtest"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// load runs every kind of write on several replicas until enough is true, and
// then checks that each was done exactly once.
func load(t *testing.T, replicas []*Store, enough func() bool) {
	t.Helper()
	ctx := t.Context()
	var wg sync.WaitGroup
	var mu sync.Mutex
	appended := make(map[string]bool)
	versions := make(map[string]int64)
	var policies, finished atomic.Int64
	for w := range 6 {
		wg.Go(func() {
			for i := 0; !enough(); i++ {
				s, id := replicas[(w+i)%len(replicas)], fmt.Sprintf("%d-%d", w, i)
				r := attestation(id)
				r.Detail = id
				if err := s.Finish(ctx, tenant.Default, Finished{Session: id, Token: "t" + id, Expires: s.o.Now().Add(time.Hour)}, r); err != nil {
					t.Errorf("finish: %v", err)
					return
				}
				finished.Add(1)
				if token, err := replicas[(w+i+1)%len(replicas)].SessionToken(ctx, tenant.Default, id); err != nil || token != "t"+id {
					t.Errorf("the token on another replica: %q, %v", token, err)
					return
				}
				a, err := s.Append(ctx, tenant.Default, audit.Record{Kind: audit.KindResource, Detail: "a" + id})
				if err != nil {
					t.Errorf("append: %v", err)
					return
				}
				if _, err := s.SetPolicy(ctx, tenant.Default, ResourcePolicy, "", id, ""); err != nil {
					t.Errorf("policy: %v", err)
					return
				}
				policies.Add(1)
				p := fmt.Sprintf("demo/key/%d", w)
				v := put(t, s, tenant.Default, p, id)
				mu.Lock()
				appended[a.Hash] = true
				versions[p] = max(v, versions[p])
				if v != int64(i+1) {
					t.Errorf("%s: version %d of the %dth write", p, v, i+1)
				}
				mu.Unlock()
			}
		})
	}
	if wg.Wait(); t.Failed() {
		return
	}
	records := checkChain(t, replicas[0], tenant.Default)
	details := make(map[string]int)
	for _, r := range records {
		details[r.Detail]++
	}
	for d, n := range details {
		if n != 1 {
			t.Errorf("record %s stands %d times", d, n)
		}
	}
	if want := int(finished.Load()) + len(appended); len(records) != want {
		t.Errorf("%d records, expected %d", len(records), want)
	}
	list, err := replicas[0].Policies(ctx, tenant.Default, ResourcePolicy, "", 10)
	if err != nil || len(list) != 1 || list[0].Version != policies.Load() {
		t.Errorf("policies %+v, %v; expected version %d", list, err, policies.Load())
	}
	t.Logf("%d records, %d policies", len(records), policies.Load())
}

func openReplicas(t *testing.T, o Options, n int) []*Store {
	t.Helper()
	replicas := make([]*Store, n)
	for i := range replicas {
		replicas[i] = openData(t, o)
	}
	return replicas
}

// TestRestart: PostgreSQL restarts and crashes under load, and nobody notices
// but by waiting.
func TestRestart(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t)
	o := dataOptions(t, "sqlite", newTestClock().now)
	o.Path, o.DatabaseURL = "", server.URL("")
	replicas := openReplicas(t, o, 3)
	var done atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		defer done.Store(true)
		for _, m := range []pgtest.Mode{pgtest.Fast, pgtest.Immediate, pgtest.Fast, pgtest.Immediate} {
			before, _, err := replicas[0].Head(t.Context(), tenant.Default)
			for head := before; err == nil && head < before+60; {
				head, _, err = replicas[0].Head(t.Context(), tenant.Default)
			}
			if err != nil {
				t.Error(err)
				return
			}
			server.Restart(m)
		}
	})
	load(t, replicas, done.Load)
	wg.Wait()
}

// TestLostAnswers: connections break at any moment, also between a commit and
// its answer.
func TestLostAnswers(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t)
	o := dataOptions(t, "sqlite", newTestClock().now)
	o.Path, o.DatabaseURL = "", server.URL("")
	direct := openData(t, o)
	proxy := newProxy(t, filepath.Join(server.Dir(), ".s.PGSQL.5432"))
	o.DatabaseURL = strings.Replace(o.DatabaseURL, "host=", "host="+proxy.dir+"&x=", 1)
	o.DatabaseURL = o.DatabaseURL[:strings.Index(o.DatabaseURL, "&x=")]
	replicas := openReplicas(t, o, 2)
	proxy.oneIn.Store(40)
	load(t, append(replicas, direct), func() bool { return proxy.cuts.Load() >= 60 })
	proxy.oneIn.Store(0)
}

// TestCrashAtCommit: the server crashes before a commit that it was sent, and
// others' transactions get the id that the lost one had. The write is there in
// the end, and once.
func TestCrashAtCommit(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t)
	o := dataOptions(t, "sqlite", newTestClock().now)
	o.Path, o.DatabaseURL = "", server.URL("")
	direct := openData(t, o)
	proxy := newProxy(t, filepath.Join(server.Dir(), ".s.PGSQL.5432"))
	o.DatabaseURL = strings.Replace(o.DatabaseURL, "host="+url.QueryEscape(server.Dir()), "host="+url.QueryEscape(proxy.dir), 1)
	s := openData(t, o)
	if s.o.DatabaseURL == direct.o.DatabaseURL {
		t.Fatal("the proxy is not used")
	}
	for i := range 3 {
		crashed := make(chan struct{})
		proxy.commit.Store(new(func() {
			defer close(crashed)
			server.Restart(pgtest.Immediate)
			for j := range 10 {
				put(t, direct, tenant.Default, "demo/key/other", fmt.Sprint(j))
			}
		}))
		v := put(t, s, tenant.Default, "demo/key/mine", fmt.Sprint(i))
		<-crashed
		if v != int64(i+1) {
			t.Errorf("version %d, expected %d", v, i+1)
		}
		content, version, err := direct.Resources().Get(t.Context(), tenant.Default, mustPath(t, "demo/key/mine"), 0)
		if err != nil || string(content.Expose()) != fmt.Sprint(i) || version != int64(i+1) {
			t.Errorf("write %d: got %q of version %d, %v", i, content.Expose(), version, err)
		}
	}
}

// TestTransactionNames: they are forgotten when nobody can ask for them any more.
func TestTransactionNames(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store, c *testClock) {
		count := func() (n int) {
			if err := s.get(t.Context(), "count", "SELECT COUNT(*) FROM transactions", nil, &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		put(t, s, acme, "demo/key/1", "x")
		if n := count(); (n > 0) != (s.pool != nil) {
			t.Errorf("%s: %d names", s.Kind(), n)
		}
		c.advance(transactionGrace + time.Minute)
		if err := s.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		// What is left is the sweep's own.
		var oldest int64
		if err := s.get(t.Context(), "oldest", "SELECT COALESCE(MIN(at), 0) FROM transactions", nil, &oldest); err != nil || s.pool != nil && oldest != millis(c.now()) {
			t.Errorf("the oldest name is of %d, now is %d, %v", oldest, millis(c.now()), err)
		}
	})
}

// proxy hands on to a Unix socket, and drops one in so many answers together
// with its connection.
type proxy struct {
	dir         string
	oneIn, cuts atomic.Int64
	// commit, if set, is called once, for the next COMMIT, which the server does
	// not get. Nobody is let in meanwhile.
	commit atomic.Pointer[func()]
	door   sync.RWMutex
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	dir, err := os.MkdirTemp("", "proxy") // short, for a socket
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{dir: dir}
	l, err := net.Listen("unix", filepath.Join(dir, ".s.PGSQL.5432"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = l.Close()
		_ = os.RemoveAll(dir)
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.door.RLock()
			s, err := net.Dial("unix", to)
			p.door.RUnlock()
			if err != nil {
				_ = c.Close()
				continue
			}
			go p.copy(s, c, false)
			go p.copy(c, s, true)
		}
	}()
	return p
}

func (p *proxy) copy(to, from net.Conn, cut bool) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if k := p.oneIn.Load(); cut && k > 0 && rand.Int64N(k) == 0 {
			p.cuts.Add(1)
			return
		}
		if f := p.commit.Load(); f != nil && !cut && bytes.Contains(bytes.ToLower(buf[:n]), []byte("commit\x00")) && p.commit.CompareAndSwap(f, nil) {
			p.door.Lock()
			defer p.door.Unlock()
			(*f)()
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// TestUnreachable: without a database operations end, with the right error.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t)
	o := dataOptions(t, "sqlite", newTestClock().now)
	o.Path, o.DatabaseURL, o.RetryFor = "", server.URL(""), 2*time.Second // long enough for a schema on a busy machine
	s := openData(t, o)
	server.Stop(pgtest.Fast)
	ctx := t.Context()
	for name, f := range map[string]func(context.Context) error{
		"append":     func(ctx context.Context) error { _, err := s.Append(ctx, tenant.Default, attestation("")); return err },
		"generation": func(ctx context.Context) error { _, err := s.Generation(ctx, tenant.Default); return err },
		"tenant":     func(ctx context.Context) error { return s.CreateTenant(ctx, "x", "") },
		"ping":       s.Ping,
		"open": func(ctx context.Context) error {
			_, err := Open(ctx, o)
			return err
		},
	} {
		if err := f(ctx); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		short, cancel := context.WithCancel(ctx)
		time.AfterFunc(30*time.Millisecond, cancel)
		if err := f(short); err == nil || name != "ping" && !errors.Is(err, context.Canceled) {
			t.Errorf("%s, cancelled: %v", name, err)
		}
		cancel()
	}
	server.Resume()
	if _, err := s.Append(ctx, tenant.Default, attestation("")); err != nil {
		t.Error(err)
	}
}

// TestFullDisk: what does not fit is refused at once, and leaves nothing.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	o := dataOptions(t, "sqlite", newTestClock().now)
	o.Path = filepath.Join(dir, "state.db")
	fill(t, openData(t, o), func(s *Store) {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=8m"); err != nil {
			t.Fatal(err)
		}
	})
}

// TestFullDatabase is TestFullDisk for those who are not root.
func TestFullDatabase(t *testing.T) {
	t.Parallel()
	s := openData(t, dataOptions(t, "sqlite", newTestClock().now))
	if _, err := s.write.ExecContext(t.Context(), "PRAGMA max_page_count = 200"); err != nil {
		t.Fatal(err)
	}
	fill(t, s, func(s *Store) {
		if _, err := s.write.ExecContext(t.Context(), "PRAGMA max_page_count = 100000"); err != nil {
			t.Fatal(err)
		}
	})
}

func fill(t *testing.T, s *Store, more func(*Store)) {
	t.Helper()
	ctx := t.Context()
	detail := string(bytes.Repeat([]byte("x"), 20<<10))
	var err error
	n := 0
	for ; err == nil && n < 1000; n++ {
		id := fmt.Sprint(n)
		r := attestation(id)
		r.Detail = detail
		start := time.Now()
		err = s.Finish(ctx, tenant.Default, Finished{Session: id, Token: "t", Expires: s.o.Now().Add(time.Hour)}, r)
		if err == nil {
			continue
		}
		if !errors.Is(err, ErrUnavailable) || time.Since(start) > 5*time.Second {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
		if used, err := s.SessionUsed(ctx, tenant.Default, id); used || err != nil {
			t.Errorf("a session that was not recorded is used: %v, %v", used, err)
		}
	}
	if err == nil {
		t.Fatal("it is never full")
	}
	t.Log(err)
	if got := len(checkChain(t, s, tenant.Default)); got != n-1 {
		t.Errorf("%d records, expected %d", got, n-1)
	}
	more(s)
	id := fmt.Sprint(n - 1)
	if err := s.Finish(ctx, tenant.Default, Finished{Session: id, Token: "t", Expires: s.o.Now().Add(time.Hour)}, attestation(id)); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if got := len(checkChain(t, s, tenant.Default)); got != n {
		t.Errorf("%d records, expected %d", got, n)
	}
}
