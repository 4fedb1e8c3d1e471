package collateral_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
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

// A dated document is fetched anew in the background long before its date, and
// nobody waits for it; a certificate is not.
func TestRefresh(t *testing.T) {
	prepare(t)
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.Set(collateraltest.Behaviour{Delay: time.Second})
		dir := t.TempDir()
		c := newClient(t, s, func(o *collateral.Options) { o.Dir = dir })
		for _, i := range everything(t) {
			first, err := c.Get(t.Context(), i)
			if err != nil {
				t.Fatal(err)
			}
			pass(23 * time.Hour)
			if _, err := c.Get(t.Context(), i); err != nil || s.Requests("") != 1 {
				t.Errorf("%s: fetched again too early: %v", i, err)
			}
			pass(2 * time.Hour)
			start := time.Now()
			second, err := c.Get(t.Context(), i)
			if err != nil || !bytes.Equal(first.Body, second.Body) || time.Since(start) != 0 {
				t.Errorf("%s: waited %s, %v", i, time.Since(start), err)
			}
			pass(2 * time.Second)
			third, err := c.Get(t.Context(), i)
			if err != nil {
				t.Fatal(err)
			}
			if fresh := third.Issued.After(first.Issued); fresh != dated(i) {
				t.Errorf("%s: issued %s and then %s", i, first.Issued, third.Issued)
			}
			if n := s.Requests(""); dated(i) && n != 2 || !dated(i) && n != 1 {
				t.Errorf("%s: %d requests", i, n)
			}
			s.Reset()
		}
	})
}

func dated(i collateral.Item) bool {
	switch i.Kind {
	case collateral.VCEK, collateral.AMDChain, collateral.RIM, collateral.HSKCEK:
		return false
	}
	return true
}

// A document with a short life is fetched anew after half of it; when its date
// is past and the service is away, it is returned all the same.
func TestStale(t *testing.T) {
	prepare(t)
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.Set(collateraltest.Behaviour{Lifetime: 2 * time.Hour})
		var ev events
		c := newClient(t, s, func(o *collateral.Options) { o.OnEvent = ev.on })
		i := collateral.RootCRLItem()
		get := func() *collateral.Entry {
			t.Helper()
			e, err := c.Get(t.Context(), i)
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		first := get()
		pass(61 * time.Minute)
		get()
		synctest.Wait()
		if s.Requests("") != 2 {
			t.Error("not fetched anew after half of its life")
		}
		s.Set(collateraltest.Behaviour{Lie: collateraltest.Silent})
		pass(3 * time.Hour)
		start := time.Now()
		stale := get()
		if !stale.Stale(time.Now()) || ev.count(collateral.EventStale) != 1 || time.Since(start) > 11*time.Second || !stale.Issued.After(first.Issued) {
			t.Errorf("got %+v after %s", stale, time.Since(start))
		}
		pass(31 * time.Second) // the silent request ends
		for l, older := range map[collateraltest.Lie]bool{collateraltest.Old: true, collateraltest.Garbage: false, collateraltest.NotFound: false} {
			s.Set(collateraltest.Behaviour{Lie: l})
			pass(2 * time.Minute)
			if e := get(); !e.Issued.Equal(stale.Issued) {
				t.Errorf("%s replaced what is known (older: %v)", l, older)
			}
		}
		s.Set(collateraltest.Behaviour{})
		pass(2 * time.Minute)
		if e := get(); e.Stale(time.Now()) {
			t.Error("stale although the service is back")
		}
	})
}

// An older document is no answer when a newer one is known.
func TestRollback(t *testing.T) {
	prepare(t)
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		dir := t.TempDir()
		for _, i := range everything(t) {
			if !dated(i) {
				continue
			}
			s.Set(collateraltest.Behaviour{})
			c := newClient(t, s, func(o *collateral.Options) { o.Dir, o.MaxAge = dir, time.Minute })
			first, err := c.Get(t.Context(), i)
			if err != nil {
				t.Fatal(err)
			}
			s.Set(collateraltest.Behaviour{Lie: collateraltest.Old})
			var ev events
			c = newClient(t, s, func(o *collateral.Options) { o.Dir, o.MaxAge, o.OnEvent = dir, time.Minute, ev.on })
			pass(2 * time.Minute)
			for range 3 {
				e, err := c.Get(t.Context(), i)
				if err != nil || !e.Issued.Equal(first.Issued) {
					t.Errorf("%s: rolled back: %v", i, err)
				}
				synctest.Wait()
			}
			if ev.count(collateral.EventFailed) != 1 {
				t.Errorf("%s: %d failures", i, ev.count(collateral.EventFailed))
			}
		}
	})
}

