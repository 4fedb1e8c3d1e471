package pause_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coffer-project/coffer/internal/host/pause"
)

func TestFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if !pause.For(t.Context(), time.Hour) || time.Since(start) != time.Hour {
			t.Errorf("it took %s", time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start = time.Now()
		if pause.For(ctx, time.Hour) || time.Since(start) != time.Minute {
			t.Errorf("its context's end was noticed after %s", time.Since(start))
		}
		for range 100 { // whatever has come, too
			if pause.For(ctx, 0) {
				t.Fatal("it waited for a context that has ended")
			}
		}
	})
}
