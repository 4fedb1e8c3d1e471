package notice

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// end ends a pod with some notices.
func end(t *testing.T, state, id string, who Pod, at time.Time, messages ...string) {
	t.Helper()
	dir := pod(t, state, id)
	f := New(dir, clock)
	for _, m := range messages {
		if _, err := f.Add(who, Refused, m); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Keep(dir, at); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
}

func ended(t *testing.T, state string, now time.Time) []Ended {
	t.Helper()
	all, err := Kept(state, now)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func files(t *testing.T, state string) int {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(state, KeptName, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(found)
}

func TestKeep(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	if got := ended(t, filepath.Join(state, "none"), noon); got != nil {
		t.Errorf("of no directory: %v", got)
	}
	end(t, state, "box-1", someone, noon.Add(time.Hour), "a", "b")
	// Those without an event in Kubernetes, or without any.
	end(t, state, "box-2", Pod{ID: "box-2"}, noon, "a")
	end(t, state, "box-3", someone, noon)
	// Another sandbox of the same pod has the same to say, later.
	again := someone
	again.ID = "box-4"
	end(t, state, "box-4", again, noon.Add(2*time.Hour), "a", "b")
	end(t, state, "box-5", again, noon, "c")
	got := ended(t, state, noon.Add(3*time.Hour))
	if len(got) != 2 || !got[0].At.Equal(noon) || !got[1].At.Equal(noon.Add(2*time.Hour)) ||
		fmt.Sprint(got[1].Notices) != fmt.Sprint([]Notice{{again, noon, Refused, "a"}, {again, noon, Refused, "b"}}) {
		t.Fatalf("got %+v", got)
	}
	if len(scan(t, state)) != 0 {
		t.Error("they are among those of pods that run")
	}
	for path, mode := range map[string]os.FileMode{KeptName: os.ModeDir | 0o700, KeptName + "/" + got[0].File: 0o600} {
		if info, err := os.Stat(filepath.Join(state, path)); err != nil || info.Mode() != mode {
			t.Errorf("%s: want %v, got %v, %v", path, mode, info, err)
		}
	}
	for range 2 {
		if err := Drop(state, got[0].File); err != nil {
			t.Error(err)
		}
	}
	if left := ended(t, state, noon); len(left) != 1 || files(t, state) != 1 {
		t.Errorf("after one was dropped: %v", left)
	}
	for _, name := range []string{"../" + got[1].File, "..", ".posted", ""} {
		if err := Drop(state, name); err == nil {
			t.Errorf("%q was dropped", name)
		}
	}
}

// TestKeepBounds: of what nobody takes, the oldest go.
func TestKeepBounds(t *testing.T) {
	t.Parallel()
	t.Run("number", func(t *testing.T) {
		t.Parallel()
		state := t.TempDir()
		for i := range MaxKept + 20 {
			end(t, state, "box-1", someone, noon.Add(time.Duration(i)*time.Second), fmt.Sprint(i))
		}
		got := ended(t, state, noon.Add(time.Hour))
		if len(got) != MaxKept || files(t, state) != MaxKept || got[0].Notices[0].Message != "20" {
			t.Errorf("%d, %d files", len(got), files(t, state))
		}
	})
	t.Run("bytes", func(t *testing.T) {
		t.Parallel()
		state := t.TempDir()
		kept := filepath.Join(state, KeptName)
		if err := os.Mkdir(kept, 0o700); err != nil {
			t.Fatal(err)
		}
		const each = 32
		for i := range each + 2 {
			file := filepath.Join(kept, fmt.Sprint(i, keptSuffix))
			if err := os.WriteFile(file, []byte(strings.Repeat("\n", MaxKeptBytes/each)), 0o600); err != nil {
				t.Fatal(err)
			}
			at := noon.Add(time.Duration(i) * time.Second)
			if err := os.Chtimes(file, at, at); err != nil {
				t.Fatal(err)
			}
		}
		end(t, state, "box-1", someone, noon.Add(time.Minute), "new")
		got := ended(t, state, noon.Add(time.Minute))
		if len(got) != each || got[each-1].Notices[0].Message != "new" {
			t.Errorf("%d of them", len(got))
		}
	})
	t.Run("age", func(t *testing.T) {
		t.Parallel()
		state := t.TempDir()
		end(t, state, "box-1", someone, noon, "old")
		end(t, state, "box-1", someone, noon.Add(time.Hour), "new")
		now := noon.Add(MaxKeptAge + time.Second)
		if got := ended(t, state, now); len(got) != 1 || got[0].Notices[0].Message != "new" {
			t.Errorf("%v", got)
		}
		if err := Prune(state, now); err != nil || files(t, state) != 1 {
			t.Errorf("%d files, %v", files(t, state), err)
		}
	})
}

// TestKeepFails: what cannot be kept is where it was.
func TestKeepFails(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	dir := pod(t, state, "box-1")
	if _, err := New(dir, clock).Add(someone, Refused, "a"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, KeptName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Keep(dir, noon); err == nil || len(scan(t, state)) != 1 {
		t.Errorf("%v, %v", err, scan(t, state))
	}
}

// TestCloseWrites what a full disk had kept out.
func TestCloseWrites(t *testing.T) {
	t.Parallel()
	state := t.TempDir()
	dir := pod(t, state, "box-1")
	if err := os.Mkdir(filepath.Join(dir, "."+FileName), 0o700); err != nil {
		t.Fatal(err)
	}
	f := New(dir, clock)
	if _, err := f.Add(someone, Refused, "a"); err == nil {
		t.Fatal("it was written")
	}
	if err := os.Remove(filepath.Join(dir, "."+FileName)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.Close(); err != nil || len(scan(t, state)) != 1 {
			t.Errorf("%v, %v", err, scan(t, state))
		}
	}
}
