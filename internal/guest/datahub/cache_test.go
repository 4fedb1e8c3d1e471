package datahub

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coffer-project/coffer/initdata/guestconfig"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

func nothingKept() guestconfig.Resources {
	none := time.Duration(0)
	return guestconfig.Resources{Lifetime: &none}
}

func fetch(t *testing.T, hub *Hub, uri, want string) {
	t.Helper()
	got, err := hub.Resource(t.Context(), uri)
	if err != nil || string(got.Expose()) != want {
		t.Errorf("%s: got %q, %v; want %q", uri, got.Expose(), err, want)
	}
	got.Clear() // the caller's own
}

func TestResourcesLiveForAWhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		broker := newBroker(map[string]string{"/a/b/c": "one"})
		hub := New(broker)
		for range 3 {
			fetch(t, hub, "kbs:///a/b/c", "one")
		}
		broker.resources["/a/b/c"] = "two" // rotated
		<-time.After(DefaultLifetime - time.Second)
		fetch(t, hub, "kbs:///a/b/c", "one")
		<-time.After(2 * time.Second)
		fetch(t, hub, "kbs:///a/b/c", "two")
		if n := broker.count("/a/b/c"); n != 2 {
			t.Errorf("%d requests", n)
		}
		hub.Close()
	})
}

// TestWhatIsLeftIsWiped: by time, by room, by refusal and at the end.
func TestWhatIsLeftIsWiped(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(c *cache){
		"time":    func(*cache) { <-time.After(DefaultLifetime + time.Millisecond); synctest.Wait() },
		"refusal": func(c *cache) { c.purge("") },
		"the end": func(c *cache) { c.close() },
		"room": func(c *cache) {
			for i := range 2 {
				u, _ := kbs.NewResourceURI("r", "t", fmt.Sprint(i))
				_, _ = c.get(context.Background(), u, func(context.Context) (secret.Bytes, error) { return secret.New([]byte("x")), nil })
			}
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newCache(limits{lifetime: DefaultLifetime, entries: 2, bytes: 100})
			uri, _ := kbs.NewResourceURI("a", "b", "c")
			if _, err := c.get(t.Context(), uri, func(context.Context) (secret.Bytes, error) { return secret.New([]byte("hunter2")), nil }); err != nil {
				t.Fatal(err)
			}
			c.mu.Lock()
			kept := c.entries[uri].value
			c.mu.Unlock()
			if string(kept.Expose()) != "hunter2" {
				t.Fatal("not kept")
			}
			leave(c)
			c.mu.Lock()
			defer c.mu.Unlock()
			if string(kept.Expose()) != strings.Repeat("\x00", 7) {
				t.Errorf("%s: %q is left in memory", name, kept.Expose())
			}
			if _, ok := c.entries[uri]; ok {
				t.Errorf("%s: still kept", name)
			}
		})
	}
}

func TestRequestsThatComeTogetherAreOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		broker := newBroker(map[string]string{"/a/b/c": "one"})
		broker.gate = make(chan struct{})
		hub := Open(Options{Default: broker, Resources: nothingKept()})
		var wg sync.WaitGroup
		for range 2000 {
			wg.Go(func() { fetch(t, hub, "kbs:///a/b/c", "one") })
		}
		synctest.Wait()
		close(broker.gate)
		wg.Wait()
		if n := broker.count("/a/b/c"); n != 1 {
			t.Errorf("%d requests", n)
		}
	})
}

// TestACallerThatLeavesTakesNobodyWithIt: neither the one whose request it is,
// nor one that waits.
func TestACallerThatLeavesTakesNobodyWithIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		broker := newBroker(map[string]string{"/a/b/c": "one"})
		broker.gate = make(chan struct{})
		hub := Open(Options{Default: broker, Resources: nothingKept()})
		left := make(chan error, 2)
		leader, leave := context.WithCancel(t.Context())
		go func() {
			_, err := hub.Resource(leader, "kbs:///a/b/c")
			left <- err
		}()
		synctest.Wait()
		waiter, leaveToo := context.WithCancel(t.Context())
		go func() {
			_, err := hub.Resource(waiter, "kbs:///a/b/c")
			left <- err
		}()
		stayed := make(chan string, 1)
		go func() {
			got, err := hub.Resource(t.Context(), "kbs:///a/b/c")
			stayed <- fmt.Sprint(string(got.Expose()), err)
		}()
		synctest.Wait()
		leaveToo()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("the waiter got %v", err)
		}
		leave()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("the first got %v", err)
		}
		synctest.Wait()
		close(broker.gate)
		if got := <-stayed; got != "one<nil>" {
			t.Errorf("the one that stayed got %s", got)
		}
	})
}

func TestErrorsAreNotKept(t *testing.T) {
	t.Parallel()
	broker := newBroker(map[string]string{})
	hub := New(broker)
	for range 2 {
		_, err := hub.Resource(t.Context(), "kbs:///a/b/c")
		if se, ok := errors.AsType[*kbs.StatusError](err); !ok || se.Status != http.StatusNotFound {
			t.Errorf("got %v", err)
		}
	}
	broker.resources["/a/b/c"] = "now"
	fetch(t, hub, "kbs:///a/b/c", "now")
	if n := broker.count("/a/b/c"); n != 3 {
		t.Errorf("%d requests", n)
	}
}

