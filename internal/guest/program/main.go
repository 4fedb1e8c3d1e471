package program

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/coffer-project/coffer/internal/guest/machine"
)

const usage = `coffer-agent is the agent of a Coffer guest. As PID 1 it boots the guest.

Usage:
  coffer-agent serve --unix PATH --development [--dir DIR] [--crun PATH] [--debug]
  coffer-agent serve --fd N --own-namespaces --development [--crun PATH] [--debug]
        serve the agent protocol on a UNIX socket, without a virtual machine
        and without a TEE; for development and tests
  coffer-agent version
`

// Main runs the program and returns its exit status: 0, 1 for a failure, 2
// for wrong usage.
func Main(args []string, stdout, stderr io.Writer) int {
	switch {
	case filepath.Base(args[0]) == machine.PauseName:
		_ = machine.Pause() // the agent sees that it has ended
		return 1
	case os.Getpid() == 1 && len(args) == 1:
		Guest()
	case len(args) == 2 && args[1] == "version":
		_, _ = fmt.Fprintln(stdout, Version)
		return 0
	case len(args) > 1 && args[1] == "serve":
		switch err := serve(args[2:], stderr); {
		case errors.Is(err, flag.ErrHelp):
			return 0
		case errors.As(err, new(usageError)):
			_, _ = fmt.Fprintf(stderr, "coffer-agent: %v\n%s", err, usage)
			return 2
		case err != nil:
			_, _ = fmt.Fprintln(stderr, "coffer-agent:", err)
			return 1
		}
		return 0
	}
	_, _ = io.WriteString(stderr, usage)
	return 2
}

// usageError is a mistake on the command line.
type usageError string

func (e usageError) Error() string { return string(e) }
