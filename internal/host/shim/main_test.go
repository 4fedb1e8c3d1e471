package shim_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/coffer-project/coffer/internal/host/shim"
)

// envInit makes this program the first process of a PID namespace.
const envInit = "COFFER_SHIM_TEST_INIT"

// TestMain makes this program a shim when it is called like one: the tests and
// containerd start copies of it.
func TestMain(m *testing.M) {
	if os.Getenv(envInit) != "" {
		beInit()
	}
	if strings.HasPrefix(filepath.Base(os.Args[0]), "containerd-shim-") {
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
			return shim.Settings{StateDir: dir}, nil
		},
		Open: func(_ context.Context, d *shim.Daemon) (*shim.Services, error) {
			if d.Config == "/broken.toml" {
				return nil, errors.New("the guest image is missing")
			}
			h := newHostTasks(d)
			return &shim.Services{Register: h.register, Close: h.Close}, nil
		},
	}
}

// beInit waits for the children that a PID namespace leaves to its first
// process, until it is killed.
func beInit() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGCHLD)
	fmt.Println("up")
	for range signals {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
