package agent

import (
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/guest/reaper"
	"github.com/coffer-project/coffer/podpolicy"
)

// A container's first process may be killed, by a neighbour or for want of
// memory, just as the host starts it. Whichever comes first, the policy's state
// must not keep a container that runs for ever: it could never be deleted.
func TestAProcessThatDiesWhileItIsStarted(t *testing.T) {
	t.Parallel()
	guard := podpolicy.NewUnsealedGuard()
	if _, err := guard.Sandbox(podpolicy.SandboxProposal{ID: "pod"}); err != nil {
		t.Fatal(err)
	}
	a := &Agent{log: slog.New(slog.DiscardHandler), events: newEventLog(time.Now)}
	sb := &sandbox{guard: guard}
	for range 200 {
		admission, err := guard.Admit(podpolicy.ContainerProposal{ID: "c", Name: "c", Image: "registry.example/a:b"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := admission.Configure(podpolicy.ImageConfig{Cmd: []string{"/bin/true"}}); err != nil {
			t.Fatal(err)
		}
		p := newProc("c", "")
		var wg sync.WaitGroup
		wg.Go(func() { _ = p.begin(func() error { return guard.Started("c", "") }) })
		wg.Go(func() { a.end(sb, p, reaper.Status{Code: 137}, "signalled") })
		wg.Wait()
		if err := guard.Deleted("c", ""); err != nil {
			t.Fatal(err)
		}
	}
}
