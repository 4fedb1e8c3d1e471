package store

import (
	"encoding/json"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/pgtest"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// benchBoth runs a benchmark with eight callers on both databases, on disks
// that are waited for. Operations per second and those of them that shared a
// commit are what it is about.
func benchBoth(b *testing.B, f func(b *testing.B, s *Store, i int64)) {
	for _, kind := range []string{"sqlite", "postgres"} {
		b.Run(kind, func(b *testing.B) {
			o := dataOptions(b, "sqlite", time.Now)
			if kind == "postgres" {
				o.Path, o.DatabaseURL = "", pgtest.Start(b, pgtest.Durable()).URL("")
			}
			s := openData(b, o)
			var n atomic.Int64
			b.SetParallelism(4) // times GOMAXPROCS, which is two where this was measured
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					f(b, s, n.Add(1))
				}
			})
			b.ReportMetric(float64(n.Load())/b.Elapsed().Seconds(), "op/s")
		})
	}
}

// benchRecord has claims of the usual size.
func benchRecord() audit.Record {
	r := attestation("")
	r.Claims, _ = json.Marshal(map[string]string{"claims": strings.Repeat("x", 4<<10)})
	return r
}

func BenchmarkAppend(b *testing.B) {
	r := benchRecord()
	benchBoth(b, func(b *testing.B, s *Store, _ int64) {
		if _, err := s.Append(b.Context(), tenant.Default, r); err != nil {
			b.Error(err)
		}
	})
}

func BenchmarkFinish(b *testing.B) {
	r, token, expires := benchRecord(), strings.Repeat("t", 4<<10), time.Now().Add(time.Hour)
	benchBoth(b, func(b *testing.B, s *Store, i int64) {
		id := strconv.FormatInt(i, 10)
		if err := s.Finish(b.Context(), tenant.Default, Finished{Session: id, Token: token, Expires: expires}, r); err != nil {
			b.Error(err)
		}
	})
}

func BenchmarkGeneration(b *testing.B) {
	benchBoth(b, func(b *testing.B, s *Store, _ int64) {
		if _, err := s.Generation(b.Context(), tenant.Default); err != nil {
			b.Error(err)
		}
	})
}
