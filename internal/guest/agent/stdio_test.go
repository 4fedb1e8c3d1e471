package agent

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
)

// Output that no host has taken when its process is deleted is lost, and the log
// says how much.
func TestOutputThatNobodyTook(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		bytes int
		want  string
	}{
		{"none", 0, ""},
		{"in hand", 100, "bytes_at_most=100"},
		{"in the pipe too", 40 << 10, "bytes_at_most=40960"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var log bytes.Buffer
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			if _, err := w.Write(make([]byte, test.bytes)); err != nil {
				t.Fatal(err)
			}
			o := newOutput()
			o.start(r, true, slog.New(slog.NewTextHandler(&log, nil)))
			for test.bytes > 0 && unread(r) > max(0, test.bytes-outputChunk) {
				continue // it reads what it can hold
			}
			o.close()
			<-o.ended
			if got := log.String(); !strings.Contains(got, test.want) || (test.want == "") != (got == "") {
				t.Errorf("expected %q, got %q", test.want, got)
			}
		})
	}
}

// A process that ends at once, with its output in the pipe and no host, loses
// nothing: the host that comes has all of it, and the end behind it.
func TestOutputAfterTheEnd(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("0123456789abcde\n", 4000)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var log bytes.Buffer
	o := newOutput()
	o.start(r, true, slog.New(slog.NewTextHandler(&log, nil)))
	host, guest := net.Pipe()
	attached := make(chan error, 1)
	go func() {
		attached <- o.attach(t.Context(), guest)
		guest.Close()
	}()
	if b, err := io.ReadAll(host); string(b) != text || err != nil {
		t.Errorf("%d bytes of %d, %v", len(b), len(text), err)
	}
	if err := <-attached; err != nil || log.Len() > 0 {
		t.Errorf("%v, %s", err, log.String())
	}
}