func TestRoomIsBounded(t *testing.T) {
	t.Parallel()
	broker := newBroker(map[string]string{})
	for i := range 10 {
		broker.resources[fmt.Sprintf("/a/b/%d", i)] = strings.Repeat("x", 10)
	}
	broker.resources["/a/b/big"] = strings.Repeat("x", 36)
	hub := Open(Options{Default: broker, Resources: guestconfig.Resources{MaxEntries: 4, MaxBytes: 35}})
	for i := range 10 {
		fetch(t, hub, fmt.Sprintf("kbs:///a/b/%d", i), strings.Repeat("x", 10))
		if n := len(hub.cache.order); n > 3 || hub.cache.size > 35 || n != len(hub.cache.entries) || hub.cache.size != 10*n {
			t.Errorf("%d entries, %d bytes", n, hub.cache.size)
		}
	}
	fetch(t, hub, "kbs:///a/b/9", strings.Repeat("x", 10)) // the youngest is there
	fetch(t, hub, "kbs:///a/b/0", strings.Repeat("x", 10)) // the oldest is not
	if a, b := broker.count("/a/b/9"), broker.count("/a/b/0"); a != 1 || b != 2 {
		t.Errorf("%d and %d requests", a, b)
	}
	for range 2 {
		fetch(t, hub, "kbs:///a/b/big", strings.Repeat("x", 36))
	}
	if n := broker.count("/a/b/big"); n != 2 {
		t.Errorf("what is too big was kept: %d requests", n)
	}
	many := Open(Options{Default: broker, Resources: guestconfig.Resources{MaxEntries: 2}})
	for i := range 10 {
		fetch(t, many, fmt.Sprintf("kbs:///a/b/%d", i), strings.Repeat("x", 10))
	}
	if n := len(many.cache.order); n != 2 {
		t.Errorf("%d entries", n)
	}
}

// refusing is a broker whose trustee does not attest this guest any longer.
func refusing(t *testing.T, status int) error {
	t.Helper()
	err := attestationError(t, status)
	if kbs.Refused(err) != (status == http.StatusForbidden || status == http.StatusUnauthorized) {
		t.Fatalf("%d: refused %v", status, kbs.Refused(err))
	}
	return err
}

func TestARefusalTakesEverythingBack(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]bool{http.StatusForbidden: true, http.StatusUnauthorized: true, http.StatusBadRequest: false} {
		first := newBroker(map[string]string{"/a/b/c": "first", "/a/b/d": "d"})
		second := newBroker(map[string]string{"/a/b/c": "second"})
		hub := Open(Options{Default: first, Named: map[string]Broker{"two": second}})
		for _, how := range []func() error{
			func() error { _, err := hub.Resource(t.Context(), "kbs:///a/b/d"); return err },
			func() error { _, err := hub.Token(t.Context(), "kbs"); return err },
			func() error { return hub.Attest(t.Context()) },
		} {
			fetch(t, hub, "kbs:///a/b/c", "first")
			fetch(t, hub, "kbs://two/a/b/c", "second")
			first.set(refusing(t, status))
			if err := how(); err == nil {
				t.Error("no error")
			}
			_, err := hub.Resource(t.Context(), "kbs:///a/b/c")
			if gone := err != nil; gone != want {
				t.Errorf("%d: taken back %v, want %v", status, gone, want)
			}
			first.set(nil)
			fetch(t, hub, "kbs://two/a/b/c", "second")
		}
		if n := second.count("/a/b/c"); n != 1 {
			t.Errorf("the other trustee's resource was asked for %d times", n)
		}
	}
}

// TestWhatWasAskedForBeforeARefusalIsNotKept after it.
func TestWhatWasAskedForBeforeARefusalIsNotKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		broker := newBroker(map[string]string{"/a/b/c": "one"})
		broker.gate = make(chan struct{})
		hub := New(broker)
		done := make(chan struct{})
		go func() {
			defer close(done)
			fetch(t, hub, "kbs:///a/b/c", "one")
		}()
		synctest.Wait()
		hub.judge("", refusing(t, http.StatusForbidden))
		close(broker.gate)
		<-done
		if len(hub.cache.entries) != 0 {
			t.Error("it was kept")
		}
	})
}

// TestABrokerThatPanics leaves nobody waiting.
func TestABrokerThatPanics(t *testing.T) {
	t.Parallel()
	c := newCache(limits{lifetime: time.Minute, entries: 1, bytes: 1})
	uri, _ := kbs.NewResourceURI("a", "b", "c")
	func() {
		defer func() { _ = recover() }()
		_, _ = c.get(t.Context(), uri, func(context.Context) (secret.Bytes, error) { panic("bug") })
	}()
	got, err := c.get(t.Context(), uri, func(context.Context) (secret.Bytes, error) { return secret.New([]byte("x")), nil })
	if err != nil || got.Len() != 1 {
		t.Errorf("got %v", err)
	}
}
