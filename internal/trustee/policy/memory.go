package policy

import (
	"context"
	"fmt"
	"runtime/metrics"
	"time"
)

const (
	// watchAfter is how long an evaluation runs before anyone looks at memory;
	// an ordinary one takes a hundredth of that.
	watchAfter = 25 * time.Millisecond
	watchEvery = 10 * time.Millisecond
	// maxGrowth is how much the program's heap may grow during an evaluation,
	// whoever made it grow: several times of what a trustee has under load.
	maxGrowth = 512 << 20
)

var errMemory = fmt.Errorf("was ended: the program's memory grew by more than %d MiB during the evaluation", maxGrowth>>20)

// Watch returns a context that ends when the heap grows too much. OPA bounds
// no memory, and a few lines that join a string with itself fill any: this
// ends such a policy between two of its calls; what one call builds from its
// arguments is bounded by [maxResult]. stop has to be called.
func Watch(ctx context.Context) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(watchAfter, func() {
		start := heap()
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if now := heap(); now > start && now-start > maxGrowth {
				cancel(errMemory)
				return
			}
		}
	})
	return ctx, func() {
		timer.Stop()
		cancel(nil)
	}
}

// heap is the size of all objects, in bytes, garbage included.
func heap() uint64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
