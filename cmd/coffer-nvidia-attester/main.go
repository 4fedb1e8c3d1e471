// Command coffer-nvidia-attester makes evidence of NVIDIA GPUs through the
// driver's library, for programs that cannot load it themselves (package
// nvidiaattest has the protocol). It is linked dynamically.
//
//	coffer-nvidia-attester [--library FILE] list
//	coffer-nvidia-attester [--library FILE] evidence NONCE
//
// Exit codes: 0; 1 where a GPU or its driver fails; 2 on bad usage; 3 where there
// is no GPU or no library.
package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/coffer-project/coffer/tee/nvidia"
	"github.com/coffer-project/coffer/tee/nvidia/nvidiaattest"
)

const usage = "usage: coffer-nvidia-attester [--library FILE] list | evidence NONCE (64 hexadecimal digits)"

// errNone says that there is nothing to attest.
var errNone = errors.New("no NVIDIA GPU")

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("coffer-nvidia-attester", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { say(stderr, usage) }
	library := flags.String("library", "libnvidia-ml.so.1", "the driver's library")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	var work func(*nvml) (any, error)
	switch args = flags.Args(); {
	case len(args) == 1 && args[0] == nvidiaattest.CommandList:
		work = list
	case len(args) == 2 && args[0] == nvidiaattest.CommandEvidence:
		nonce, err := hex.DecodeString(args[1])
		if err != nil || len(nonce) != nvidia.NonceSize {
			say(stderr, usage)
			return 2
		}
		work = func(n *nvml) (any, error) { return evidence(n, nonce) }
	default:
		flags.Usage()
		return 2
	}
	doc, err := with(*library, work)
	if err == nil {
		err = json.NewEncoder(stdout).Encode(doc)
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errNone):
		say(stderr, err)
		return nvidiaattest.ExitNoDevices
	default:
		say(stderr, err)
		return 1
	}
}

// say writes a line; there is nobody to tell where that fails.
func say(w io.Writer, what any) { _, _ = fmt.Fprintln(w, what) }

// with opens the library, and closes it after the work is done.
func with(library string, work func(*nvml) (any, error)) (doc any, err error) {
	n, err := open(library)
	if err != nil {
		return nil, err
	}
	defer func() {
		if e := n.check("nvmlShutdown", n.shutdown()); e != nil && err == nil {
			err = e
		}
	}()
	return work(n)
}

func list(n *nvml) (any, error) {
	gpus, err := n.gpus()
	if err != nil {
		return nil, err
	}
	out := nvidiaattest.List{}
	for _, g := range gpus {
		info := nvidiaattest.DeviceInfo{Arch: fmt.Sprintf("NVML_%d", g.arch), UUID: g.uuid}
		if arch, ok := archOf(g.arch); ok {
			info.Arch = string(arch)
		}
		out.Devices = append(out.Devices, info)
	}
	return out, nil
}

// evidence is that of all GPUs: one that cannot attest is not left out.
func evidence(n *nvml, nonce []byte) (any, error) {
	gpus, err := n.gpus()
	if err != nil {
		return nil, err
	}
	e := &nvidia.Evidence{}
	for i, g := range gpus {
		arch, ok := archOf(g.arch)
		if !ok {
			return nil, fmt.Errorf("GPU %d (%s): expected a Hopper or Blackwell, got NVML's architecture %d, which cannot attest", i, g.uuid, g.arch)
		}
		chain, err := n.chain(g)
		if err != nil {
			return nil, fmt.Errorf("GPU %d (%s): %w", i, g.uuid, err)
		}
		report, err := n.report(g, nonce)
		if err != nil {
			return nil, fmt.Errorf("GPU %d (%s): %w", i, g.uuid, err)
		}
		e.Devices = append(e.Devices, nvidia.Device{Arch: arch, UUID: g.uuid, Report: report, Chain: chain})
	}
	return e.JSON()
}

// archOf translates NVML's numbers (nvml.h, NVML_DEVICE_ARCH_HOPPER and _BLACKWELL).
func archOf(n uint32) (nvidia.Arch, bool) {
	switch n {
	case 9:
		return nvidia.Hopper, true
	case 10:
		return nvidia.Blackwell, true
	}
	return "", false
}
