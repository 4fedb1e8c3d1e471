// Containerd-shim-coffer-v2 is the runtime that containerd starts for the pods of
// Coffer's runtime classes. docs/shim.md describes it.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/coffer-project/coffer/internal/host/podshim"
	"github.com/coffer-project/coffer/internal/host/shim"
)

// version is that of the programs.
const version = "0.1.0"

func main() {
	self, err := shim.Self()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", podshim.Name, err)
		os.Exit(1)
	}
	os.Exit(podshim.Program(version).Main(context.Background(), self))
}
