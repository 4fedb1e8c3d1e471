package shim_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/host/shim"
	"github.com/coffer-project/coffer/internal/host/shim/hosttest"
)

// shimName is what this program is called as a shim.
const shimName = "containerd-shim-coffertest-v2"

// TestMain makes this program a shim when it is called like one: the tests and
// containerd start copies of it.
func TestMain(m *testing.M) {
	hosttest.Init()
	if filepath.Base(os.Args[0]) == shimName {
		os.Exit(beShim())
	}
	os.Exit(m.Run())
}

func beShim() int {
	proc, err := shim.Self()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	proc.SocketDir = os.Getenv("COFFER_SHIM_TEST_SOCKETS")
	return program().Main(context.Background(), proc)
}

// program is a shim whose containers are processes of the host.
func program() shim.Program {
	return shim.Program{
		Name: "io.containerd.coffertest.v2", Version: "1.2.3",
		Configure: func(path string) (shim.Settings, error) {
			if path != "" && !strings.HasSuffix(path, ".toml") {
				return shim.Settings{}, errors.New("configuration: expected a name that ends in .toml")
			}
			dir := os.Getenv("COFFER_SHIM_TEST_STATE")
			if dir == "" {
				dir = "/run/coffer"
			}
			settings := shim.Settings{StateDir: dir}
			if v := os.Getenv("COFFER_SHIM_TEST_LINGER"); v != "" {
				var err error
				if settings.Linger, err = time.ParseDuration(v); err != nil {
					return settings, err
				}
			}
			return settings, nil
		},
		Open: func(_ context.Context, d *shim.Daemon) (*shim.Services, error) {
			if d.Config == "/broken.toml" {
				return nil, errors.New("the guest image is missing")
			}
			if v, err := time.ParseDuration(os.Getenv("COFFER_SHIM_TEST_SLOW")); err == nil {
				<-time.After(v)
			}
			h := newHostTasks(d)
			return &shim.Services{Register: h.register, Close: h.Close, Over: h.over}, nil
		},
	}
}
