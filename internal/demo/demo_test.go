package demo

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/internal/cli/ui"
	"github.com/coffer-project/coffer/internal/demo/demoroot"
	"github.com/coffer-project/coffer/tee/snp"
	"github.com/coffer-project/coffer/tee/softtee/softport"
)

// report is the file's, changed in one byte of its report data to tell it from
// others.
func report(t *testing.T, mark byte) []byte {
	t.Helper()
	data, err := os.ReadFile("../../tee/snp/testdata/test-report.bin")
	if err != nil {
		t.Fatal(err)
	}
	data = bytes.Clone(data[:snp.ReportSize])
	data[0x50] = mark
	return data
}

// stream is what a security processor writes: refusals among reports.
func stream(t *testing.T, marks ...byte) []byte {
	t.Helper()
	der, err := os.ReadFile("../../tee/snp/testdata/test-vcek.der")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for n, mark := range marks {
		if err := softport.WriteRefusal(&b, uint64(n), "not this one"); err != nil {
			t.Fatal(err)
		}
		if err := softport.WriteReport(&b, uint64(n), report(t, mark), []snp.Certificate{{Type: snp.CertVCEK, Data: der}}); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// duplex is a port whose other end is a buffer.
type duplex struct {
	io.Reader
	io.Writer
}

func TestCapture(t *testing.T) {
	t.Parallel()
	data := stream(t, 1, 2)
	for _, step := range []int{1, 7, frameHeader, len(data)} {
		var c capture
		if c.last() != nil {
			t.Fatal("evidence before any came")
		}
		var guest bytes.Buffer
		port := c.wrap(duplex{strings.NewReader("from the guest"), &guest})
		for rest := data; len(rest) > 0; {
			n, err := port.Write(rest[:min(step, len(rest))])
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if !bytes.Equal(guest.Bytes(), data) {
			t.Errorf("step %d: the guest gets other bytes", step)
		}
		if len(c.evidence) != 2 {
			t.Fatalf("step %d: expected 2 reports, got %d", step, len(c.evidence))
		}
		evidence, err := snp.ParseEvidence(c.last())
		if err != nil {
			t.Fatal(err)
		}
		got, err := evidence.Report()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(report(t, 2), got); diff != "" {
			t.Errorf("step %d: report (-want +got):\n%s", step, diff)
		}
		if _, ok := evidence.Certificate(snp.CertVCEK); !ok {
			t.Errorf("step %d: the certificate is lost", step)
		}
	}
}

// TestCaptureJunk passes over frames that hold no report.
func TestCaptureJunk(t *testing.T) {
	t.Parallel()
	frame := func(kind byte, payload []byte) []byte {
		b := make([]byte, frameHeader, frameHeader+len(payload))
		copy(b, "CSTP")
		b[4], b[5] = 1, kind
		binary.BigEndian.PutUint32(b[16:], uint32(len(payload)))
		return append(b, payload...)
	}
	var c capture
	c.record(frame(kindReport, nil))
	c.record(frame(kindReport, make([]byte, snp.ReportSize)))                            // no version
	c.record(frame(kindReport, append(report(t, 3), bytes.Repeat([]byte{0xff}, 48)...))) // no table
	c.record(frame(1, report(t, 4)))
	if c.last() != nil {
		t.Errorf("took %d frames for reports", len(c.evidence))
	}
	c.record(stream(t, 5))
	if c.last() == nil {
		t.Error("what followed was lost")
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	var account bytes.Buffer
	var r Report
	if r.OK() {
		t.Error("a report without acts is not ok")
	}
	u := ui.New(&account)
	if err := r.act(u, "first", "one", func() (string, error) { return "seen <&>", nil }); err != nil {
		t.Error(err)
	}
	if !r.OK() {
		t.Error("one good act is ok")
	}
	reason := errors.New("the reason")
	if err := r.act(u, "second", "two", func() (string, error) { return "seen", reason }); !errors.Is(err, reason) {
		t.Error(err)
	}
	if r.OK() {
		t.Error("a failed act is not ok")
	}
	var out bytes.Buffer
	if err := r.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), `\u003c`) {
		t.Errorf("characters are escaped for HTML: %s", &out)
	}
	var back struct {
		Acts []map[string]any `json:"acts"`
	}
	if err := json.Unmarshal(out.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	for _, a := range back.Acts {
		if s, ok := a["seconds"].(float64); !ok || s < 0 {
			t.Errorf("seconds: %v", a["seconds"])
		}
		delete(a, "seconds")
	}
	want := []map[string]any{
		{"name": "first", "ok": true, "expected": "one", "got": "seen <&>"},
		{"name": "second", "ok": false, "expected": "two", "got": "seen\nthe reason"},
	}
	if diff := cmp.Diff(want, back.Acts); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, want := range []string{"ok   first", "FAIL second", "expected: two"} {
		if !strings.Contains(account.String(), want) {
			t.Errorf("the account lacks %q:\n%s", want, &account)
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	if _, err := refused("it", nil, "why"); err == nil {
		t.Error("what was done is no refusal")
	}
	if _, err := refused("it", errors.New("for another reason"), "why"); err == nil {
		t.Error("another reason is not the expected one")
	}
	line, err := refused("it", errors.New("why,\nand more"), "why", "more")
	if err != nil || line != "it\n  → why,\n  → and more" {
		t.Errorf("got %q %v", line, err)
	}
}

// TestFaults shows how the front lies.
func TestFaults(t *testing.T) {
	t.Parallel()
	var r registryServer
	r.setFaults(faults{swap: map[string]string{"sha256:a": "sha256:b"}, corrupt: map[string]bool{"sha256:c": true}})
	for in, want := range map[string]string{
		"/v2/app/manifests/sha256:a": "/v2/app/manifests/sha256:b", "/v2/app/manifests/v1": "/v2/app/manifests/v1", "/v2/app/blobs/sha256:a": "/v2/app/blobs/sha256:a",
	} {
		if got := r.swapped(in); got != want {
			t.Errorf("%s: expected %s, got %s", in, want, got)
		}
	}
	answer := func(method, path string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://registry.example"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp := &http.Response{StatusCode: http.StatusOK, Request: req, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("abc"))}
		if err := r.tamper(resp); err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if got := answer(http.MethodGet, "/v2/app/blobs/sha256:c"); got != "acc" {
		t.Errorf("expected one flipped bit, got %q", got)
	}
	if got := answer(http.MethodGet, "/v2/app/blobs/sha256:d"); got != "abc" {
		t.Errorf("expected another blob as it is, got %q", got)
	}
}

func TestAppendFile(t *testing.T) {
	t.Parallel()
	initrd := []byte("070701 not a whole archive")
	got, err := appendFile(initrd, "backdoor", []byte("#!/bin/sh\n"))
	if err != nil {
		t.Fatal(err)
	}
	second := bytes.Index(got[len(initrd):], []byte("070701"))
	if !bytes.HasPrefix(got, initrd) || second < 0 || (len(initrd)+second)%4 != 0 || !bytes.Contains(got, []byte("backdoor\x00")) {
		t.Errorf("got %q", got)
	}
}

func TestDemoRoot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n, err := demoroot.Base(t.Context(), dir)
	if err != nil && strings.Contains(err.Error(), "busybox-static") {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := demoroot.App(dir, "the marker"); err != nil {
		t.Fatal(err)
	}
	if n < 100 {
		t.Errorf("expected a root of many files, got %d", n)
	}
	target, err := os.Readlink(filepath.Join(dir, "bin/sh"))
	if err != nil || target != "busybox" {
		t.Errorf("bin/sh: %q %v", target, err)
	}
	if st, err := os.Stat(filepath.Join(dir, "tmp")); err != nil || st.Mode().Perm() != 0o777 || st.Mode()&os.ModeSticky == 0 {
		t.Errorf("tmp: %v %v", st.Mode(), err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "app/secret.txt")); err != nil || string(data) != "the marker\n" {
		t.Errorf("secret.txt: %q %v", data, err)
	}
}
