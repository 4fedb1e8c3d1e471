package k8s

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/coffer-project/coffer/test/k8s/node"
)

const appImage = node.AppImage

const ioFixture = `
kind: Pod
metadata: {name: io}
spec:
  containers:
  - {name: a}
  - {name: cat, command: [sh, -c, "while read l; do echo got $l; done; echo end; sleep 600"], stdin: true}
  - {name: tty, command: [/app, terminal], stdin: true, tty: true}
`

func ioRows() []row {
	return []row{
		{id: "k8s-exec", core: true, on: onAll, asserts: "exec: output, errors, exit code, standard input to its end, binary data", run: execs},
		{id: "k8s-exec/terminal", core: true, on: onAll, asserts: "exec with a terminal that changes its size", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "io")
			resized(t, s, func(ctx context.Context, io streams) error {
				_, err := s.execute(ctx, "io", "a", io, "/app", "terminal")
				return err
			})
		}},
		{id: "k8s-exec/many", on: onAll, asserts: "twenty commands at once", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "io")
			failed := make(chan error, 20)
			for i := range 20 {
				go func() {
					var out locked
					code, err := s.execute(t.Context(), "io", "a", streams{out: &out, err: &out}, "sh", "-c", fmt.Sprintf("echo number %d; exit %d", i, i))
					if err == nil && (code != i || out.String() != fmt.Sprintf("number %d\n", i)) {
						err = fmt.Errorf("command %d: exit code %d, %q", i, code, out.String())
					}
					failed <- err
				}()
			}
			for range 20 {
				if err := <-failed; err != nil {
					t.Error(err)
				}
			}
		}},
		{id: "k8s-attach-handlers", core: true, on: onAll, asserts: "attach: input reaches the container, output comes back", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "io")
			ctx, cancel := context.WithTimeout(t.Context(), s.h.patience())
			defer cancel()
			in, write := io.Pipe()
			var out locked
			done := make(chan error, 1)
			go func() {
				done <- s.stream(ctx, "io", "attach", &corev1.PodAttachOptions{Container: "cat", Stdin: true, Stdout: true, Stderr: true}, streams{in: in, out: &out, err: &out})
			}()
			if _, err := write.Write([]byte("one\ntwo\n")); err != nil {
				t.Fatal(err)
			}
			s.eventually(t, "the answer", func() error { return out.has("got one\ngot two\n") })
			_ = write.Close()
			cancel()
			<-done
			s.printed(t, "io", "cat", "got two")
		}},
		{id: "k8s-attach-handlers/terminal", on: onAll, asserts: "attach to a terminal, and its size", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "io")
			resized(t, s, func(ctx context.Context, io streams) error {
				return s.stream(ctx, "io", "attach", &corev1.PodAttachOptions{Container: "tty", Stdin: true, Stdout: true, TTY: true}, io)
			})
		}},
		{id: "logs", core: true, on: onAll, asserts: "logs have every byte, of both streams, and of the container before", run: logging},
		{id: "k8s-port-forward", core: true, on: onAll, asserts: "port-forward reaches a server of the pod", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "io")
			address := s.forward(t, "io", 8080)
			// Not tried again: the forwarding ends when one connection fails.
			for range 3 {
				if out, err := ask(t.Context(), "http://"+address+"/"); err != nil || !strings.HasPrefix(out, "io from ") {
					t.Fatalf("an answer through port-forward: %q, %v", out, err)
				}
			}
		}},
	}
}

// resized has a terminal of two sizes.
func resized(t *testing.T, s *space, run func(context.Context, streams) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.h.patience())
	defer cancel()
	sizes := make(sizeQueue, 2)
	in, write := io.Pipe()
	var out locked
	done := make(chan error, 1)
	sizes <- remotecommand.TerminalSize{Width: 100, Height: 40}
	go func() { done <- run(ctx, streams{in: in, out: &out, tty: true, sizes: sizes}) }()
	s.eventually(t, "the first size", func() error { return out.has("size 100x40") })
	sizes <- remotecommand.TerminalSize{Width: 77, Height: 33}
	s.eventually(t, "the second size", func() error { return out.has("size 77x33") })
	close(sizes)
	_ = write.Close()
	cancel()
	<-done
}

type sizeQueue chan remotecommand.TerminalSize

func (q sizeQueue) Next() *remotecommand.TerminalSize {
	size, ok := <-q
	if !ok {
		return nil
	}
	return &size
}

