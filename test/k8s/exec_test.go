package k8s

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	exec "k8s.io/client-go/util/exec"
)

// streams are those of a command in a container; nil ones are not asked for.
type streams struct {
	in       io.Reader
	out, err io.Writer
	tty      bool
	sizes    remotecommand.TerminalSizeQueue
}

func (s *space) stream(ctx context.Context, pod, sub string, options any, io streams) error {
	request := s.n.Client().CoreV1().RESTClient().Post().Resource("pods").Name(pod).Namespace(s.ns).SubResource(sub)
	switch o := options.(type) {
	case *corev1.PodExecOptions:
		request.VersionedParams(o, scheme.ParameterCodec)
	case *corev1.PodAttachOptions:
		request.VersionedParams(o, scheme.ParameterCodec)
	}
	e, err := remotecommand.NewSPDYExecutor(s.n.Config(), http.MethodPost, request.URL())
	if err != nil {
		return err
	}
	stderr := io.err
	if io.tty {
		stderr = nil
	}
	return e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: io.in, Stdout: io.out, Stderr: stderr, Tty: io.tty, TerminalSizeQueue: io.sizes})
}

// execute runs a command in a container and returns its exit code.
func (s *space) execute(ctx context.Context, pod, container string, io streams, command ...string) (int, error) {
	err := s.stream(ctx, pod, "exec", &corev1.PodExecOptions{
		Container: container, Command: command, Stdin: io.in != nil, Stdout: io.out != nil, Stderr: io.err != nil && !io.tty, TTY: io.tty,
	}, io)
	if exit := (exec.CodeExitError{}); errors.As(err, &exit) {
		return exit.Code, nil
	}
	return 0, err
}

// attempt runs a command in a container and returns what it printed, on both
// streams, and its exit code.
func (s *space) attempt(t *testing.T, pod, container string, command ...string) (string, int, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.h.patience())
	defer cancel()
	var out locked
	code, err := s.execute(ctx, pod, container, streams{out: &out, err: &out}, command...)
	return out.String(), code, err
}

// exec runs a command that must succeed, and returns what it printed, trimmed.
func (s *space) exec(t *testing.T, pod, container string, command ...string) string {
	t.Helper()
	out, code, err := s.attempt(t, pod, container, command...)
	if err != nil || code != 0 {
		t.Fatalf("%q in %s/%s: exit code %d, %v: %s", command, pod, container, code, err, out)
	}
	return strings.TrimSpace(out)
}

// sh runs a shell's command that must succeed.
func (s *space) sh(t *testing.T, pod, container, script string) string {
	t.Helper()
	return s.exec(t, pod, container, "sh", "-c", script)
}

// want compares what a command prints.
func (s *space) want(t *testing.T, pod, container, script, expected string) {
	t.Helper()
	if got := s.sh(t, pod, container, script); got != expected {
		t.Errorf("%s in %s/%s: %q, expected %q", script, pod, container, got, expected)
	}
}

// comes waits until a command prints what is expected.
func (s *space) comes(t *testing.T, pod, container, script, expected string) {
	t.Helper()
	s.eventually(t, fmt.Sprintf("%q from %s in %s/%s", expected, script, pod, container), func() error {
		got, code, err := s.attempt(t, pod, container, "sh", "-c", script)
		if strings.TrimSpace(got) != expected {
			return errors.Join(err, fmt.Errorf("exit code %d: %q", code, got))
		}
		return nil
	})
}

// locked is a buffer for two writers, whose readers may wait for a text.
type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *locked) has(text string) error {
	if got := l.String(); !strings.Contains(got, text) {
		return fmt.Errorf("it printed %q", clip(got))
	}
	return nil
}

// forward forwards a port of this machine's loopback to one of a pod until the
// test ends, and returns the address.
func (s *space) forward(t *testing.T, pod string, port int) string {
	t.Helper()
	transport, upgrader, err := spdy.RoundTripperFor(s.n.Config())
	if err != nil {
		t.Fatal(err)
	}
	url := s.n.Client().CoreV1().RESTClient().Post().Resource("pods").Name(pod).Namespace(s.ns).SubResource("portforward").URL()
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	stop, started := make(chan struct{}), make(chan struct{})
	var log locked
	f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, stop, started, io.Discard, &log)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	t.Cleanup(func() {
		close(stop)
		<-done
		if t.Failed() {
			t.Logf("port-forward: %s", log.String())
		}
	})
	select {
	case <-started:
	case err := <-done:
		done <- err
		t.Fatalf("port-forward: %v: %s", err, log.String())
	case <-time.After(s.h.patience()):
		t.Fatalf("port-forward does not start: %s", log.String())
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(ports[0].Local))
}

// ask sends a GET request from this machine.
func ask(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Do(q)
	if err != nil {
		return "", err
	}
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = errors.New(r.Status)
	}
	return string(b), err
}
