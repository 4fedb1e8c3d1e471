package vmm

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/host/qmp"
)

// TestSlots: a disk has one owner at a time, and what the emulator says of a
// device reaches the one who waits for it, and nobody else.
func TestSlots(t *testing.T) {
	t.Parallel()
	s := newSlots(&Machine{DiskSlots: 2})
	a, err := s.take("a")
	if err != nil {
		t.Fatal(err)
	}
	refused := func(err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	_, err = s.hold("a")
	refused(err, "is being attached or detached")
	_, err = s.take("a")
	refused(err, "already")
	s.release(a, true)
	if a, err = s.hold("a"); err != nil {
		t.Fatal(err)
	}
	_, err = s.hold("a")
	refused(err, "is being attached or detached")
	b, err := s.take("b")
	if err != nil || b.slot == a.slot || b.id == a.id {
		t.Fatalf("%+v, %v", b, err)
	}
	_, err = s.take("c")
	refused(err, "takes 2 disks while it runs")
	for _, data := range []string{"", "null", "[]", `{"device": 7}`, `{"device": ""}`, `{"device": "hot1"}`, `{"device": "other"}`} {
		s.event(qmp.Event{Name: "DEVICE_DELETED", Data: json.RawMessage(data)})
	}
	if len(a.deleted) != 0 {
		t.Error("another device's event was taken for its own")
	}
	for range 2 { // the second has nowhere to go, and holds nobody up
		s.event(qmp.Event{Name: "DEVICE_DELETED", Data: json.RawMessage(`{"device": "` + a.id + `"}`)})
	}
	if gone := <-a.deleted; !gone {
		t.Error("it is gone, and was reported as refused")
	}
	s.release(a, false)
	if c, err := s.take("c"); err != nil || c.slot != a.slot || c.id == a.id || c.id == b.id {
		t.Errorf("the free slot: %+v, %v", c, err)
	}
	s.release(b, true)
	if b, err = s.hold("b"); err != nil {
		t.Fatal(err)
	}
	s.event(qmp.Event{Name: "DEVICE_UNPLUG_GUEST_ERROR", Data: json.RawMessage(`{"device": "` + b.id + `", "path": "/machine/peripheral/` + b.id + `"}`)})
	if gone := <-b.deleted; gone {
		t.Error("it was refused, and reported as gone")
	}
}
