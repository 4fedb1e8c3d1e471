package shim

import (
	"errors"
	"flag"
	"fmt"
	"io"
)

// flags are what containerd passes, from 1.6 on, and two of ours, which
// `start` passes to the daemon: -config and -ready.
type flags struct {
	namespace, id string
	address       string // containerd's socket
	publishBinary string // accepted; events go by ttrpc since before 1.6
	bundle        string // of delete
	socket        string // of a daemon that is started by hand
	debugSocket   string // accepted; nothing is served there
	config        string
	debug         bool
	ready         bool // readyFD was inherited
	version, info bool
	action        string // start, delete, or empty for the daemon
}

func parseFlags(args []string) (flags, error) {
	var f flags
	set := flag.NewFlagSet("shim", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&f.namespace, "namespace", "", "")
	set.StringVar(&f.id, "id", "", "")
	set.StringVar(&f.address, "address", "", "")
	set.StringVar(&f.publishBinary, "publish-binary", "", "")
	set.StringVar(&f.bundle, "bundle", "", "")
	set.StringVar(&f.socket, "socket", "", "")
	set.StringVar(&f.debugSocket, "debug-socket", "", "")
	set.StringVar(&f.config, "config", "", "")
	set.BoolVar(&f.ready, "ready", false, "")
	set.BoolVar(&f.debug, "debug", false, "")
	set.BoolVar(&f.version, "v", false, "")
	set.BoolVar(&f.version, "version", false, "")
	set.BoolVar(&f.info, "info", false, "")
	if err := set.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return f, errors.New("this program is started by containerd: configure it as a runtime (coffer install)")
		}
		return f, fmt.Errorf("command line: %w", err)
	}
	if set.NArg() > 1 {
		return f, fmt.Errorf("command line: expected one action, got %q", set.Args())
	}
	f.action = set.Arg(0)
	return f, nil
}
