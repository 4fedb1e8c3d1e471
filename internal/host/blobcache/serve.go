package blobcache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/oci"
)

// patience is how long a guest may take nothing of what it asked for, or send
// nothing of what it offered: a layer waits until those below it are unpacked.
const patience = time.Hour

// Serve answers a guest on one stream of kind BLOBS, until the stream or ctx
// ends. It closes conn.
func (s *Store) Serve(ctx context.Context, conn net.Conn) error {
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	for {
		_ = conn.SetDeadline(time.Time{})
		var req agentapi.BlobRequest
		err := channel.ReadMessage(conn, &req)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, io.EOF):
			return nil
		default:
			return fmt.Errorf("blob cache: request: %w", err)
		}
		if err := s.answer(&slow{conn}, &req); err != nil {
			return fmt.Errorf("blob cache: %s %s: %w", req.GetOperation(), clip(req.GetDigest()), err)
		}
	}
}

// slow gives every read and write its own time.
type slow struct{ net.Conn }

// Read implements io.Reader.
func (c *slow) Read(p []byte) (int, error) {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	return c.Conn.Read(p)
}

// Write implements io.Writer.
func (c *slow) Write(p []byte) (int, error) {
	_ = c.SetWriteDeadline(time.Now().Add(patience))
	return c.Conn.Write(p)
}

// answer handles one request. With an error the stream is out of step.
func (s *Store) answer(rw io.ReadWriter, req *agentapi.BlobRequest) error {
	digest, err := oci.ParseDigest(req.GetDigest())
	if err != nil {
		return channel.WriteMessage(rw, &agentapi.BlobReply{Error: err.Error()})
	}
	switch req.GetOperation() {
	case agentapi.BlobRequest_GET:
		return s.give(rw, digest, req.GetSize())
	case agentapi.BlobRequest_PUT:
		return s.take(rw, digest, req.GetSize())
	}
	return channel.WriteMessage(rw, &agentapi.BlobReply{Error: fmt.Sprintf("operation %d is not known", req.GetOperation())})
}

// give sends a blob. One of another size than was asked for counts as absent.
func (s *Store) give(rw io.ReadWriter, digest oci.Digest, size uint64) error {
	blob, have, err := s.Get(digest)
	if err == nil {
		defer func() { _ = blob.Close() }()
		if size != 0 && size != uint64(have) || size == 0 && have > oci.MaxDocument {
			err = oci.ErrNotFound
		}
	}
	if errors.Is(err, oci.ErrNotFound) {
		return channel.WriteMessage(rw, &agentapi.BlobReply{})
	}
	if err != nil {
		return channel.WriteMessage(rw, &agentapi.BlobReply{Error: err.Error()})
	}
	if err := channel.WriteMessage(rw, &agentapi.BlobReply{Found: true, Size: uint64(have)}); err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{rw}, struct{ io.Reader }{blob}, make([]byte, 256<<10))
	return err
}

// take stores a blob.
func (s *Store) take(rw io.ReadWriter, digest oci.Digest, size uint64) error {
	if size > oci.MaxBlob {
		return channel.WriteMessage(rw, &agentapi.BlobReply{})
	}
	if err := s.Wants(digest, int64(size)); err != nil {
		return channel.WriteMessage(rw, &agentapi.BlobReply{})
	}
	if err := channel.WriteMessage(rw, &agentapi.BlobReply{Found: true}); err != nil {
		return err
	}
	content := &counting{r: rw, left: int64(size)}
	err := s.Put(digest, int64(size), content)
	if err == nil {
		return channel.WriteMessage(rw, &agentapi.BlobReply{Found: true, Size: size})
	}
	if content.err != nil {
		return content.err
	}
	// The guest sends to the end, whatever became of it here.
	if _, derr := io.Copy(io.Discard, content); derr != nil {
		return derr
	}
	return channel.WriteMessage(rw, &agentapi.BlobReply{Error: err.Error()})
}

// counting reads what is left of a blob on the stream.
type counting struct {
	r    io.Reader
	left int64
	err  error
}

// Read implements io.Reader.
func (c *counting) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	c.err = err
	return n, err
}

func clip(s string) string { return s[:min(len(s), 80)] }
