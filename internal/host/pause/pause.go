// Package pause waits for a moment, such as between two attempts.
package pause

import (
	"context"
	"time"
)

// For waits for d. It reports false, at once, when ctx has ended or ends before.
func For(ctx context.Context, d time.Duration) bool {
	if ctx.Err() != nil {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
