package memo

import (
	"testing"
	"time"
)

func TestMemo(t *testing.T) {
	m := New[int](2)
	from := time.Unix(1000, 0)
	to := from.Add(time.Hour)
	a, b, c := KeyOf([]byte("a"), []byte("b")), KeyOf([]byte("ab")), KeyOf([]byte("c"))
	if a == b {
		t.Fatal("the borders of the parts do not count")
	}
	m.Put(a, from, to, 1)
	for now, want := range map[time.Time]bool{from.Add(-1): false, from: true, to: true, to.Add(1): false} {
		if _, ok := m.Get(a, now); ok != want {
			t.Errorf("at %v: got %v, expected %v", now, ok, want)
		}
	}
	m.Put(b, from, to, 2)
	m.Put(c, from, to, 3)
	if v, ok := m.Get(c, from); !ok || v != 3 {
		t.Error("the newest verdict was forgotten")
	}
	if len(m.known) != 2 {
		t.Errorf("expected 2 verdicts, got %d", len(m.known))
	}
	m.Put(c, from, to, 4)
	if v, _ := m.Get(c, from); v != 4 || len(m.known) != 2 {
		t.Error("a verdict was not replaced in place")
	}
}
