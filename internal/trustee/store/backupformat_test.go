package store

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var backupTestTable = backupTable{Name: "things", Columns: []backupColumn{{"name", kindText}, {"n", kindInt}, {"b", kindBytes}}}

func backupTestRows() [][]any {
	return [][]any{
		{"a\n\"[é\u2028", int64(math.MaxInt64), []byte{0, 0xff, '\n'}},
		{"", int64(math.MinInt64), []byte{}},
		{nil, nil, nil},
	}
}

func sealTest(digest []byte) ([]byte, error) { return append([]byte("sealed:"), digest...), nil }

func verifyTest(digest, sealed []byte) error {
	if want, _ := sealTest(digest); !bytes.Equal(want, sealed) {
		return errors.New("seal is wrong")
	}
	return nil
}

func writeTestBackup(t testing.TB, change func(*backupEnd)) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := newBackupWriter(&out, backupHeader{Format: backupFormat, Version: backupVersion, Schema: 3, KEK: "file:0", Created: time.UnixMilli(1_800_000_000_000).UTC()})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.table(backupTestTable); err != nil {
		t.Fatal(err)
	}
	for _, r := range backupTestRows() {
		if err := w.row(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.table(backupTable{Name: "empty", Columns: []backupColumn{{"x", kindText}}}); err != nil {
		t.Fatal(err)
	}
	if err := w.finish(func(digest []byte) ([]byte, error) {
		if change != nil {
			change(&w.end)
		}
		return sealTest(digest)
	}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func readTestBackup(data []byte) (rows [][]any, tables []string, err error) {
	r, err := newBackupReader(bytes.NewReader(data))
	if err != nil {
		return nil, nil, err
	}
	err = r.each(func(t backupTable) error { tables = append(tables, t.Name); return nil },
		func(row []any) error { rows = append(rows, row); return nil }, verifyTest)
	return rows, tables, err
}

func TestBackupFormat(t *testing.T) {
	t.Parallel()
	rows, tables, err := readTestBackup(writeTestBackup(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(backupTestRows(), rows); diff != "" || strings.Join(tables, " ") != "things empty" {
		t.Errorf("%v\n%s", tables, diff)
	}
}

// TestBackupCutOrAltered: every shorter file and every changed byte is refused.
func TestBackupCutOrAltered(t *testing.T) {
	t.Parallel()
	whole := writeTestBackup(t, nil)
	for i := range whole {
		if _, _, err := readTestBackup(whole[:i]); err == nil {
			t.Fatalf("cut to %d of %d bytes: want an error", i, len(whole))
		}
		bad := bytes.Clone(whole)
		bad[i] ^= 0x10
		// Compression has bits that mean nothing: a time, a system, padding.
		if rows, tables, err := readTestBackup(bad); err == nil && (len(tables) != 2 || cmp.Diff(backupTestRows(), rows) != "") {
			t.Fatalf("byte %d changed: got %v, %v", i, tables, rows)
		}
	}
	for name, bad := range map[string][]byte{
		"a byte more":      append(bytes.Clone(whole), 0),
		"twice":            append(bytes.Clone(whole), whole...),
		"no gzip":          []byte("{}"),
		"other row counts": writeTestBackup(t, func(e *backupEnd) { e.Rows["things"]++ }),
		"other tables":     writeTestBackup(t, func(e *backupEnd) { delete(e.Rows, "empty") }),
		"other sum":        writeTestBackup(t, func(e *backupEnd) { e.SHA256 = strings.Repeat("0", 64) }),
	} {
		if _, _, err := readTestBackup(bad); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

// recompress lets a test change the lines of a backup, digest and all but the seal.
func recompress(t testing.TB, data []byte, change func(string) string) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write([]byte(change(string(text)))); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestBackupLinesRefused(t *testing.T) {
	t.Parallel()
	whole := writeTestBackup(t, nil)
	replace := func(old, with string) func(string) string {
		return func(s string) string {
			if !strings.Contains(s, old) {
				t.Errorf("no %q in %s", old, s)
			}
			return strings.Replace(s, old, with, 1)
		}
	}
	for name, tc := range map[string]struct {
		change func(string) string
		want   string
	}{
		"format":         {replace(backupFormat, "tar"), "format: expected coffer-trustee-backup version 1"},
		"format version": {replace(`"version":1`, `"version":2`), "format: expected"},
		"no header":      {func(s string) string { _, rest, _ := strings.Cut(s, "\n"); return rest }, "expected the header"},
		"second header":  {func(s string) string { h, _, _ := strings.Cut(s, "\n"); return h + "\n" + s }, "expected a table, a row or the end"},
		"unknown member": {replace(`"schema":3`, `"schema":3,"x":1`), "expected the header"},
		"empty":          {func(string) string { return "" }, "expected a whole line"},
		"no end":         {func(s string) string { return s[:strings.Index(s, `{"end"`)] }, "expected a whole line"},
		"row first":      {replace(`{"table":{"name":"things"`, "[]\n"+`{"table":{"name":"things"`), "a row before any table"},
		"table twice":    {replace(`"name":"empty"`, `"name":"things"`), "expected each table once"},
		"row too short":  {replace(`[null,null,null]`, `[null,null]`), "expected 3 columns, got 2"},
		"row altered":    {replace(`[null,null,null]`, `["x",null,null]`), "sha256"},
		"row dropped":    {replace("[null,null,null]\n", ""), "sha256"},
		"number":         {replace(`"9223372036854775807"`, `"9223372036854775808"`), "expected a decimal number"},
		"number form":    {replace(`"9223372036854775807"`, `"07"`), "expected a decimal number"},
		"base64":         {replace(`"AP8K"`, `"AP8"`), "expected standard base64"},
		"line":           {replace(`[null,null,null]`, strings.Repeat(" ", maxBackupLine+1)), "expected at most"},
	} {
		_, _, err := readTestBackup(recompress(t, whole, tc.change))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

func TestBackupRefusesWhatItCannotKeep(t *testing.T) {
	t.Parallel()
	for _, v := range []any{"\xff", int64(1), 1.5, true} {
		if _, err := encodeColumn(kindText, v); err == nil {
			t.Errorf("%#v as text: want an error", v)
		}
	}
	if _, err := encodeColumn(kindInt, "1"); err == nil {
		t.Error("text as a number: want an error")
	}
	w, err := newBackupWriter(io.Discard, backupHeader{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.table(backupTestTable), w.row([]any{strings.Repeat("x", maxBackupLine), nil, nil})); err == nil {
		t.Error("a line that no reader takes: want an error")
	}
}

// FuzzBackup: whatever is read without error is what was written.
func FuzzBackup(f *testing.F) {
	whole := writeTestBackup(f, nil)
	r, err := gzip.NewReader(bytes.NewReader(whole))
	if err != nil {
		f.Fatal(err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(text[:len(text)/2])
	f.Add([]byte("{\"backup\":{}}\n[]\n"))
	f.Add(bytes.ReplaceAll(text, []byte("things"), []byte("empty")))
	f.Fuzz(func(t *testing.T, lines []byte) {
		var out bytes.Buffer
		w, err := gzip.NewWriterLevel(&out, gzip.NoCompression)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(lines); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := readTestBackup(out.Bytes()); err == nil && !bytes.HasPrefix(lines, text[:bytes.Index(text, []byte(`{"end"`))]) {
			t.Fatalf("accepted %q", lines)
		}
	})
}
