package softtee

import (
	"context"
	"crypto/sha512"
	"io"
	"net"
	"testing"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/eventlog"
	"github.com/coffer-project/coffer/tee/softtee/softport"
	"github.com/coffer-project/coffer/tee/tdx/tdxverify"
)

// TestRuntimeEvents: what a guest measures at run time is in the quote, and the
// verifier holds the log against it.
func TestRuntimeEvents(t *testing.T) {
	t.Parallel()
	p := chip(t)
	g, err := p.LaunchTDX(tdxLaunch(), TDXPolicy{MRConfigID: [48]byte{5}})
	if err != nil {
		t.Fatal(err)
	}
	a := softport.NewTDX(func(context.Context) (io.ReadWriteCloser, error) {
		guest, host := net.Pipe()
		go func() { _ = g.Serve(t.Context(), host) }()
		return guest, nil
	})
	var log, first []byte
	a.SetRuntimeLog(func() []byte { return log })
	for _, operation := range []string{"PullImage", "StartContainer"} {
		event, err := eventlog.NewRuntimeEvent("coffer", operation, "{}")
		if err != nil {
			t.Fatal(err)
		}
		entry, digest, err := event.Entry(eventlog.CCMR(17, false), eventlog.SHA384)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.ExtendRTMR3(t.Context(), digest); err != nil {
			t.Fatal(err)
		}
		log = append(log, entry...)
		if first == nil {
			first = entry
		}
	}
	value, err := a.ReadRTMR3(t.Context())
	if err != nil || [48]byte(value) != g.RTMR()[3] || g.RTMR()[3] == sha512.Sum384(nil) {
		t.Errorf("RTMR 3: got %x, %v; the guest has %x", value, err, g.RTMR()[3])
	}
	if err := a.ExtendRTMR3(t.Context(), make([]byte, 32)); err == nil {
		t.Error("a digest of 32 bytes was taken")
	}
	verify := func() error {
		evidence, err := a.Evidence(t.Context(), []byte("data"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = tdxVerifier(t, p, tdxverify.Options{}).Verify(t.Context(), evidence, tee.Expected{ReportData: []byte("data"), InitData: []byte{5}})
		return err
	}
	if err := verify(); err != nil {
		t.Errorf("the log with two events: %v", err)
	}
	for name, changed := range map[string][]byte{"without the events": nil, "without the last event": first} {
		log = changed
		if err := verify(); err == nil {
			t.Errorf("%s: the log was accepted", name)
		}
	}
}
