package stdio

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// program writes a script that takes output.
func program(t *testing.T, script string) (uri, dir string) {
	t.Helper()
	dir = t.TempDir()
	path := filepath.Join(dir, "logger")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return "binary://" + path + "?dir=" + dir, dir
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// A program gets both streams, its arguments and what it is told of the container,
// and has written everything when the streams are closed.
func TestProgramTakesOutput(t *testing.T) {
	const script = `cat <&3 >$2/out 5>&- & cat <&4 >$2/err 5>&- & echo "$CONTAINER_ID $CONTAINER_NAMESPACE $*" >$2/told; exec 3<&- 4<&- 5>&-; wait`
	uri, dir := program(t, script)
	s := openStreams(t, Paths{Stdout: uri + "&level=a%20b&flag&dir=/other", Stderr: uri + "&level=a%20b&flag&dir=/other", ID: "c1", Namespace: "k8s.io"})
	g := connect(t, s)
	write(t, g.out, strings.Repeat("x", 1<<20))
	write(t, g.err, "an error")
	g.out.Close()
	g.err.Close()
	if err := s.Drain(t.Context(), Bound{Idle: time.Minute, Total: time.Minute}); err != nil {
		t.Error(err)
	}
	s.Close()
	select {
	case <-s.logger.done:
	default:
		t.Error("the program was not waited for")
	}
	if n := len(content(t, filepath.Join(dir, "out"))); n != 1<<20 {
		t.Errorf("%d bytes of output", n)
	}
	if got := content(t, filepath.Join(dir, "err")); got != "an error" {
		t.Errorf("errors: %q", got)
	}
	if got := content(t, filepath.Join(dir, "told")); got != "c1 k8s.io dir "+dir+" level a b flag \n" {
		t.Errorf("told: %q", got)
	}
	s.Close()
}

// With a terminal there is one stream.
func TestProgramWithTerminal(t *testing.T) {
	uri, dir := program(t, `exec 5>&-; cat <&4 >$2/err; cat <&3 >$2/out`)
	s := openStreams(t, Paths{Stdout: uri, Terminal: true})
	g := connect(t, s)
	write(t, g.out, "typed")
	g.out.Close()
	if err := s.Drain(t.Context(), Bound{Idle: time.Minute, Total: time.Minute}); err != nil {
		t.Error(err)
	}
	s.Close()
	if out, err := content(t, filepath.Join(dir, "out")), content(t, filepath.Join(dir, "err")); out != "typed" || err != "" {
		t.Errorf("%q, %q", out, err)
	}
}

// A program that dies costs the output, not the process.
func TestProgramDies(t *testing.T) {
	uri, _ := program(t, "exit 1")
	s := openStreams(t, Paths{Stdout: uri})
	g := connect(t, s)
	<-s.logger.done
	write(t, g.out, strings.Repeat("x", 1<<20))
	g.out.Close()
	g.err.Close()
	if err := s.Drain(t.Context(), Bound{Idle: time.Minute, Total: time.Minute}); err != nil {
		t.Error(err)
	}
}

// One that goes on after the end holds up nobody for long.
func TestProgramStays(t *testing.T) {
	uri, _ := program(t, "exec 5>&-; exec sleep 1000")
	s := openStreams(t, Paths{Stdout: uri})
	began := time.Now()
	s.Close()
	if took := time.Since(began); took > closeTime+10*time.Second {
		t.Errorf("closed after %s", took)
	}
	s.logger.kill()
	<-s.logger.done
}

func TestProgramRefused(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct {
		paths Paths
		want  string
		is    func(error) bool
	}{
		{Paths{Stdout: "binary://" + dir + "/missing"}, "no such file", func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
		{Paths{Stdout: "binary://host/bin/true"}, "expected binary:///ABSOLUTE/PATH", errdefs.IsInvalidArgument},
		{Paths{Stdout: "binary:///bin/true?a=%zz"}, "NAME=VALUE", errdefs.IsInvalidArgument},
		{Paths{Stdout: "binary:///bin/true", Stderr: "file:///tmp/x"}, "stderr: expected the program", errdefs.IsInvalidArgument},
		{Paths{Stderr: "binary:///bin/true"}, "stderr: got", errdefs.IsInvalidArgument},
		{Paths{Stdin: "binary:///bin/true"}, "stdin: expected a path", errdefs.IsNotImplemented},
	} {
		_, err := Open(test.paths, silent)
		if err == nil || !strings.Contains(err.Error(), test.want) || !test.is(err) {
			t.Errorf("%+v: expected %q, got %v", test.paths, test.want, err)
		}
	}
}

func FuzzLoggerArgs(f *testing.F) {
	f.Add("a=b&c=%20&a=d&&flag")
	f.Fuzz(func(t *testing.T, query string) {
		args, err := loggerArgs(query)
		if err != nil {
			return
		}
		if len(args)%2 != 0 || len(args) > 2*(strings.Count(query, "&")+1) {
			t.Errorf("%q: %q", query, args)
		}
		for i := 0; i < len(args); i += 2 {
			for j := 0; j < i; j += 2 {
				if args[i] == args[j] {
					t.Errorf("%q: %q twice", query, args[i])
				}
			}
		}
	})
}
