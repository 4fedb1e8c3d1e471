// Package oci holds what every part of image handling shares: references,
// digests, descriptors, and the decoders of manifests, indexes and image
// configurations.
//
// Documents come from a registry that is not trusted. Every decoder has a size
// limit, refuses what two readers could read differently (names that occur
// twice, a manifest that is also an index), and names the field it refuses.
// Names that are not known are ignored, as the OCI image specification v1.1
// demands of readers.
package oci

import (
	"context"
	"errors"
	"io"
)

// ErrNotFound is wrapped by a [Fetcher]'s errors when what was asked for does
// not exist, as opposed to not being reachable.
var ErrNotFound = errors.New("not found")

// ErrUnauthorized is wrapped by a [Fetcher]'s errors when the registry wants
// other credentials than it was given, or some.
var ErrUnauthorized = errors.New("the registry wants credentials")

// ErrLied is wrapped by the errors of a read whose content turned out to be
// wrong, when the same [Fetcher] can get it from elsewhere: a cache or a mirror
// has lied and is not asked again. The caller throws away what it has read and
// fetches once more.
var ErrLied = errors.New("the content is not what was asked for")

// Fetcher reads the content of one repository. Implementations may be used by
// several goroutines at once. What they return is untrusted: callers check
// sizes and digests with [NewVerifier] or [ReadAll].
type Fetcher interface {
	// Resolve finds the descriptor of a manifest by the digest of ref, or else
	// by its tag. It returns an error that wraps [ErrNotFound] when there is
	// none.
	Resolve(ctx context.Context, ref Reference) (Descriptor, error)
	// Fetch opens the content that d names; the caller closes it. d.MediaType
	// decides whether it is looked up as a manifest or as a blob.
	Fetch(ctx context.Context, d Descriptor) (io.ReadCloser, error)
}

// Referrers is what a [Fetcher] may implement besides: the referrers API of the
// OCI distribution specification v1.1.
type Referrers interface {
	// Referrers lists the manifests whose subject is the manifest with that
	// digest; an artifactType that is not empty restricts them. Where the
	// registry has no such API it is an error that wraps [ErrNotFound], and the
	// referrers tag (sha256-<hex>) is to be read instead.
	Referrers(ctx context.Context, subject Digest, artifactType string) ([]Descriptor, error)
}

// Pusher writes content to one repository. Implementations may be used by
// several goroutines at once.
type Pusher interface {
	// Push stores the content of r, which must be what d says. Content that
	// exists already is left alone.
	Push(ctx context.Context, d Descriptor, r io.Reader) error
	// Tag lets tag name the manifest d, which has been pushed before.
	Tag(ctx context.Context, d Descriptor, tag string) error
}