func execs(t *testing.T, c *cluster) {
	s := c.shared(t, "io")
	var out, problems bytes.Buffer
	code, err := s.execute(t.Context(), "io", "a", streams{out: &out, err: &problems}, "sh", "-c", "echo to-out; echo to-err >&2; exit 42")
	if err != nil || code != 42 || out.String() != "to-out\n" || problems.String() != "to-err\n" {
		t.Errorf("exit code %d, %v, %q, %q", code, err, out.String(), problems.String())
	}
	// Bytes of every value, more than any buffer on the way.
	data := make([]byte, 3<<20)
	for i := range data {
		data[i] = byte(i * 7 / 3)
	}
	out.Reset()
	code, err = s.execute(t.Context(), "io", "a", streams{in: bytes.NewReader(data), out: &out}, "cat")
	if err != nil || code != 0 || !bytes.Equal(out.Bytes(), data) {
		t.Errorf("cat: exit code %d, %v, %d bytes of %d came back", code, err, out.Len(), len(data))
	}
	if got := s.sh(t, "io", "a", "echo $FROM_IMAGE; pwd"); got != "yes\n/" {
		t.Errorf("environment and directory: %q", got)
	}
	if text, code, err := s.attempt(t, "io", "a", "/no/such"); err == nil && code == 0 {
		t.Errorf("a program that is not there: %q", text)
	}
}

// follow reads a container's log to its end.
func (s *space) follow(t *testing.T, pod, container string) <-chan string {
	t.Helper()
	r, err := s.n.Client().CoreV1().Pods(s.ns).GetLogs(pod, &corev1.PodLogOptions{Container: container, Follow: true}).Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan string, 1)
	go func() {
		defer func() { _ = r.Close() }()
		b, err := io.ReadAll(r)
		if err != nil {
			b = append(b, err.Error()...)
		}
		done <- string(b)
	}()
	return done
}

func copyFiles(t *testing.T, c *cluster) {
	s := c.shared(t, "io")
	dir := t.TempDir()
	data := bytes.Repeat([]byte("copied\n"), 100000)
	if err := os.MkdirAll(filepath.Join(dir, "tree/sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tree/a", "tree/sub/b"} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.kubectl(t, "cp", filepath.Join(dir, "tree"), s.ns+"/io:/tmp/tree", "-c", "a")
	s.want(t, "io", "a", "cat /tmp/tree/a /tmp/tree/sub/b | wc -c", fmt.Sprint(2*len(data)))
	s.kubectl(t, "cp", s.ns+"/io:/tmp/tree", filepath.Join(dir, "back"), "-c", "a")
	for _, name := range []string{"back/a", "back/sub/b"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// kubectl runs the real one, as a user outside does.
func (s *space) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.tryKubectl(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *space) tryKubectl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.h.patience())
	defer cancel()
	return s.kubectlUntil(ctx, args...)
}

// kubectlUntil ends the command with ctx, and returns what it had printed.
func (s *space) kubectlUntil(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(the.programs, "bin", "kubectl"), append([]string{"--kubeconfig", s.n.Kubeconfig(), "--namespace", s.ns}, args...)...)
	cmd.WaitDelay = 5 * time.Second
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, problems.String())
	}
	return out.String(), nil
}

// podStats looks for a container in the kubelet's summary, and for what its pod
// uses, which the kubelet reads in the pod's cgroup.
func podStats(summary []byte, namespace, pod, container string) error {
	var s struct {
		Pods []struct {
			PodRef     struct{ Name, Namespace string }
			CPU        struct{ UsageCoreNanoSeconds uint64 }
			Memory     struct{ WorkingSetBytes uint64 }
			Containers []struct {
				Name   string
				CPU    struct{ UsageCoreNanoSeconds uint64 }
				Memory struct{ WorkingSetBytes uint64 }
			}
		}
	}
	if err := json.Unmarshal(summary, &s); err != nil {
		return err
	}
	for _, p := range s.Pods {
		if p.PodRef.Name != pod || p.PodRef.Namespace != namespace {
			continue
		}
		if p.CPU.UsageCoreNanoSeconds == 0 || p.Memory.WorkingSetBytes == 0 {
			return fmt.Errorf("the pod uses %+v, %+v", p.CPU, p.Memory)
		}
		for _, c := range p.Containers {
			if c.Name == container && c.CPU.UsageCoreNanoSeconds > 0 && c.Memory.WorkingSetBytes > 0 {
				return nil
			}
		}
		return fmt.Errorf("the pod has %+v", p.Containers)
	}
	return errors.New("the pod is not in the summary")
}
