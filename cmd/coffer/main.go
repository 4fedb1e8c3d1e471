// Command coffer is the workload owner's program: it protects images, writes
// policies, builds and measures the guest image, and runs confidential pods.
package main

import (
	"context"
	"os"

	"github.com/coffer-project/coffer/internal/cli"
)

func main() {
	os.Exit(cli.Main(context.Background(), cli.Env{Args: os.Args[1:], Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}))
}
