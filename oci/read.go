package oci

import (
	"bytes"
	"context"
	"fmt"
)

// ReadAll fetches a document of at most limit bytes and checks it against d.
func ReadAll(ctx context.Context, f Fetcher, d Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, fmt.Errorf("%s %s: %d bytes, at most %d are allowed", clip(d.MediaType), d.Digest, d.Size, limit)
	}
	rc, err := f.Fetch(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", d.Digest, err)
	}
	defer func() { _ = rc.Close() }()
	r, err := VerifyReader(rc, d)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Grow(int(d.Size) + bytes.MinRead)
	if _, err := b.ReadFrom(r); err != nil {
		return nil, fmt.Errorf("fetch %s: %w", d.Digest, err)
	}
	return b.Bytes(), nil
}

// Describe is the descriptor of a document.
func Describe(mediaType string, data []byte) Descriptor {
	return Descriptor{MediaType: mediaType, Digest: FromBytes(data), Size: int64(len(data))}
}

// PushBytes pushes a document and returns its descriptor.
func PushBytes(ctx context.Context, p Pusher, mediaType string, data []byte) (Descriptor, error) {
	d := Describe(mediaType, data)
	return d, p.Push(ctx, d, bytes.NewReader(data))
}
