package k8s

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// floodSize is more than all buffers between a container and its log hold.
const floodSize = 4 << 20

func logging(t *testing.T, c *cluster) {
	c.apply(t, fmt.Sprintf(`
kind: Pod
metadata: {name: talks}
spec:
  restartPolicy: Never
  containers:
  - {name: flood, command: [/app, flood, "%d"]}
  - {name: both, command: [sh, -c, "echo one; echo two >&2; echo -n three"]}
`, floodSize))
	c.succeeded(t, "talks")
	c.logged(t, "talks", "flood", func(out string) string { return floodMissing(out, floodSize) })
	c.logged(t, "talks", "both", func(out string) string {
		if len(out) != len("one\ntwo\nthree") || !containsAll(out, []string{"one\n", "two\n", "three"}) {
			return fmt.Sprintf("it printed %q", out)
		}
		return ""
	})
}

// logged reads the log of a container that has ended until nothing is wrong with
// it, for a short time: containerd tells of the end before its own writer has put
// the last 4 KiB into the file (pkg/cri/io, Pipe and redirectLogs). What is lost
// does not come later. With runc a daemon before 1.6.22 loses some now and then,
// see docs/tasks.md.
func (s *space) logged(t *testing.T, pod, container string, wrong func(string) string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	err := until(ctx, "the log of "+container, func() error {
		out, err := s.tryLogs(t, pod, container)
		if err != nil {
			return err
		}
		if what := wrong(out); what != "" {
			return errors.New(what)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
		s.explainLog(t, pod, container)
	}
}

// explainLog says, after a container's log was found wanting, what is in the file
// that containerd has written, what containerd says of the streams, and keeps file
// and programs' logs.
func (s *space) explainLog(t *testing.T, pod, container string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.n.Dir(), "log/var/pods", s.ns+"_"+pod+"_*", container, "*"))
	if err != nil || len(files) == 0 {
		t.Logf("there is no log file of %s/%s: %v", pod, container, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Log(err)
			continue
		}
		said := floodMissing(criContent(string(b)), floodSize)
		if container != "flood" {
			said = clip(string(b))
		} else if said == "" {
			said = "it is whole by now"
		}
		t.Logf("%s: %s", filepath.Base(f), said)
	}
	daemon := filepath.Join(s.n.Dir(), "log/containerd.log")
	if b, err := os.ReadFile(daemon); err == nil {
		for line := range strings.Lines(string(b)) {
			if containsAny(line, "Failed to pipe", "Fail to write", "container's output", "process's output") {
				t.Log(line)
			}
		}
	}
	s.keep(t, append(files, daemon, filepath.Join(s.n.Dir(), "log/kubelet.log"))...)
}

func containsAny(s string, words ...string) bool {
	for _, w := range words {
		if strings.Contains(s, w) {
			return true
		}
	}
	return false
}

// keep copies files of the node, which goes with the test, to the directory of the
// report, or to the test's artifacts.
func (s *space) keep(t *testing.T, files ...string) {
	t.Helper()
	dir := filepath.Join(the.report.dir, "kept", s.ns)
	if the.report.dir == "" {
		dir = t.ArtifactDir()
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Log(err)
		return
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(filepath.Dir(f))+"-"+filepath.Base(f)), b, 0o644)
		}
		if err != nil {
			t.Log(err)
		}
	}
	t.Logf("kept in %s", dir)
}

// criContent is what a container has printed on standard output, by the lines of a
// log file: TIME STREAM TAG TEXT, where tag P is a line that goes on.
func criContent(file string) string {
	var b strings.Builder
	for line := range strings.Lines(file) {
		parts := strings.SplitN(line, " ", 4)
		if len(parts) != 4 || parts[1] != "stdout" {
			continue
		}
		text := parts[3]
		if parts[2] == "P" {
			text = strings.TrimSuffix(text, "\n")
		}
		b.WriteString(text)
	}
	return b.String()
}

// floodMissing says which bytes of what "app flood" prints are not in out, or come
// where they do not belong; nothing if out is whole.
func floodMissing(out string, size int) string {
	const line = 16
	var found []string
	at := 0
	for rest := out; rest != ""; {
		offset, err := strconv.Atoi(strings.TrimSuffix(rest[:min(line, len(rest))], "\n"))
		if err != nil || len(rest) < line || rest[line-1] != '\n' {
			found = append(found, fmt.Sprintf("behind byte %d of %d comes %q", at, size, clip(rest[:min(64, len(rest))])))
			break
		}
		if offset != at {
			found = append(found, fmt.Sprintf("%d bytes are missing from %d on of %d", offset-at, at, size))
		}
		at = offset + line
		rest = rest[line:]
	}
	if at < size {
		found = append(found, fmt.Sprintf("it ends at byte %d, %d before its end", at, size-at))
	}
	return strings.Join(found, "; ")
}

// TestFloodMissing: a log that is not whole says where.
func TestFloodMissing(t *testing.T) {
	whole := ""
	for n := 0; n < 128; n += 16 {
		whole += fmt.Sprintf("%015d\n", n)
	}
	for out, want := range map[string]string{
		whole:                    "",
		whole[:96]:               "it ends at byte 96, 32 before its end",
		whole[:32] + whole[64:]:  "32 bytes are missing from 32 on of 128",
		whole[16:]:               "16 bytes are missing from 0 on of 128",
		whole[:112] + "what?":    `behind byte 112 of 128 comes "what?"; it ends at byte 112, 16 before its end`,
		whole[:64] + whole[48:]:  "-16 bytes are missing from 64 on of 128",
		whole[:120]:              `behind byte 112 of 128 comes "00000000"; it ends at byte 112, 16 before its end`,
		strings.Repeat("\n", 32): `behind byte 0 of 128 comes "\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n"; it ends at byte 0, 128 before its end`,
	} {
		if got := floodMissing(out, 128); got != want {
			t.Errorf("%q: expected %q, got %q", out, want, got)
		}
	}
	file := "2026-01-02T03:04:05.6Z stdout P 0000\n2026-01-02T03:04:05.6Z stderr F no\n2026-01-02T03:04:05.7Z stdout F 00000000016\n"
	if got := criContent(file); got != "000000000000016\n" {
		t.Errorf("got %q", got)
	}
}
