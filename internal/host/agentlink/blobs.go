package agentlink

import (
	"context"
	"net"
	"time"

	"github.com/coffer-project/coffer/internal/agentapi"
)

const (
	// blobStreams is how many blobs a guest reads or offers at once: no image
	// has more layers under way.
	blobStreams = 8
	// blobRetry is how soon a stream is opened again that the guest gave up, as
	// it does when it no longer wants the rest of a blob.
	blobRetry = 200 * time.Millisecond
)

// BlobCache answers a guest on one stream until the stream or ctx ends.
type BlobCache interface {
	Serve(ctx context.Context, conn net.Conn) error
}

// ServeBlobs lends the guest streams to the cache until the connection or ctx
// ends; it returns at once. A guest that knows no such streams goes without.
func (l *Link) ServeBlobs(ctx context.Context, cache BlobCache) {
	for range blobStreams {
		l.background.Go(func() { l.blobStream(ctx, cache) })
	}
}

func (l *Link) blobStream(ctx context.Context, cache BlobCache) {
	for {
		conn, err := l.session.Open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_BLOBS})
		if err != nil {
			l.log.DebugContext(ctx, "the guest takes no stream of the blob cache", "error", err)
			return
		}
		if err := cache.Serve(ctx, conn); err != nil {
			l.log.DebugContext(ctx, "blob stream ended", "error", err)
		}
		_ = conn.Close()
		timer := time.NewTimer(blobRetry)
		select {
		case <-l.session.Done():
			timer.Stop()
			return
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}
