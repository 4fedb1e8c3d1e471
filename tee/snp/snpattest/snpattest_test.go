package snpattest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"
	"github.com/google/go-configfs-tsm/report"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/snp"
)

// kernel is a report interface whose attributes read as given.
type kernel struct {
	provider string
	outBlob  func(inBlob []byte) ([]byte, error)
	auxBlob  []byte
	races    *int // how many more requests another process disturbs
}

func (k kernel) client(t testing.TB) configfsi.Client {
	t.Helper()
	return &faketsm.Client{Subsystems: map[string]configfsi.Client{"report": &faketsm.ReportSubsystem{
		Random:      rand.Reader,
		CheckInAttr: func(*faketsm.ReportEntry, string, []byte) error { return nil },
		MakeEntry: func() *faketsm.ReportEntry {
			return &faketsm.ReportEntry{InAttrs: map[string]*faketsm.ReportAttributeState{"inblob": {}, "privlevel": {}}}
		},
		ReadAttr: func(e *faketsm.ReportEntry, attribute string) ([]byte, error) {
			switch attribute {
			case "provider":
				return []byte(k.provider), nil
			case "auxblob":
				return k.auxBlob, nil
			case "outblob":
				if level := string(e.InAttrs["privlevel"].Value); level != "0" {
					return nil, fmt.Errorf("privilege level %q", level)
				}
				if k.races != nil && *k.races > 0 {
					*k.races--
					e.WriteGeneration++
				}
				return k.outBlob(e.InAttrs["inblob"].Value)
			}
			return nil, os.ErrNotExist
		},
	}}}
}

// processor answers with a report over what it is asked for.
func processor(in []byte) ([]byte, error) {
	r := snp.Report{Version: 2, Policy: snp.PolicyReserved1, ReportData: [64]byte(in), HostData: [32]byte{7}}
	return r.Bytes()
}

func TestEvidence(t *testing.T) {
	t.Parallel()
	certs := []snp.Certificate{{Type: snp.CertVCEK, Data: []byte("chip")}}
	table, err := snp.EncodeCertTable(certs)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		aux  []byte
		want []snp.Certificate
	}{
		"certificates":   {table, certs},
		"none":           {make([]byte, 4096), nil},
		"a broken table": {table[:30], nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := NewWithClient(kernel{provider: "sev_guest\n", outBlob: processor, auxBlob: tc.aux}.client(t))
			if a.TEE() != tee.SNP {
				t.Errorf("TEE: got %s", a.TEE())
			}
			raw, err := a.Evidence(t.Context(), []byte("data"))
			if err != nil {
				t.Fatal(err)
			}
			e, err := snp.ParseEvidence(raw)
			if err != nil {
				t.Fatal(err)
			}
			if want := [64]byte(tee.Fit([]byte("data"), 64)); e.AttestationReport.ReportData != want {
				t.Errorf("report data: got %x", e.AttestationReport.ReportData)
			}
			if diff := cmp.Diff(tc.want, e.CertChain); diff != "" {
				t.Error(diff)
			}
			if got, err := a.InitData(t.Context()); err != nil || !bytes.Equal(got, append([]byte{7}, make([]byte, 31)...)) {
				t.Errorf("initdata: got %x, %v", got, err)
			}
		})
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	fixed := func(b []byte) func([]byte) ([]byte, error) {
		return func([]byte) ([]byte, error) { return b, nil }
	}
	another, err := processor(make([]byte, 64))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		kernel kernel
		data   []byte
		want   string
	}{
		"another TEE":      {kernel{provider: "tdx_guest\n", outBlob: processor, auxBlob: []byte{0}}, nil, "tdx_guest"},
		"firmware error":   {kernel{provider: "sev_guest\n", outBlob: func([]byte) ([]byte, error) { return nil, errors.New("throttled") }, auxBlob: []byte{0}}, nil, "throttled"},
		"no report":        {kernel{provider: "sev_guest\n", outBlob: fixed(make([]byte, 100)), auxBlob: []byte{0}}, nil, "1184"},
		"another's report": {kernel{provider: "sev_guest\n", outBlob: fixed(another), auxBlob: []byte{0}}, []byte("data"), "report_data"},
		"too much data":    {kernel{provider: "sev_guest\n", outBlob: processor, auxBlob: []byte{0}}, make([]byte, 65), "64 bytes"},
	} {
		if raw, err := NewWithClient(tc.kernel.client(t)).Evidence(t.Context(), tc.data); err == nil || raw != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %s, %v; want an error with %q", name, raw, err, tc.want)
		}
	}
}

func TestContextEnds(t *testing.T) {
	t.Parallel()
	release, entered := make(chan struct{}), make(chan struct{}, 2)
	a := NewWithClient(kernel{provider: "sev_guest\n", outBlob: func(in []byte) ([]byte, error) {
		entered <- struct{}{}
		<-release
		return processor(in)
	}, auxBlob: []byte{0}}.client(t))
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

// Another process that writes to the same entry makes the kernel's answer
// somebody else's: the request is made again, but not for ever.
func TestRaces(t *testing.T) {
	t.Parallel()
	for races, ok := range map[int]bool{0: true, maxRaces - 1: true, maxRaces: false} {
		left := races
		a := NewWithClient(kernel{provider: "sev_guest\n", outBlob: processor, auxBlob: []byte{0}, races: &left}.client(t))
		_, err := a.Evidence(t.Context(), []byte("data"))
		if (err == nil) != ok || left != 0 {
			t.Errorf("%d races: got %v, %d left", races, err, left)
		}
		if _, raced := errors.AsType[*report.GenerationErr](err); !ok && !raced {
			t.Errorf("%d races: got %v", races, err)
		}
	}
}
