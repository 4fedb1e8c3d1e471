//go:build !amd64

package boot

// tsc has no portable counterpart.
func tsc() uint64 { return 0 }
