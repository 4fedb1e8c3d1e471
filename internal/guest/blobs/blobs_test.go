package blobs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/oci"
)

var quick = limits{stall: 100 * time.Millisecond, grace: 300 * time.Millisecond, rate: 1 << 20}

// host answers one request of the guest on a stream.
type host func(conn net.Conn, req *agentapi.BlobRequest)

// serve connects a pool with a host; every stream is answered by h until it
// fails.
func serve(t *testing.T, p *Pool, h host) (ended <-chan error) {
	t.Helper()
	guest, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- p.Serve(t.Context(), guest) }()
	go func() {
		for {
			var req agentapi.BlobRequest
			if channel.ReadMessage(theirs, &req) != nil {
				return
			}
			h(theirs, &req)
		}
	}()
	synctest.Wait()
	t.Cleanup(func() {
		_ = theirs.Close()
		<-time.After(3 * time.Second) // until every host is done, in the bubble's time
	})
	return done
}

func (p *Pool) free() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.idle)
}

func reply(found bool, size int) *agentapi.BlobReply {
	return &agentapi.BlobReply{Found: found, Size: uint64(size)}
}

var (
	content = []byte("the content of a blob")
	blob    = oci.Describe("x/y", content)
)

func read(p *Pool, d oci.Descriptor) ([]byte, error) {
	rc, err := p.Get(context.Background(), d)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

func TestGetAndPut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPool(quick)
		if _, err := read(p, blob); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("without streams: want ErrNotFound, got %v", err)
		}
		if err := p.Put(t.Context(), blob, failingReader{}); err != nil {
			t.Errorf("without streams: %v", err)
		}
		var have []byte
		serve(t, p, func(conn net.Conn, req *agentapi.BlobRequest) {
			if req.GetDigest() != string(blob.Digest) || req.GetSize() != uint64(blob.Size) {
				t.Errorf("request %v", req)
			}
			switch {
			case req.GetOperation() == agentapi.BlobRequest_PUT:
				_ = channel.WriteMessage(conn, reply(true, 0))
				have = make([]byte, req.GetSize())
				_, _ = io.ReadFull(conn, have)
				_ = channel.WriteMessage(conn, reply(true, len(have)))
			case have == nil:
				_ = channel.WriteMessage(conn, reply(false, 0))
			default:
				_ = channel.WriteMessage(conn, reply(true, len(have)))
				_, _ = conn.Write(have)
			}
		})
		if _, err := read(p, blob); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("empty: want ErrNotFound, got %v", err)
		}
		if err := p.Put(t.Context(), blob, bytes.NewReader(content)); err != nil {
			t.Error(err)
		}
		// The one stream is used again and again.
		for range 3 {
			if got, err := read(p, blob); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%q, %v", got, err)
			}
		}
	})
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("must not be read") }

// TestHostileHosts: whatever the host does, the guest has an error in bounded
// time, or what the caller will find wrong.
func TestHostileHosts(t *testing.T) {
	t.Parallel()
	never := func() { <-time.After(2 * time.Second) }
	for name, tc := range map[string]struct {
		h    host
		says string
	}{
		"stalls before the reply": {func(net.Conn, *agentapi.BlobRequest) { never() }, "did nothing for"},
		"stalls in the reply":     {func(c net.Conn, _ *agentapi.BlobRequest) { _, _ = c.Write([]byte{0, 0}); never() }, "did nothing for"},
		"stalls in the content":   {func(c net.Conn, _ *agentapi.BlobRequest) { _ = channel.WriteMessage(c, reply(true, 21)); never() }, "did nothing for"},
		"drips":                   {drip, "did nothing for"},
		"lies about the size":     {func(c net.Conn, _ *agentapi.BlobRequest) { _ = channel.WriteMessage(c, reply(true, 22)) }, "expected 21 bytes, got 22"},
		"truncates":               {truncate, "ended 11 bytes early"},
		"sends no message":        {func(c net.Conn, _ *agentapi.BlobRequest) { _, _ = c.Write(bytes.Repeat([]byte{0xff}, 8)) }, "message length"},
		"dies before the reply":   {func(c net.Conn, _ *agentapi.BlobRequest) { _ = c.Close() }, oci.ErrNotFound.Error()},
		"reports an error": {func(c net.Conn, _ *agentapi.BlobRequest) {
			_ = channel.WriteMessage(c, &agentapi.BlobReply{Found: true, Error: "x"})
		}, oci.ErrNotFound.Error()},
		"claims more than any size": {func(c net.Conn, _ *agentapi.BlobRequest) {
			_ = channel.WriteMessage(c, &agentapi.BlobReply{Found: true, Size: 1 << 63})
		}, "expected 21 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newPool(quick)
				serve(t, p, tc.h)
				started := time.Now()
				if _, err := read(p, blob); err == nil || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("want an error with %q, got %v", tc.says, err)
				}
				if took := time.Since(started); took > time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

// drip sends a byte at a time, each in time.
func drip(c net.Conn, _ *agentapi.BlobRequest) {
	_ = channel.WriteMessage(c, reply(true, len(content)))
	for i := range content {
		<-time.After(50 * time.Millisecond)
		if _, err := c.Write(content[i : i+1]); err != nil {
			return
		}
	}
}

func truncate(c net.Conn, _ *agentapi.BlobRequest) {
	_ = channel.WriteMessage(c, reply(true, len(content)))
	_, _ = c.Write(content[:10])
	_ = c.Close()
}

// TestTooMuch: bytes behind a blob end the stream; the blob itself was whole.
func TestTooMuch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPool(quick)
		ended := serve(t, p, func(c net.Conn, _ *agentapi.BlobRequest) {
			_ = channel.WriteMessage(c, reply(true, len(content)))
			_, _ = c.Write(append(bytes.Clone(content), "more"...))
		})
		if got, err := read(p, blob); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%q, %v", got, err)
		}
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "more than was asked for") {
			t.Errorf("the stream ended with %v", err)
		}
		if _, err := read(p, blob); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("want ErrNotFound, got %v", err)
		}
	})
}

