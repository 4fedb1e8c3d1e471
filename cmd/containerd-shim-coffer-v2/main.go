// Command containerd-shim-coffer-v2 runs pods in confidential virtual machines
// for containerd, which starts it as the runtime io.containerd.coffer.v2.
// docs/shim.md says how.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/coffer-project/coffer/internal/host/shim"
	"github.com/coffer-project/coffer/internal/host/shim/coffershim"
)

func main() {
	self, err := shim.Self()
	if err != nil {
		fmt.Fprintln(os.Stderr, "containerd-shim-coffer-v2:", err)
		os.Exit(1)
	}
	os.Exit(coffershim.Program(version()).Main(context.Background(), self))
}

// version is the module's, as the builder knew it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(unknown)"
	}
	return info.Main.Version
}
