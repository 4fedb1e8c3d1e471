package e2e

import (
	"encoding/json"
	"slices"
	"syscall"
	"testing"
)

// TestDemo plays the demonstration.
func TestDemo(t *testing.T) {
	s := need(t)
	t.Parallel()
	c := s.program(t, "", "coffer", "demo", "--output", "json", "--guest-image", s.guest)
	c.boots = true
	stdout, stderr := c.expect(0)
	var report struct {
		Acts []struct {
			Name, Expected, Got string
			OK                  bool
			Seconds             float64
		} `json:"acts"`
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil {
		t.Fatalf("stdout is not one JSON document: %v\n%s", err, stdout)
	}
	var names []string
	for _, a := range report.Acts {
		names = append(names, a.Name)
		if !a.OK || a.Expected == "" || a.Got == "" || a.Seconds <= 0 {
			t.Errorf("act %+v", a)
		}
	}
	want := []string{"start", "protect", "run", "tamper-launch", "tamper-initdata", "tamper-image", "control-plane", "replay"}
	if !slices.Equal(names, want) {
		t.Errorf("expected the acts %v, got %v", want, names)
	}
	contains(t, "stderr", stderr, "ok   replay")
}

// TestDemoInterrupted leaves neither trustee nor registry nor machine.
func TestDemoInterrupted(t *testing.T) {
	s := need(t)
	t.Parallel()
	c := s.program(t, "", "coffer", "demo", "--guest-image", s.guest)
	c.boots = true
	c.start()
	c.until(&c.stdout, "ok   protect")
	c.signal(syscall.SIGINT)
	if code := c.wait(); code != 1 {
		t.Errorf("expected exit code 1, got %d", code)
	}
	contains(t, "stderr", c.stderr.String(), "coffer: interrupt")
}
