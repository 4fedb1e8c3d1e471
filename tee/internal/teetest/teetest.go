// Package teetest has what the tests of several verifiers need.
package teetest

import (
	"bytes"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
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
