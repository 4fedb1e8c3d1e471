package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const hello = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2"}, "capabilities": ["oob"]}}` + "\r\n"

// emulator answers on its end of a pipe: each command line is given to
// answer, whose lines are sent back with %d replaced by the command's id.
func emulator(t *testing.T, answer func(command string) string) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { _ = theirs.Close() })
	go func() {
		defer func() { _ = theirs.Close() }()
		if _, err := fmt.Fprint(theirs, hello); err != nil {
			return
		}
		in := bufio.NewScanner(theirs)
		for in.Scan() {
			var c struct {
				Execute string
				ID      uint64
			}
			if err := json.Unmarshal(in.Bytes(), &c); err != nil {
				return
			}
			out := `{"return": {}, "id": %d}` + "\r\n"
			if c.Execute != "qmp_capabilities" {
				out = answer(c.Execute)
			}
			if out == "HANG UP" {
				return
			}
			if _, err := fmt.Fprint(theirs, strings.ReplaceAll(out, "%d", fmt.Sprint(c.ID))); err != nil {
				return
			}
		}
	}()
	return ours
}

func TestExecute(t *testing.T) {
	t.Parallel()
	var events []string
	c, err := New(t.Context(), emulator(t, func(command string) string {
		switch command {
		case "query-status":
			return `{"event": "STOP", "timestamp": {"seconds": 5, "microseconds": 7}}` + "\r\n" +
				`{"return": {}, "id": 4711}` + "\r\n" +
				`{"return": {"status": "running", "new-member": 1}, "id": %d}` + "\r\n"
		default:
			return `{"error": {"class": "CommandNotFound", "desc": "no such thing"}, "id": %d}` + "\r\n"
		}
	}), func(e Event) { events = append(events, fmt.Sprintf("%s@%d", e.Name, e.At.UnixMicro())) })
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Version().String(), "7.2.22 (Debian 1:7.2)"; got != want {
		t.Errorf("version %q, want %q", got, want)
	}
	var status struct{ Status string }
	if err := c.Execute(t.Context(), "query-status", nil, &status); err != nil || status.Status != "running" {
		t.Errorf("query-status: %+v, %v", status, err)
	}
	err = c.Execute(t.Context(), "frobnicate", map[string]int{"n": 1}, nil)
	if e, ok := errors.AsType[*Error](err); !ok || e.Class != "CommandNotFound" || e.Command != "frobnicate" {
		t.Errorf("frobnicate: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if d := cmp.Diff([]string{"STOP@5000007"}, events); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
	if err := c.Execute(t.Context(), "query-status", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestConnectionEnds(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, answer, want string }{
		{"hang up", "HANG UP", "connection closed"},
		{"not JSON", "hello\n", "not as the protocol defines"},
		{"ambiguous", `{"return": {}, "event": "STOP", "id": %d}` + "\n", "not exactly one of"},
		{"too long", strings.Repeat("x", maxMessage+8192), "exceeds 1048576 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, err := New(t.Context(), emulator(t, func(string) string { return tc.answer }), nil)
			if err != nil {
				t.Fatal(err)
			}
			err = c.Execute(t.Context(), "query-status", nil, nil)
			if !errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			<-c.Done()
		})
	}
}

func TestContextEndsTheWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		ctx, cancel := context.WithTimeoutCause(t.Context(), 5e9, errors.New("took too long"))
		defer cancel()
		if _, err := New(ctx, ours, nil); err == nil || !strings.Contains(err.Error(), "took too long") {
			t.Errorf("New without a greeting: %v", err)
		}
		_ = theirs.Close()
	})
	c, err := New(t.Context(), emulator(t, func(string) string { return "" }), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Execute(ctx, "query-status", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Execute: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzParseMessage(f *testing.F) {
	f.Add([]byte(hello))
	f.Add([]byte(`{"return": {"status": "running"}, "id": 3}`))
	f.Add([]byte(`{"error": {"class": "GenericError", "desc": "x"}, "id": 3}`))
	f.Add([]byte(`{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}, "timestamp": {"seconds": -1, "microseconds": -1}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parseMessage(line)
		if (m == nil) == (err == nil) {
			t.Fatalf("message %v, error %v", m, err)
		}
		if m != nil {
			_ = m.Timestamp.time()
		}
	})
}

// TestExecuteFile: the emulator gets the descriptor with the command, and only
// a unix socket can carry one.
func TestExecuteFile(t *testing.T) {
	t.Parallel()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		conn, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = conn.(*net.UnixConn)
	}
	defer ends[1].Close()
	passed := make(chan string, 1)
	go func() {
		defer close(passed)
		_, _ = fmt.Fprint(ends[1], hello)
		line, rights := make([]byte, 4096), make([]byte, 64)
		for _, id := range []int{1, 2} {
			n, m, _, _, err := ends[1].ReadMsgUnix(line, rights)
			if err != nil {
				return
			}
			if id == 2 {
				got := "no descriptor"
				if messages, err := unix.ParseSocketControlMessage(rights[:m]); err == nil && len(messages) == 1 {
					if list, err := unix.ParseUnixRights(&messages[0]); err == nil && len(list) == 1 {
						f := os.NewFile(uintptr(list[0]), "passed")
						content, _ := io.ReadAll(f)
						_ = f.Close()
						got = string(content)
					}
				}
				passed <- got + " " + string(line[:n])
			}
			_, _ = fmt.Fprintf(ends[1], `{"return": {"fd": 7}, "id": %d}`+"\r\n", id)
		}
	}()
	c, err := New(t.Context(), ends[0], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("the content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var result struct{ FD int }
	if err := c.ExecuteFile(t.Context(), "add-fd", nil, f, &result); err != nil || result.FD != 7 {
		t.Errorf("%+v, %v", result, err)
	}
	if got, want := <-passed, `the content {"execute":"add-fd","id":2}`+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	piped, err := New(t.Context(), emulator(t, func(string) string { return "HANG UP" }), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer piped.Close()
	if err := piped.ExecuteFile(t.Context(), "add-fd", nil, f, nil); err == nil || !strings.Contains(err.Error(), "needs a unix socket") {
		t.Errorf("a pipe: %v", err)
	}
}
