package k8s

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	exec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func criStreamRows() []criRow {
	return []criRow{
		{id: "exec", on: onAll, asserts: "Exec at the streaming URL: input to its end, both streams, the exit code, and a terminal that changes its size", run: streamedExec},
		{id: "attach", on: onAll, asserts: "Attach at the streaming URL: input reaches the container, output comes back", run: attached},
		{id: "port-forward", on: onAll, asserts: "PortForward at the streaming URL reaches a server of the sandbox", run: forwardedPort},
	}
}

// reach makes a streaming URL of the daemon one of this machine, until the test ends.
func (c *criClient) reach(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	outer, closes, err := c.n.Forward(u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(closes)
	u.Host = outer
	return u
}

// streamed joins the streams with those at a URL.
func streamed(ctx context.Context, at *url.URL, s streams) (int, error) {
	e, err := remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, at)
	if err != nil {
		return 0, err
	}
	err = e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: s.in, Stdout: s.out, Stderr: s.err, Tty: s.tty, TerminalSizeQueue: s.sizes})
	if exit := (exec.CodeExitError{}); errors.As(err, &exit) {
		return exit.Code, nil
	}
	return 0, err
}

func streamedExec(t *testing.T, c *criClient) {
	id := c.common(t).start(t, "streams", nil, "sleep", "1000")
	ctx := c.call(t)
	r, err := c.runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "cat; echo to err >&2; exit 42"}, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	var out, problems locked
	input := strings.Repeat("a line of input\n", 1<<14)
	code, err := streamed(ctx, c.reach(t, r.GetUrl()), streams{in: strings.NewReader(input), out: &out, err: &problems})
	if err != nil || code != 42 || out.String() != input || problems.String() != "to err\n" {
		t.Errorf("exit code %d, %v; %d bytes of %d came back; %q", code, err, len(out.String()), len(input), problems.String())
	}
	if r, err = c.runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"/app", "terminal"}, Tty: true, Stdin: true, Stdout: true}); err != nil {
		t.Fatal(err)
	}
	at := c.reach(t, r.GetUrl())
	ends, cancel := context.WithCancel(ctx)
	defer cancel()
	sizes := make(sizeQueue, 2)
	in, write := io.Pipe()
	var screen locked
	done := make(chan error, 1)
	go func() {
		_, err := streamed(ends, at, streams{in: in, out: &screen, tty: true, sizes: sizes})
		done <- err
	}()
	for _, size := range []struct {
		want string
		to   remotecommand.TerminalSize
	}{{"size 100x40", remotecommand.TerminalSize{Width: 100, Height: 40}}, {"size 77x33", remotecommand.TerminalSize{Width: 77, Height: 33}}} {
		sizes <- size.to
		c.eventually(t, size.want, func(context.Context) error { return screen.has(size.want) })
	}
	close(sizes)
	_ = write.Close()
	cancel()
	<-done
}

func attached(t *testing.T, c *criClient) {
	p := c.common(t)
	id := p.start(t, "attached", func(q *runtimeapi.ContainerConfig) { q.Stdin, q.StdinOnce = true, true }, "sh", "-c", "while read l; do echo got $l; done; echo end >&2; exit 3")
	r, err := c.runtime.Attach(c.call(t), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	var out, problems locked
	in, write := io.Pipe()
	at, ctx := c.reach(t, r.GetUrl()), c.call(t)
	done := make(chan error, 1)
	go func() {
		_, err := streamed(ctx, at, streams{in: in, out: &out, err: &problems})
		done <- err
	}()
	if _, err := write.Write([]byte("one\ntwo\n")); err != nil {
		t.Fatal(err)
	}
	c.eventually(t, "the answer", func(context.Context) error { return out.has("got one\ngot two\n") })
	// The end of the input of one that attaches once is the container's.
	_ = write.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	c.exited(t, id, 3)
	if problems.String() != "end\n" {
		t.Errorf("errors %q", problems.String())
	}
	if got := p.log(t, "attached"); got != "got one\ngot two\nend\n" {
		t.Errorf("the log has %q", got)
	}
}

func forwardedPort(t *testing.T, c *criClient) {
	p := c.common(t)
	id := p.start(t, "server", nil, "/app", "serve", "http=:8080")
	c.eventually(t, "the server", func(ctx context.Context) error {
		r, err := c.exec(ctx, id, 30, "/app", "get", "http://127.0.0.1:8080/")
		if err == nil && r.GetExitCode() != 0 {
			err = errors.New(string(r.GetStderr()))
		}
		return err
	})
	r, err := c.runtime.PortForward(c.call(t), &runtimeapi.PortForwardRequest{PodSandboxId: p.id, Port: []int32{8080}})
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, c.reach(t, r.GetUrl()))
	stop, started := make(chan struct{}), make(chan struct{})
	var log locked
	f, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:8080"}, stop, started, &log, &log)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	defer func() {
		close(stop)
		<-done
	}()
	select {
	case <-started:
	case err := <-done:
		done <- err
		t.Fatalf("%v: %s", err, log.String())
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	address := "http://" + net.JoinHostPort("127.0.0.1", itoa(ports[0].Local)) + "/"
	for range 3 {
		if out, err := ask(t.Context(), address); err != nil || !strings.HasPrefix(out, "shared from ") {
			t.Fatalf("an answer through port-forward: %q, %v: %s", out, err, log.String())
		}
	}
}
