package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/host/notice"
)

// put writes files below a directory.
func put(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStateDirs: the usual place, and each that a configuration names.
func TestStateDirs(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if got := stateDirs(root, ""); !slices.Equal(got, []string{root + "/run/coffer"}) {
		t.Errorf("without an installation: %q", got)
	}
	put(t, root, map[string]string{
		"opt/coffer/etc/a.toml": "state_dir = \"/var/a\"\n", "opt/coffer/etc/b.toml": "state_dir = \"/run/coffer\"\n", "opt/coffer/etc/c.toml": "colour = 1\n",
		"etc/coffer/runtime.toml": "state_dir = \"/var/r\"\n", "other/etc/a.toml": "state_dir = \"/var/o\"\n",
	})
	if got := stateDirs(root, ""); !slices.Equal(got, []string{root + "/run/coffer", root + "/var/a", root + "/var/r"}) {
		t.Errorf("%q", got)
	}
	if got := stateDirs(root, "/other"); !slices.Contains(got, root+"/var/o") {
		t.Errorf("of another prefix: %q", got)
	}
}

// TestDoctorPods prints what a shim has written.
func TestDoctorPods(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, dir, map[string]string{"etc/x.toml": fmt.Sprintf("state_dir = %q\n", filepath.Join(dir, "state")), "state/k8s.io/box-1/state.json": "{}", "state/x/box-2/state.json": "{}"})
	for id, pod := range map[string]notice.Pod{
		"k8s.io/box-1": {ID: "box-1", Namespace: "shop", Name: "web-0", UID: "u"}, "x/box-2": {ID: "box-2"},
	} {
		if _, err := notice.New(filepath.Join(dir, "state", id), time.Now).Add(pod, notice.Unsealed, "no policy\x1b[31m"); err != nil {
			t.Fatal(err)
		}
	}
	doctor := func(args ...string) string {
		t.Helper()
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		if code := Main(t.Context(), Env{Args: append([]string{"doctor", "--pods", "--prefix", dir}, args...), Stdin: os.Stdin, Stdout: out, Stderr: out}); code != 0 {
			t.Fatalf("exit code %d", code)
		}
		text, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	// One that has ended, whose events nobody has posted.
	over := filepath.Join(dir, "state", "k8s.io", "box-3")
	put(t, over, map[string]string{"state.json": "{}"})
	if _, err := notice.New(over, time.Now).Add(notice.Pod{ID: "box-3", Namespace: "shop", Name: "job", UID: "v"}, notice.Refused, "no exec"); err != nil {
		t.Fatal(err)
	}
	if err := notice.Keep(over, time.Now()); err != nil {
		t.Fatal(err)
	}
	text := doctor()
	for _, want := range []string{"POD ", "shop/web-0 ", "shop/job (ended) ", "no exec", "\nbox-2 ", "Unsealed", "no policy\uFFFD[31m"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	type entry struct {
		notice.Notice
		Ended time.Time
	}
	var all []entry
	if err := json.NewDecoder(bytes.NewReader([]byte(doctor("--output", "json")))).Decode(&all); err != nil || len(all) < 3 || slices.ContainsFunc(all, func(n entry) bool {
		return (n.Pod.Name == "job") == n.Ended.IsZero()
	}) {
		t.Errorf("%v, %v", all, err)
	}
}
