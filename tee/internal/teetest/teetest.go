// Package teetest has what the tests of several verifiers need.
package teetest

import (
	"bytes"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/coffer-project/coffer/tee"
)

// EachBit flips each bit of data, one at a time, and calls genuine with the
// result, from several goroutines. It fails the test for each bit with which
// the data still counts as genuine, which is also called once with data as it
// is and has to accept that. Under the race detector only some bits are flipped.
func EachBit(t *testing.T, name string, data []byte, genuine func(mutated []byte) bool) {
	t.Helper()
	if !genuine(bytes.Clone(data)) {
		t.Fatalf("%s: refused as it is", name)
	}
	var next, wrong atomic.Int64
	var work sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		work.Go(func() {
			for {
				bit := int(next.Add(1)-1) * stride
				if bit >= 8*len(data) || wrong.Load() > 20 {
					return
				}
				mutated := bytes.Clone(data)
				mutated[bit/8] ^= 1 << (bit % 8)
				if genuine(mutated) {
					wrong.Add(1)
					t.Errorf("%s: genuine with bit %d of byte %d flipped", name, bit%8, bit/8)
				}
			}
		})
	}
	work.Wait()
}

// EachPrefix calls f with data cut at each length below its own.
func EachPrefix(data []byte, f func(cut []byte)) {
	for n := range data {
		f(data[:n:n])
	}
}

// Refused returns the checks that did not pass, in order. It fails the test where
// err is no refusal, or where a failure does not say enough to act on it.
func Refused(t testing.TB, err error) []string {
	t.Helper()
	e, ok := errors.AsType[*tee.Error](err)
	if !ok {
		t.Fatalf("got %T %v, want a refusal", err, err)
	}
	var out []string
	for _, f := range e.Failures {
		if f.Check == "" || f.Field == "" || f.Help == "" || f.Expected == "" || f.Got == "" {
			t.Errorf("failure says too little: %+v", f)
		}
		out = append(out, f.Check)
	}
	return out
}

// Allocated is how many bytes one call of f allocates, on average. An error of f
// ends the test. No other test may run meanwhile.
func Allocated(t testing.TB, f func() error) int {
	t.Helper()
	const rounds = 50
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range rounds {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	return int(after.TotalAlloc-before.TotalAlloc) / rounds
}
