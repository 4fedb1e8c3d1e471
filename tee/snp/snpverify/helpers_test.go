package snpverify

import (
	"context"
	"io"
	"net"
	"os"
	"testing"

	"github.com/coffer-project/coffer/tee/softtee"
)

var tempDirs []string // removed by TestMain

func mkTemp() (string, error) {
	dir, err := os.MkdirTemp("", "snpverify")
	tempDirs = append(tempDirs, dir)
	return dir, err
}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, dir := range tempDirs {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// dial opens a guest's end of the port, with the software TEE at the other.
func dial(t testing.TB, g *softtee.Guest) func(context.Context) (io.ReadWriteCloser, error) {
	return func(context.Context) (io.ReadWriteCloser, error) {
		guest, host := net.Pipe()
		go func() {
			defer func() { _ = host.Close() }()
			// The guest closes its end when it has what it asked for; a
			// failure shows there.
			_ = g.Serve(t.Context(), host)
		}()
		return guest, nil
	}
}
