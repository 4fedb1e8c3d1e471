// Package tsmtest has a fake of the kernel's report interface (configfs-tsm) for
// the tests of attesters.
package tsmtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"

	"github.com/coffer-project/coffer/tee"
)

// Kernel is a report interface whose attributes read as given.
type Kernel struct {
	// Provider is what its driver calls itself, with the kernel's line end.
	Provider string
	// OutBlob answers what was written to inblob.
	OutBlob func(inBlob []byte) ([]byte, error)
	// AuxBlob is nil where the driver has no such attribute.
	AuxBlob []byte
	// Privilege is the privilege level that has to be asked for; "": none.
	Privilege string
	// Races counts how many more requests another process disturbs; nil: none.
	Races *atomic.Int32
}

// Client is the interface as an attester opens it.
func (k Kernel) Client() configfsi.Client {
	return &faketsm.Client{Subsystems: map[string]configfsi.Client{"report": &faketsm.ReportSubsystem{
		Random:      rand.Reader,
		CheckInAttr: func(*faketsm.ReportEntry, string, []byte) error { return nil },
		MakeEntry: func() *faketsm.ReportEntry {
			return &faketsm.ReportEntry{InAttrs: map[string]*faketsm.ReportAttributeState{"inblob": {}, "privlevel": {}}}
		},
		ReadAttr: k.read,
	}}}
}

func (k Kernel) read(e *faketsm.ReportEntry, attribute string) ([]byte, error) {
	switch {
	case attribute == "provider":
		return []byte(k.Provider), nil
	case attribute == "auxblob" && k.AuxBlob != nil:
		return k.AuxBlob, nil
	case attribute != "outblob":
		return nil, os.ErrNotExist
	}
	if level := string(e.InAttrs["privlevel"].Value); level != k.Privilege {
		return nil, fmt.Errorf("privilege level: expected %q, got %q", k.Privilege, level)
	}
	if k.Races != nil && k.Races.Add(-1) >= 0 {
		e.WriteGeneration++
	}
	return k.OutBlob(e.InAttrs["inblob"].Value)
}

// ContextEnds tests that callers of the attester over k give up when their
// context ends while the kernel is busy, be it with their request or with
// another's, and that the attester works afterwards.
func ContextEnds(t *testing.T, k Kernel, attester func(configfsi.Client) tee.Attester) {
	t.Helper()
	release, entered := make(chan struct{}), make(chan struct{}, 2)
	answer := k.OutBlob
	k.OutBlob = func(in []byte) ([]byte, error) {
		entered <- struct{}{}
		<-release
		return answer(in)
	}
	a := attester(k.Client())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := a.Evidence(ctx, nil); done <- err }()
	<-entered
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	// The kernel is still busy; who waits for it can give up.
	if _, err := a.InitData(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	close(release)
	if _, err := a.Evidence(t.Context(), nil); err != nil {
		t.Errorf("after the busy kernel: %v", err)
	}
}
