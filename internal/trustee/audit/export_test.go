package audit

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

func export(t testing.TB, n int) string {
	t.Helper()
	s, entries := signer(t, 1), chain(t, n)
	var b bytes.Buffer
	if err := WriteExport(&b, tenant.Default, start, s.Keys(), []string{sign(t, s, entries[1])}, sequence(entries)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestExport(t *testing.T) {
	t.Parallel()
	doc := export(t, 4)
	r, err := verifyExport(t.Context(), strings.NewReader(doc), nil, nil, true)
	if err != nil || !r.OK || r.Entries != 4 || r.Checkpoints != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if r, err = verifyExport(t.Context(), strings.NewReader(doc), signer(t, 2).Keys(), nil, true); err != nil || r.OK {
		t.Errorf("keys of one's own that did not sign: %+v, %v", r, err)
	}
	lines := strings.SplitAfter(doc, "\n")
	for name, bad := range map[string]string{
		"empty":           "",
		"no header":       strings.Join(lines[1:], ""),
		"no trailer":      strings.Join(lines[:6], ""),
		"cut in a line":   doc[:len(doc)-50],
		"entry removed":   strings.Join(append(lines[:5:5], lines[6]), ""),
		"after the end":   doc + lines[2],
		"two headers":     lines[0] + doc,
		"late checkpoint": strings.Join([]string{lines[0], lines[2], lines[1], lines[3], lines[4], lines[5], lines[6]}, ""),
		"format":          strings.Replace(doc, "/v1", "/v2", 1),
		"unknown member":  strings.Replace(doc, `{"trailer"`, `{"x":1,"trailer"`, 1),
		"twice":           strings.Replace(doc, `{"trailer":`, `{"trailer":null,"trailer":`, 1),
		"no record":       strings.Replace(doc, `,"record":`, `,"recorded":`, 1),
		"long line":       lines[0] + strings.Repeat("a", maxLine+2),
	} {
		if r, err := verifyExport(t.Context(), strings.NewReader(bad), nil, nil, false); err == nil {
			t.Errorf("%s: got %+v, want an error", name, r)
		}
	}
	forged := strings.Replace(doc, `"granted":false`, `"granted":true`, 1)
	if r, err := verifyExport(t.Context(), strings.NewReader(forged), nil, nil, false); err != nil || r.OK || r.Problem.Seq != 1 || r.Problem.What != "hash" {
		t.Errorf("forged: %+v, %v", r, err)
	}
	x, err := OpenExport(strings.NewReader(doc))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err = nil
		for _, err = range x.Entries() {
			if err != nil {
				break
			}
		}
	}
	if err == nil {
		t.Error("read twice: want an error")
	}
	spaced := chain(t, 1)
	spaced[0].Body = []byte(`{ "kind":"admin"}`)
	if err := WriteExport(io.Discard, tenant.Default, start, signer(t, 1).Keys(), nil, sequence(spaced)); err == nil {
		t.Error("a record that would change: want an error")
	}
}

func FuzzExport(f *testing.F) {
	doc := export(f, 2)
	f.Add([]byte(doc))
	f.Add([]byte(doc[:len(doc)/2]))
	f.Add([]byte(`{"header":{"format":"coffer-audit-export/v1"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := verifyExport(t.Context(), bytes.NewReader(b), nil, nil, false)
		if err == nil && r.OK != (r.Problem == nil) {
			t.Errorf("%+v", r)
		}
	})
}

func FuzzCheckpoint(f *testing.F) {
	s := signer(f, 1)
	keys := s.Keys()
	valid := sign(f, s, Entry{Seq: 1, Hash: Genesis})
	f.Add(valid)
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, jws string) {
		if _, err := keys.Checkpoint(jws); err == nil && strings.TrimSpace(jws) != valid {
			t.Errorf("a checkpoint that nobody signed: %q", jws)
		}
	})
}

func FuzzParseKeys(f *testing.F) {
	doc, err := signer(f, 1).Keys().MarshalJSON()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := ParseKeys(b); (err == nil) != (len(k) > 0) {
			t.Errorf("%v, %v", k, err)
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte(chain(f, 1)[0].Body))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := DecodeRecord(b); (err == nil) != (r.Kind != "") {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// verifyExport verifies an export offline. Without keys of its own it goes by
// those in the export. keys and pinned are what was kept elsewhere.
func verifyExport(ctx context.Context, r io.Reader, keys Keys, pinned []string, complete bool) (Report, error) {
	x, err := OpenExport(r)
	if err != nil {
		return Report{}, err
	}
	if keys == nil {
		keys = x.Keys
	}
	return Verify(ctx, x.Entries(), VerifyOptions{Tenant: x.Header.Tenant, Keys: keys, Checkpoints: x.Checkpoints, Pinned: pinned, Complete: complete})
}