// A file that was changed is set aside and fetched again, and never believed.
func TestDamage(t *testing.T) {
	prepare(t)
	for name, damage := range map[string]func([]byte) []byte{
		"cut":      func(b []byte) []byte { return b[:len(b)/2] },
		"empty":    func([]byte) []byte { return nil },
		"bit":      func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 1; return b },
		"twice":    func(b []byte) []byte { return append(bytes.Clone(b), b...) },
		"too long": func([]byte) []byte { return make([]byte, 4<<20) },
	} {
		for _, i := range everything(t) {
			s := newServer(t)
			dir := t.TempDir()
			if _, err := newClient(t, s, func(o *collateral.Options) { o.Dir = dir }).Get(t.Context(), i); err != nil {
				t.Fatal(err)
			}
			for _, file := range tree(t, dir) {
				path := filepath.Join(dir, file)
				before, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				after := damage(before)
				if err := os.WriteFile(path, after, 0o600); err != nil {
					t.Fatal(err)
				}
				var ev events
				var offline events
				off := newClient(t, s, func(o *collateral.Options) { o.Dir, o.Offline, o.OnEvent = dir, true, offline.on })
				_, offErr := off.Get(t.Context(), i)
				s.Reset()
				got, err := newClient(t, s, func(o *collateral.Options) { o.Dir, o.OnEvent = dir, ev.on }).Get(t.Context(), i)
				if err != nil {
					t.Fatalf("%s %s: %v", name, file, err)
				}
				if strings.HasSuffix(file, ".der.json") { // only says where the certificate came from
					if offErr != nil || s.Requests("") != 0 {
						t.Errorf("%s %s: the certificate is not used: %v", name, file, offErr)
					}
					continue
				}
				if offErr == nil || offline.count(collateral.EventDamaged) != 1 {
					t.Errorf("%s %s: believed offline", name, file)
				}
				if s.Requests("") != 1 || ev.count(collateral.EventDamaged) != 1 || bytes.Equal(got.Body, after) {
					t.Errorf("%s %s: %d requests, %d damages", name, file, s.Requests(""), ev.count(collateral.EventDamaged))
				}
				kept, err := filepath.Glob(filepath.Join(dir, "damaged", "*"))
				if err != nil || len(kept) != 1 {
					t.Fatalf("%s %s: set aside: %v, %v", name, file, kept, err)
				}
				if content, err := os.ReadFile(kept[0]); err != nil || !bytes.Equal(content, after) {
					t.Errorf("%s %s: what was set aside is not the damaged file: %v", name, file, err)
				}
			}
		}
	}
}

// A writer that dies between writing and renaming leaves what was there before,
// and what it left is swept away later.
func TestKilledWriter(t *testing.T) {
	s := newServer(t)
	dir := filepath.Join(t.TempDir(), "cache")
	i := collateral.RootCRLItem()
	if _, err := newClient(t, s, func(o *collateral.Options) { o.Dir = dir }).Get(t.Context(), i); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(dir, "intel/crl/.new-0011223344556677")
	if err := os.WriteFile(half, []byte(`{"version":1,`), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Reset()
	c := newClient(t, s, func(o *collateral.Options) { o.Dir = dir })
	if _, err := c.Get(t.Context(), i); err != nil || s.Requests("") != 0 {
		t.Errorf("what was there before is lost: %v", err)
	}
	if _, err := os.Stat(half); err != nil {
		t.Error("a file that may be a living writer's was removed")
	}
	old := time.Now().Add(-2 * time.Hour)
	if err := os.Chtimes(half, old, old); err != nil {
		t.Fatal(err)
	}
	newClient(t, s, func(o *collateral.Options) { o.Dir = dir })
	private(t, dir)
}

// A directory that cannot be written is no reason to fail.
func TestReadOnly(t *testing.T) {
	if os.Getuid() == 0 {
		// Root may write everywhere; a file in the directory's place will do.
		t.Log("as root: with a file in the way")
	}
	s := newServer(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "intel"), nil, 0o400); err != nil {
		t.Fatal(err)
	}
	var ev events
	c := newClient(t, s, func(o *collateral.Options) { o.Dir, o.OnEvent = dir, ev.on })
	for range 2 {
		if _, err := c.Get(t.Context(), collateral.RootCRLItem()); err != nil {
			t.Error(err)
		}
	}
	if ev.count(collateral.EventNotStored) != 1 || s.Requests("") != 1 {
		t.Errorf("%d events, %d requests", ev.count(collateral.EventNotStored), s.Requests(""))
	}
}

