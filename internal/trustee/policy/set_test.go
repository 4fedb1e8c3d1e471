package policy

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// source counts what is asked of it.
type source struct {
	mu         sync.Mutex
	generation int64
	texts      map[tenant.Name]map[string][]string
	asked      map[string]int
	err        error
}

func (s *source) count(what string) { s.asked[what]++ }

func (s *source) Generation(context.Context, tenant.Name) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count("generation")
	return s.generation, s.err
}

func (s *source) PolicyVersions(_ context.Context, t tenant.Name) (map[string]int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count("versions")
	out := map[string]int64{}
	for id, versions := range s.texts[t] {
		out[id] = int64(len(versions))
	}
	return out, nil
}

func (s *source) PolicyText(_ context.Context, t tenant.Name, id string, version int64) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count("text")
	return s.texts[t][id][version-1], nil
}

func (s *source) set(t tenant.Name, id, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.texts[t] == nil {
		s.texts[t] = map[string][]string{}
	}
	s.texts[t][id] = append(s.texts[t][id], text)
	s.generation++
}

func allow(v int) string { return fmt.Sprintf("package policy\nallow := %d", v) }

func TestSet(t *testing.T) {
	t.Parallel()
	src := &source{texts: map[tenant.Name]map[string][]string{}, asked: map[string]int{}}
	s := NewSet(SetOptions{Source: src, Rules: []string{"allow"}, Defaults: map[string][]Module{
		"p": {{"p.rego", allow(0)}}, Variant("p", "special"): {{"s.rego", allow(100)}},
	}})
	check := func(n tenant.Name, id, variant, label string, want int) {
		t.Helper()
		v, err := s.View(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		p, got, ok, err := v.GetVariant(t.Context(), id, variant)
		if err != nil || !ok || got != label {
			t.Fatalf("%s %s: %q, %v, %v; want %q", n, id, got, ok, err, label)
		}
		var n2 int
		if _, err := p.Eval(t.Context(), "allow", Input{}, nil, &n2); err != nil || n2 != want {
			t.Errorf("%s %s: allow is %d, %v; want %d", n, id, n2, err, want)
		}
	}
	check("a", "p", "", "p (built in)", 0)
	check("a", "p", "special", "p (built in)", 100)
	check("a", "p", "other", "p (built in)", 0)
	src.set("a", "p", allow(1))
	check("a", "p", "special", "p@1", 1)
	check("b", "p", "", "p (built in)", 0)
	src.set("b", "p", allow(2))
	check("a", "p", "", "p@1", 1)
	check("b", "p", "", "p@1", 2)
	before := src.asked["text"]
	for range 5 {
		check("a", "p", "", "p@1", 1)
	}
	if src.asked["text"] != before || src.asked["versions"] != 5 {
		t.Errorf("asked %v", src.asked)
	}
	src.set("a", "p", allow(3))
	check("a", "p", "", "p@2", 3)
	if v, _ := s.View(t.Context(), "a"); len(v.IDs()) != 1 || v.Generation() != 3 {
		t.Errorf("view %v at %d", v.IDs(), v.Generation())
	}
	// A stored policy that does not compile is an error, never the default.
	src.set("a", "p", "package policy\nallow if")
	if _, _, ok, err := s.Get(t.Context(), "a", "p"); err == nil || ok {
		t.Error("broken policy: want an error")
	}
	if _, _, ok, err := s.Get(t.Context(), "a", "unknown"); err != nil || ok {
		t.Errorf("unknown: %v, %v", ok, err)
	}
	src.mu.Lock()
	src.err = errors.New("store is down")
	src.mu.Unlock()
	if _, _, _, err := s.Get(t.Context(), "b", "p"); err == nil {
		t.Error("store is down: want an error, whatever was known before")
	}
}

// What is kept ready is bounded, and requests at once prepare a policy once.
func TestSetBoundsAndConcurrency(t *testing.T) {
	t.Parallel()
	src := &source{texts: map[tenant.Name]map[string][]string{}, asked: map[string]int{}}
	s := NewSet(SetOptions{Source: src, Rules: []string{"allow"}})
	src.set("a", "p", allow(1))
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if _, _, ok, err := s.Get(t.Context(), "a", "p"); err != nil || !ok {
				t.Errorf("%v, %v", ok, err)
			}
		})
	}
	wg.Wait()
	if n := src.asked["text"]; n != 1 {
		t.Errorf("prepared %d times", n)
	}
	for i := range maxPrepared + 10 {
		n := tenant.Name(fmt.Sprintf("t%d", i))
		src.set(n, "p", allow(i))
		if _, _, ok, err := s.Get(t.Context(), n, "p"); err != nil || !ok {
			t.Fatalf("%v, %v", ok, err)
		}
	}
	if n := len(s.prepared); n > maxPrepared {
		t.Errorf("%d prepared, want at most %d", n, maxPrepared)
	}
}

func TestEvalAll(t *testing.T) {
	t.Parallel()
	p, err := Compile(t.Context(), Options{Name: "p", Rules: []string{"allow", "deny", "none"}, Modules: []Module{
		{"a.rego", "package policy\nimport rego.v1\ndefault allow := false\nallow if data.x.y == input.y"},
		{"b.rego", "package policy\nimport rego.v1\ndeny contains {\"rule\": \"r\"} if not allow"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.EvalAll(t.Context(), input(t, `{"y":[1]}`), map[string]any{"x": map[string]any{"y": []int{2}}})
	if err != nil {
		t.Fatal(err)
	}
	var allow bool
	var deny []struct{ Rule string }
	if ok, err := r.Decode("allow", &allow); !ok || err != nil || allow {
		t.Errorf("allow: %v, %v, %v", allow, ok, err)
	}
	if ok, err := r.Decode("deny", &deny); !ok || err != nil || len(deny) != 1 || deny[0].Rule != "r" {
		t.Errorf("deny: %v, %v, %v", deny, ok, err)
	}
	if ok, err := r.Decode("none", new(any)); ok || err != nil {
		t.Errorf("none: %v, %v", ok, err)
	}
	if _, ok := r.Value("allow"); !ok {
		t.Error("no value of allow")
	}
	if _, err := r.Decode("deny", new(int)); err == nil {
		t.Error("wrong type: want an error")
	}
	if r, err = p.EvalAll(t.Context(), input(t, `{"y":[1]}`), map[string]any{"x": map[string]any{"y": []any{1}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Decode("allow", &allow); err != nil || !allow {
		t.Errorf("allow: %v, %v", allow, err)
	}
}
