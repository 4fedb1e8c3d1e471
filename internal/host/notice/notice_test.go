package notice

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

var (
	someone = Pod{ID: "box-1", Namespace: "shop", Name: "web-0", UID: "3f0e2d1c-0000-4000-8000-000000000001"}
	noon    = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
)

func clock() time.Time { return noon }

// pod is the directory of a pod below a state directory.
func pod(t *testing.T, state, id string) string {
	t.Helper()
	dir := filepath.Join(state, "k8s.io", id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func add(t *testing.T, f *File, r Reason, message string) bool {
	t.Helper()
	added, err := f.Add(someone, r, message)
	if err != nil {
		t.Fatal(err)
	}
	return added
}

func scan(t *testing.T, state string) []Notice {
	t.Helper()
	all, err := Scan(state)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestAddAndScan(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	if got := scan(t, filepath.Join(state, "none")); got != nil {
		t.Errorf("of no directory: %v", got)
	}
	f := New(pod(t, state, "box-1"), clock)
	if got := scan(t, state); got != nil {
		t.Errorf("of a pod without any: %v", got)
	}
	if !add(t, f, Unsealed, "no policy") || !add(t, f, NoEffect, "no\n\teffect") {
		t.Error("a new notice is not new")
	}
	if add(t, f, Unsealed, "no policy") || add(t, f, NoEffect, "no effect ") {
		t.Error("a notice is there twice")
	}
	other := New(pod(t, state, "box-0"), clock)
	if _, err := other.Add(Pod{ID: "box-0"}, Refused, "<no>"); err != nil {
		t.Fatal(err)
	}
	want := []Notice{
		{Pod{ID: "box-0"}, noon, Refused, "<no>"}, {someone, noon, Unsealed, "no policy"}, {someone, noon, NoEffect, "no effect"},
	}
	if got := scan(t, state); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if want[0].Pod.Kubernetes() || !want[1].Pod.Kubernetes() {
		t.Error("which pod is of Kubernetes")
	}
	if got := len(Dirs(state)); got != 4 {
		t.Errorf("directories: %q", Dirs(state))
	}
	f.Close()
	if add(t, f, Unsealed, "another") || len(scan(t, state)) != 3 {
		t.Error("something was written after Close")
	}
}

func TestKey(t *testing.T) {
	t.Parallel()
	keys := map[string]Notice{}
	for _, n := range []Notice{
		{someone, noon, Unsealed, "a"}, {someone, noon, Unsealed, "b"}, {someone, noon, Refused, "a"},
		{Pod{ID: "box-1", Namespace: "shop", Name: "web-0", UID: "other"}, noon, Unsealed, "a"},
	} {
		if k := n.Key(); len(k) != 32 || keys[k].Message != "" {
			t.Errorf("key %q of %v: also of %v", k, n, keys[k])
		}
		keys[n.Key()] = n
	}
	// A pod's next sandbox is the same pod.
	again := someone
	again.ID = "box-2"
	if n := (Notice{again, noon.Add(time.Hour), Unsealed, "a"}); keys[n.Key()].Message == "" {
		t.Error("the same notice has another key")
	}
}

// TestBounds: a guest may have as much refused as it likes.
func TestBounds(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	f := New(pod(t, state, "box-1"), clock)
	reasons := []Reason{Refused, Closed, Volume, NoEffect, Degraded, Unsealed}
	for i := range 1000 {
		add(t, f, reasons[0], fmt.Sprint(i, strings.Repeat(`"`, 5000)))
	}
	all := scan(t, state)
	if len(all) != MaxEach || all[MaxEach-1].Message != more || all[0].Message == more {
		t.Fatalf("%d, the last %q", len(all), all[len(all)-1].Message)
	}
	if !add(t, f, Unsealed, "no policy") {
		t.Error("others have no room")
	}
	var all2 sync.WaitGroup
	for i := range 100 {
		all2.Go(func() {
			for _, r := range reasons {
				if _, err := f.Add(someone, r, fmt.Sprint(i, strings.Repeat("\\\U0001F600", 1000))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all2.Wait()
	all = scan(t, state)
	if len(all) != MaxAll || all[MaxAll-1].Message != more {
		t.Errorf("%d, the last %q", len(all), all[len(all)-1].Message)
	}
	info, err := os.Stat(filepath.Join(state, "k8s.io/box-1", FileName))
	if err != nil || info.Size() > maxFile || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestRefusedNotices(t *testing.T) {
	t.Parallel()
	f := New(pod(t, t.TempDir(), "box-1"), clock)
	long := strings.Repeat("x", 254)
	for name, n := range map[string]Notice{
		"no reason": {someone, noon, "", "m"}, "reason": {someone, noon, "a b", "m"}, "long reason": {someone, noon, Reason("A" + long), "m"},
		"no message": {someone, noon, Refused, " \n"}, "no id": {Pod{}, noon, Refused, "m"}, "id": {Pod{ID: "a/b"}, noon, Refused, "m"},
		"namespace": {Pod{ID: "a", Namespace: "../x"}, noon, Refused, "m"}, "name": {Pod{ID: "a", Name: long}, noon, Refused, "m"},
	} {
		if added, err := f.Add(n.Pod, n.Reason, n.Message); err == nil || added || len(err.Error()) > 250 {
			t.Errorf("%s: %t, %v", name, added, err)
		}
	}
}

// TestWriteFails: what a full disk has kept out comes with the next.
func TestWriteFails(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	dir := pod(t, state, "box-1")
	f := New(dir, clock)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Add(someone, Unsealed, "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	pod(t, state, "box-1")
	add(t, f, Unsealed, "b")
	if got := scan(t, state); len(got) != 2 || got[0].Message != "a" {
		t.Errorf("%v", got)
	}
}

func TestClean(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"a\x1b[31mb\x00c":         "a\uFFFD[31mb\uFFFDc",
		" a \r\n\t b\u2028c ":     "a b c",
		"\u202Eabc":               "\uFFFDabc",
		"\xff\xfea":               "\uFFFDa",
		"größer":                  "größer",
		strings.Repeat("x", 1000): strings.Repeat("x", 1000),
		strings.Repeat("x", 1001): strings.Repeat("x", 997) + "…",
	} {
		if got := Clean(text); got != want {
			t.Errorf("%.40q: got %.60q, want %.60q", text, got, want)
		}
	}
	for _, text := range []string{strings.Repeat("\x00", 1000), strings.Repeat("\xff", 5000), strings.Repeat("é", 600), "x" + strings.Repeat("é", 600)} {
		if got := Clean(text); len(got) > MaxMessage || !utf8.ValidString(got) {
			t.Errorf("%.10q…: %d bytes", text, len(got))
		}
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	good := `{"pod":{"id":"a"},"at":"2026-01-02T12:00:00Z","reason":"Refused","message":"m"}`
	for name, tc := range map[string]struct {
		text string
		want int
	}{
		"torn":          {good + "\n" + good[:40], 1},
		"no end":        {good, 0},
		"rubbish":       {"\x00\n{}\n[]\nnull\n" + good + "\n", 1},
		"new reason":    {strings.Replace(good, "Refused", "Tomorrow", 1) + "\n", 1},
		"new field":     {strings.Replace(good, "{", `{"x":1,`, 1) + "\n", 1},
		"bad reason":    {strings.Replace(good, "Refused", "Re fused", 1) + "\n", 0},
		"bad name":      {strings.Replace(good, `"a"`, `"a/../b"`, 1) + "\n", 0},
		"bad time":      {strings.Replace(good, "2026", "x", 1) + "\n", 0},
		"long line":     {strings.Replace(good, `"m"`, `"`+strings.Repeat("m", maxLine)+`"`, 1) + "\n" + good + "\n", 1},
		"many":          {strings.Repeat(good+"\n", 100), MaxAll},
		"nothing":       {"", 0},
		"blank":         {"\n\n", 0},
		"only controls": {strings.Replace(good, `"m"`, `" \n"`, 1) + "\n", 0},
	} {
		if got := Parse([]byte(tc.text)); len(got) != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if got := Parse([]byte(strings.Replace(good, `"m"`, `"a\u001b[2Jb"`, 1) + "\n")); len(got) != 1 || got[0].Message != "a\uFFFD[2Jb" {
		t.Errorf("%v", got)
	}
}

// TestScanStrange: what lies in the place of a file holds nobody up.
func TestScanStrange(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	add(t, New(pod(t, state, "good"), clock), Unsealed, "m")
	if err := unix.Mkfifo(filepath.Join(pod(t, state, "fifo"), FileName), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(pod(t, state, "link"), FileName)); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(pod(t, state, "dir"), FileName), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := Scan(state)
	if len(all) != 1 || err == nil {
		t.Fatalf("%v, %v", all, err)
	}
	for _, name := range []string{"fifo", "link", "dir"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("nothing of %s in: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"pod":{"id":"a","namespace":"n","name":"p","uid":"u"},"at":"2026-01-02T12:00:00Z","reason":"Refused","message":"m"}` + "\n"))
	f.Add([]byte("{\"message\":\"\xff\"}\n{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		all := Parse(data)
		if len(all) > MaxAll {
			t.Fatalf("%d notices", len(all))
		}
		for _, n := range all {
			if len(n.Message) > MaxMessage || !utf8.ValidString(n.Message) || strings.ContainsFunc(n.Message, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Fatalf("%q", n.Message)
			}
			if err := n.check(); err != nil {
				t.Fatal(err)
			}
			line, err := encode(n)
			if err != nil {
				t.Fatal(err)
			}
			again := Parse(line)
			if len(again) != 1 || again[0].Key() != n.Key() {
				t.Fatalf("%v became %v", n, again)
			}
		}
	})
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1b[0m\u202e\xff")
	f.Fuzz(func(t *testing.T, text string) {
		got := Clean(text)
		if len(got) > MaxMessage || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("%q", got)
		}
		if Clean(got) != got {
			t.Fatalf("%q is not clean", got)
		}
	})
}