// Symbolic links do not lead out of the directory.
func TestLinks(t *testing.T) {
	s := newServer(t)
	dir, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "intel")); err != nil {
		t.Fatal(err)
	}
	if _, err := newClient(t, s, func(o *collateral.Options) { o.Dir = dir }).Get(t.Context(), collateral.RootCRLItem()); err != nil {
		t.Error(err)
	}
	if files := tree(t, outside); len(files) > 0 {
		t.Errorf("written outside: %v", files)
	}
}

// Trustee's offline store has certificates by name, and one name for all levels.
func TestTrusteeStore(t *testing.T) {
	s := newServer(t)
	dir := t.TempDir()
	der, _, err := s.VCEK(snp.Milan, chipID(1), tcb())
	if err != nil {
		t.Fatal(err)
	}
	i, err := collateral.VCEKItem(snp.Milan, chipID(1), tcb())
	if err != nil {
		t.Fatal(err)
	}
	other := tcb()
	other.SNP++
	chip := filepath.Join(dir, "vcek", strings.Split(i.ID, "/")[1])
	if err := os.MkdirAll(chip, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bl03_tee00_snp08_ucode115_vcek.der", "vcek.der"} {
		file := filepath.Join(chip, name)
		if err := os.WriteFile(file, der, 0o600); err != nil {
			t.Fatal(err)
		}
		store, err := collateral.OpenStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(t, s, func(o *collateral.Options) { o.Offline, o.Stores = true, []collateral.Source{store} })
		got, err := c.AMD().VCEK(t.Context(), snp.Milan, chipID(1), tcb())
		if err != nil || !bytes.Equal(got, der) {
			t.Errorf("%s: %v", name, err)
		}
		_, err = c.AMD().VCEK(t.Context(), snp.Milan, chipID(1), other)
		if refused, ok := errors.AsType[*tee.CollateralError](err); !ok || refused.Reason != tee.CollateralMissing {
			t.Errorf("%s: another patch level: %v", name, err)
		}
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
	}
}

// The newest of several stores counts, and what another process fetched
// meanwhile is not fetched again.
func TestSeveralStores(t *testing.T) {
	prepare(t)
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		i := collateral.RootCRLItem()
		one, two := t.TempDir(), t.TempDir()
		a := newClient(t, s, func(o *collateral.Options) { o.Dir = one })
		if _, err := a.Get(t.Context(), i); err != nil {
			t.Fatal(err)
		}
		pass(25 * time.Hour)
		b := newClient(t, s, func(o *collateral.Options) { o.Dir = two })
		newest, err := b.Get(t.Context(), i)
		if err != nil {
			t.Fatal(err)
		}
		store, err := collateral.OpenStore(two)
		if err != nil {
			t.Fatal(err)
		}
		s.Reset()
		both := newClient(t, s, func(o *collateral.Options) { o.Dir, o.Stores = one, []collateral.Source{store} })
		if e, err := both.Get(t.Context(), i); err != nil || !e.Issued.Equal(newest.Issued) || s.Requests("") != 0 {
			t.Errorf("got %+v, %v, %d requests", e, err, s.Requests(""))
		}
		again := newClient(t, s, func(o *collateral.Options) { o.Dir = one })
		if _, err := again.Get(t.Context(), i); err != nil { // due: refreshed in the background, into the same directory
			t.Fatal(err)
		}
		synctest.Wait()
		s.Reset()
		if _, err := a.Get(t.Context(), i); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := s.Requests(""); n != 0 {
			t.Errorf("%d requests for what another process fetched", n)
		}
	})
}

// Several processes write one directory at once.
func TestProcesses(t *testing.T) {
	const variable = "COFFER_TEST_COLLATERAL_DIR"
	s := newServer(t)
	if dir := os.Getenv(variable); dir != "" {
		// A child: its authority is another, so it and its siblings never agree
		// and replace each other's files all the time.
		for range 10 {
			c := newClient(t, s, func(o *collateral.Options) { o.Dir = dir })
			for _, i := range everything(t) {
				if _, err := c.Get(t.Context(), i); err != nil {
					t.Error(err)
				}
			}
		}
		return
	}
	dir := t.TempDir()
	var work sync.WaitGroup
	for range 2 {
		work.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			child := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestProcesses$")
			child.Env = append(os.Environ(), variable+"="+dir)
			if out, err := child.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	work.Wait()
	for _, file := range tree(t, dir) {
		if strings.Contains(file, "/.new-") {
			t.Errorf("%s is left", file)
		}
	}
	// Whole files only: of each item one of the two children's.
	store, err := collateral.OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range everything(t) {
		if e, err := store.Load(i); err == nil && len(e.Body) == 0 {
			t.Errorf("%s: empty", i)
		}
	}
}
