package sandbox

import "github.com/coffer-project/coffer/internal/host/agentlink"

// BlobCache answers a guest on one stream until the stream or ctx ends.
type BlobCache = agentlink.BlobCache
