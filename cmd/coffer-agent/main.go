// Command coffer-agent is the agent of a guest: PID 1, attestation client, data
// hub, image puller and server of the agent protocol in one program.
package main

import (
	"os"

	"github.com/coffer-project/coffer/internal/guest/program"
)

func main() { os.Exit(program.Main(os.Args, os.Stdout, os.Stderr)) }