// TestUnknownSize: a manifest whose size nobody knows is bounded.
func TestUnknownSize(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for size, ok := range map[int]bool{len(content): true, oci.MaxDocument + 1: false} {
			p := newPool(quick)
			serve(t, p, func(c net.Conn, _ *agentapi.BlobRequest) {
				_ = channel.WriteMessage(c, reply(true, size))
				_, _ = c.Write(content)
			})
			got, err := read(p, oci.Descriptor{Digest: blob.Digest})
			if ok && (err != nil || !bytes.Equal(got, content)) || !ok && err == nil {
				t.Errorf("%d bytes: %q, %v", size, got, err)
			}
		}
	})
}

// TestHostTakesNothing: a host that wants a blob and then reads none of it does
// not hold the guest up.
func TestHostTakesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPool(quick)
		serve(t, p, func(c net.Conn, _ *agentapi.BlobRequest) {
			_ = channel.WriteMessage(c, reply(true, 0))
			<-time.After(2 * time.Second)
		})
		started := time.Now()
		if err := p.Put(t.Context(), blob, bytes.NewReader(content)); err == nil || time.Since(started) > time.Second {
			t.Errorf("%v after %v", err, time.Since(started))
		}
	})
}

func TestStreamsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPool(quick)
		for range MaxStreams {
			serve(t, p, func(net.Conn, *agentapi.BlobRequest) {})
		}
		guest, theirs := net.Pipe()
		if err := p.Serve(t.Context(), guest); err == nil || !strings.Contains(err.Error(), "more than 16") {
			t.Errorf("want a refusal, got %v", err)
		}
		if _, err := theirs.Read(make([]byte, 1)); err == nil {
			t.Error("the stream is open")
		}
	})
}

// TestEnd: cancelled callers and an ended pool leave nothing behind.
func TestEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPool(limits{stall: time.Hour, grace: time.Hour, rate: 1})
		ended := serve(t, p, func(c net.Conn, _ *agentapi.BlobRequest) { _ = channel.WriteMessage(c, reply(true, len(content))) })
		ctx, cancel := context.WithCancel(t.Context())
		rc, err := p.Get(ctx, blob)
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(10*time.Millisecond, cancel)
		if _, err := io.ReadAll(rc); !errors.Is(err, context.Canceled) {
			t.Errorf("want context.Canceled, got %v", err)
		}
		<-ended
		ctx, cancel = context.WithCancel(t.Context())
		guest, _ := net.Pipe()
		cancel()
		if err := p.Serve(ctx, guest); !errors.Is(err, context.Canceled) {
			t.Errorf("want context.Canceled, got %v", err)
		}
		if p.free() != 0 || p.count != 0 {
			t.Errorf("%d idle, %d streams", p.free(), p.count)
		}
	})
}

// TestStreamsThatDieAndComeBack: a host that closes each stream when it is asked,
// and opens another, is not asked for ever.
func TestStreamsThatDieAndComeBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPool(quick)
		asked := 0
		var open func()
		open = func() {
			serve(t, p, func(c net.Conn, _ *agentapi.BlobRequest) {
				if asked++; asked < 1000 {
					open() // the next one is there before this one is gone
				}
				_ = c.Close()
			})
		}
		open()
		if _, err := read(p, blob); !errors.Is(err, oci.ErrNotFound) {
			t.Errorf("want ErrNotFound, got %v", err)
		}
		if asked > MaxStreams {
			t.Errorf("the host was asked %d times", asked)
		}
	})
}
