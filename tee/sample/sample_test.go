package sample

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/tee"
)

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	reportData, initData := bytes.Repeat([]byte{1}, 48), bytes.Repeat([]byte{2}, 32)
	for _, initData := range [][]byte{nil, initData} {
		a := NewAttester(initData)
		evidence, err := a.Evidence(t.Context(), reportData)
		if err != nil {
			t.Fatal(err)
		}
		r, err := NewVerifier().Verify(t.Context(), evidence, tee.Expected{ReportData: reportData, InitData: initData})
		if err != nil {
			t.Fatal(err)
		}
		if !r.Simulated || r.Claims["simulated"] != true || r.TEE != tee.Sample || r.Class != tee.CPU {
			t.Errorf("result: %+v", r)
		}
		if got, err := a.InitData(t.Context()); err != nil || !bytes.Equal(got, initData) {
			t.Errorf("initdata: got %x, %v", got, err)
		}
	}
}

// The form on the wire is that of the guest components.
func TestWireForm(t *testing.T) {
	t.Parallel()
	got, err := NewAttester(nil).Evidence(t.Context(), []byte("test"))
	if want := `{"svn":"1","report_data":"dGVzdA=="}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
	if _, err := NewAttester(nil).Evidence(t.Context(), make([]byte, 65)); err == nil {
		t.Error("65 bytes of report data: no error")
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	want := tee.Expected{ReportData: []byte("test"), InitData: []byte("init")}
	for _, tc := range []struct {
		name, evidence string
		checks         []string
	}{
		{"good", `{"svn":"1","report_data":"dGVzdA==","init_data":"aW5pdA=="}`, nil},
		{"svn", `{"svn":"2","report_data":"dGVzdA==","init_data":"aW5pdA=="}`, []string{"sample.svn"}},
		{"report data", `{"svn":"1","report_data":"dGVzdAA=","init_data":"aW5pdA=="}`, []string{"sample.report_data"}},
		{"no initdata", `{"svn":"1","report_data":"dGVzdA=="}`, []string{"sample.init_data"}},
		{"all wrong", `{}`, []string{"sample.svn", "sample.report_data", "sample.init_data"}},
		{"unknown key", `{"svn":"1","report_data":"dGVzdA==","x":1}`, []string{"sample.format"}},
		{"no JSON", `x`, []string{"sample.format"}},
		{"large", `{"svn":"` + strings.Repeat("1", maxEvidence) + `"}`, []string{"sample.format"}},
	} {
		_, err := NewVerifier().Verify(t.Context(), json.RawMessage(tc.evidence), want)
		var got []string
		if refusal, ok := errors.AsType[*tee.Error](err); ok {
			for _, f := range refusal.Failures {
				got = append(got, f.Check)
			}
		}
		if diff := cmp.Diff(tc.checks, got); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
	}
	if _, err := NewVerifier().Verify(t.Context(), json.RawMessage(`{"svn":"1","report_data":""}`), tee.Expected{}); err == nil {
		t.Error("evidence was accepted that is bound to nothing")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := NewVerifier().Verify(ctx, json.RawMessage(`{}`), want); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte(`{"svn":"1","report_data":"dGVzdA==","init_data":"aW5pdA=="}`))
	f.Fuzz(func(t *testing.T, evidence []byte) {
		r, err := NewVerifier().Verify(t.Context(), evidence, tee.Expected{ReportData: []byte("test")})
		if (r == nil) == (err == nil) {
			t.Fatalf("got result %v and error %v", r, err)
		}
		if r != nil && !r.Simulated {
			t.Fatal("sample evidence counts as real")
		}
	})
}

func TestDevice(t *testing.T) {
	t.Parallel()
	v := NewDeviceVerifier()
	want := tee.Expected{ReportData: []byte("digest")}
	r, err := v.Verify(t.Context(), []byte(`{"svn":"2","report_data":"ZGlnZXN0"}`), want)
	if err != nil || r.TEE != tee.SampleDevice || r.Class != tee.GPU || !r.Simulated {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := v.Verify(t.Context(), []byte(`{"svn":"1","report_data":"ZGlnZXN0"}`), want); err == nil {
		t.Error("the environment's evidence counts as the device's")
	}
	if _, err := NewVerifier().Verify(t.Context(), []byte(`{"svn":"2","report_data":"ZGlnZXN0"}`), want); err == nil {
		t.Error("the device's evidence counts as the environment's")
	}
}

func TestInspect(t *testing.T) {
	t.Parallel()
	x, err := Inspect([]byte(`{"svn":"9","report_data":"ZGlnZXN0"}`))
	if err != nil || x.Fields["report_data"] != "646967657374" || len(x.Odd) != 2 {
		t.Errorf("%+v, %v", x, err)
	}
	for _, bad := range []string{``, `{}`, `{"svn":"1"}`, `[]`} {
		if x, err := Inspect([]byte(bad)); err == nil {
			t.Errorf("%s: %+v", bad, x)
		}
	}
	if _, err := FromRaw([]byte("x")); err == nil {
		t.Error("there is no binary form")
	}
}
