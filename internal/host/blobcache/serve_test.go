package blobcache_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/host/blobcache"
	"github.com/coffer-project/coffer/oci"
)

// guest is the other end of a stream that the store serves.
func guest(t *testing.T, s *blobcache.Store) (net.Conn, <-chan error) {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- s.Serve(t.Context(), theirs) }()
	t.Cleanup(func() { _ = ours.Close() })
	return ours, done
}

func ask(t *testing.T, conn net.Conn, op agentapi.BlobRequest_Operation, digest string, size uint64) *agentapi.BlobReply {
	t.Helper()
	if err := channel.WriteMessage(conn, &agentapi.BlobRequest{Operation: op, Digest: digest, Size: size}); err != nil {
		t.Fatal(err)
	}
	var reply agentapi.BlobReply
	if err := channel.ReadMessage(conn, &reply); err != nil {
		t.Fatal(err)
	}
	return &reply
}

// TestServe: one stream, many requests.
func TestServe(t *testing.T) {
	t.Parallel()
	s := open(t, filepath.Join(t.TempDir(), "c"), blobcache.Options{MaxBytes: 1 << 20})
	conn, done := guest(t, s)
	const get, put = agentapi.BlobRequest_GET, agentapi.BlobRequest_PUT
	data := []byte("content")
	digest := string(oci.FromBytes(data))
	if r := ask(t, conn, get, digest, 7); r.GetFound() || r.GetError() != "" {
		t.Errorf("empty: %v", r)
	}
	// A blob that is something else is drained, refused and not kept.
	if r := ask(t, conn, put, digest, 7); !r.GetFound() {
		t.Errorf("put: %v", r)
	}
	if _, err := conn.Write([]byte("c0ntent")); err != nil {
		t.Fatal(err)
	}
	var r agentapi.BlobReply
	if err := channel.ReadMessage(conn, &r); err != nil || !strings.Contains(r.GetError(), "digest differs") {
		t.Errorf("put of something else: %v, %v", &r, err)
	}
	if r := ask(t, conn, put, digest, 7); !r.GetFound() {
		t.Errorf("put: %v", r)
	}
	if _, err := conn.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := channel.ReadMessage(conn, &r); err != nil || r.GetError() != "" {
		t.Errorf("put: %v, %v", &r, err)
	}
	for _, size := range []uint64{7, 0} {
		if r := ask(t, conn, get, digest, size); !r.GetFound() || r.GetSize() != 7 {
			t.Errorf("get: %v", r)
		}
		got := make([]byte, 7)
		if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, data) {
			t.Errorf("get: %q, %v", got, err)
		}
	}
	for name, r := range map[string]*agentapi.BlobReply{
		"put again": ask(t, conn, put, digest, 7), "another size": ask(t, conn, get, digest, 8), "more than any": ask(t, conn, put, string(oci.FromBytes(nil)), 1<<63),
		"too large": ask(t, conn, put, string(oci.FromBytes(nil)), 1<<20), "nothing": ask(t, conn, put, string(oci.FromBytes(nil)), 0),
	} {
		if r.GetFound() || r.GetError() != "" {
			t.Errorf("%s: %v", name, r)
		}
	}
	if r := ask(t, conn, get, "../../etc/passwd", 1); r.GetError() == "" {
		t.Error("a path was looked up")
	}
	if r := ask(t, conn, 17, digest, 1); r.GetError() == "" {
		t.Error("an unknown operation was answered")
	}
	_ = conn.Close()
	if err := <-done; err != nil {
		t.Errorf("the end: %v", err)
	}
}

// FuzzServe is a hostile guest: the store survives it and keeps nothing wrong.
func FuzzServe(f *testing.F) {
	message := func(m *agentapi.BlobRequest) []byte {
		var b bytes.Buffer
		if err := channel.WriteMessage(&b, m); err != nil {
			f.Fatal(err)
		}
		return b.Bytes()
	}
	digest := string(oci.FromBytes([]byte("x")))
	f.Add(append(message(&agentapi.BlobRequest{Operation: agentapi.BlobRequest_PUT, Digest: digest, Size: 1}), 'x'))
	f.Add(message(&agentapi.BlobRequest{Operation: agentapi.BlobRequest_GET, Digest: digest}))
	f.Add(binary.BigEndian.AppendUint32(nil, 1<<31))
	dir := filepath.Join(f.TempDir(), "c")
	s, err := blobcache.Open(dir, blobcache.Options{MaxBytes: 1 << 16})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.Close() })
	f.Fuzz(func(t *testing.T, data []byte) {
		conn, done := guest(t, s)
		go func() { _, _ = io.Copy(io.Discard, conn) }()
		_, _ = conn.Write(data)
		_ = conn.Close()
		<-done
		for _, e := range s.List() {
			if _, err := get(s, e.Digest); err != nil {
				t.Errorf("%s: %v", e.Digest, err)
			}
		}
	})
}
