package backendtest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/secret"
)

// block is a content whose every byte tells which one it is, so that a torn
// read shows.
func block(round, size int) []byte { return bytes.Repeat([]byte{byte('A' + round%26)}, size) }

// readers: whoever reads while a resource is replaced gets one content whole,
// with its own number, and never an older one than before.
func (s suite) readers(t *testing.T) {
	p := path(t, "repo/key/replaced")
	size := min(20_000, s.MaxContent)
	if _, err := s.b.Put(call(t), TenantA, p, secret.New(block(1, size))); err != nil {
		t.Fatal(err)
	}
	ctx := call(t)
	var done atomic.Bool
	var wg sync.WaitGroup
	for range s.Writers {
		wg.Go(func() {
			var last int64
			for !done.Load() {
				got, v, err := s.b.Get(ctx, TenantA, p, 0)
				if err != nil {
					t.Errorf("get while it is replaced: %v", err)
					return
				}
				if !bytes.Equal(got.Expose(), block(int(v), size)) {
					t.Errorf("version %d: got %s", v, sum(got.Expose()))
					return
				}
				if v < last {
					t.Errorf("version %d after version %d", v, last)
				}
				last = v
			}
		})
	}
	for round := 2; round <= s.Rounds+1; round++ {
		if v, err := s.b.Put(ctx, TenantA, p, secret.New(block(round, size))); err != nil || v != int64(round) {
			t.Errorf("put: version %d, %v; want version %d", v, err, round)
			break
		}
	}
	done.Store(true)
	wg.Wait()
}

// writers: every write gets a number of its own, and none is skipped.
func (s suite) writers(t *testing.T) {
	p := path(t, "repo/key/contended")
	ctx := call(t)
	var mu sync.Mutex
	contents := map[int64]string{}
	var numbers []int64
	var wg sync.WaitGroup
	for w := range s.Writers {
		wg.Go(func() {
			for i := range s.Rounds {
				content := fmt.Sprintf("writer %d, round %d", w, i)
				v, err := s.b.Put(ctx, TenantA, p, secret.New([]byte(content)))
				if err != nil {
					t.Errorf("put: %v", err)
					return
				}
				mu.Lock()
				contents[v] = content
				numbers = append(numbers, v)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	slices.Sort(numbers)
	for i, v := range numbers {
		if v != int64(i+1) {
			t.Fatalf("versions %v: want 1 to %d, each once", numbers, len(numbers))
		}
	}
	if t.Failed() {
		return
	}
	newest := numbers[len(numbers)-1]
	for v := newest; v > newest-int64(min(s.Versions, len(numbers))); v-- {
		s.want(t, TenantA, p.String(), v, contents[v], v)
	}
	s.want(t, TenantA, p.String(), 0, contents[newest], newest)
}

// deletionUnderWriters: readers see a whole content or none, and no number
// ever names two contents.
func (s suite) deletionUnderWriters(t *testing.T) {
	p := path(t, "repo/key/flickers")
	ctx := call(t)
	var mu sync.Mutex
	seen := map[int64]string{}
	note := func(v int64, content string) {
		mu.Lock()
		defer mu.Unlock()
		if was, ok := seen[v]; ok && was != content {
			t.Errorf("version %d is %q and %q", v, was, content)
		}
		seen[v] = content
	}
	var done atomic.Bool
	var readers, writers sync.WaitGroup
	readers.Go(func() {
		for !done.Load() {
			got, v, err := s.b.Get(ctx, TenantA, p, 0)
			if errors.Is(err, resource.ErrNotFound) {
				continue
			}
			if err != nil {
				t.Errorf("get: %v", err)
				return
			}
			note(v, string(got.Expose()))
		}
	})
	for w := range 2 {
		writers.Go(func() {
			for i := range s.Rounds {
				content := fmt.Sprintf("writer %d, round %d", w, i)
				v, err := s.b.Put(ctx, TenantA, p, secret.New([]byte(content)))
				if err != nil {
					t.Errorf("put: %v", err)
					return
				}
				note(v, content)
			}
		})
	}
	writers.Go(func() {
		for range s.Rounds {
			if _, err := s.b.Delete(ctx, TenantA, p); err != nil {
				t.Errorf("delete: %v", err)
				return
			}
		}
	})
	writers.Wait()
	done.Store(true)
	readers.Wait()
}
