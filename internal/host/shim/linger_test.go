package shim

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestVigil: a daemon is not needed when for its whole time nobody was connected
// and nothing would have been lost.
func TestVigil(t *testing.T) {
	t.Parallel()
	const linger, most = 10, 60
	always, never := func(int) bool { return true }, func(int) bool { return false }
	from := func(n int) func(int) bool { return func(at int) bool { return at >= n } }
	for _, tt := range []struct {
		name                  string
		connected, over, gone func(at int) bool
		want                  int // the second of the end; 0: none
	}{
		{"never asked", never, always, never, linger + 1},
		{"a pod runs, containerd is away", never, never, never, 0},
		{"a pod has ended, containerd is there", always, always, never, 0},
		{"forgotten, containerd is there", always, always, always, 0},
		{"a pod ends while containerd is away", never, from(20), never, 20 + linger},
		{"containerd forgets a pod that runs", func(at int) bool { return at < 5 }, never, from(6), 6 + linger},
		{"containerd goes after the end", func(at int) bool { return at < 30 }, from(3), never, 30 + linger},
		{"containerd comes for a moment", func(at int) bool { return at == 9 }, always, never, 10 + linger},
		{"containerd comes again and again", func(at int) bool { return at%9 == 0 }, always, always, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			bundle := filepath.Join(t.TempDir(), "bundle")
			if err := os.Mkdir(bundle, 0o700); err != nil {
				t.Fatal(err)
			}
			start, at := time.Now(), 0
			alone := start
			v := vigil{
				linger: linger * time.Second, bundle: bundle, over: func() bool { return tt.over(at) },
				alone: func() time.Time {
					if tt.connected(at) {
						return time.Time{}
					}
					return alone
				},
			}
			ended := 0
			for at = 1; at < most && ended == 0; at++ {
				now := start.Add(time.Duration(at) * time.Second)
				if tt.connected(at) {
					alone = now
				}
				if tt.gone(at) {
					_ = os.Remove(bundle)
				}
				if v.look(now) != "" {
					ended = at
				}
			}
			if ended != tt.want {
				t.Errorf("ended at %d, want %d", ended, tt.want)
			}
		})
	}
}
