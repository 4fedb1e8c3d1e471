// Package nvidiaattest makes evidence of the NVIDIA GPUs that are attached to the
// guest.
//
// The reports come from NVIDIA's library, which is a shared one: it cannot be
// loaded into a static program. So a program of its own,
// coffer-nvidia-attester, loads it; this package runs that program, with a time
// limit and a limit on what it may say, and checks what it has said. A guest
// without the program, the library or a GPU has no devices, which is no error;
// a GPU that does not attest is one.
//
// NVSwitches are reached through another library (NSCQ) and are not asked.
//
// The path from the library to evidence that verifies is tested with a library
// that serves published evidence; it is unproven on hardware.
package nvidiaattest

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/nvidia"
)

// The protocol of the program: `PROGRAM list` and `PROGRAM evidence NONCE`, the
// nonce being 64 hexadecimal digits, answer with one JSON document on standard
// output. [ExitNoDevices] says that there is nothing to attest.
const (
	CommandList     = "list"
	CommandEvidence = "evidence"
	// ExitNoDevices is the exit code where the library or a GPU is missing.
	ExitNoDevices = 3

	// DefaultTimeout bounds a run. A GPU takes a second or two for a report.
	DefaultTimeout = 60 * time.Second

	maxList   = 64 << 10
	maxErrors = 4 << 10
)

// ErrNoDevices says that no GPU is there to attest.
var ErrNoDevices = errors.New("nvidia: no GPU is attached, or its driver's library is not installed")

// Output is what a program has said.
type Output struct {
	// Code is its exit code.
	Code int
	// Stdout is at most limit+1 bytes: one more than may be. Stderr is cut.
	Stdout, Stderr []byte
}

// Run runs a program to its end and collects what it writes, of standard output
// at most limit+1 bytes. It kills the program when ctx ends. The error is for a
// program that could not be run or was killed; one that is not there makes it
// wrap [fs.ErrNotExist].
type Run func(ctx context.Context, path string, args []string, limit int) (Output, error)

// Options configure an attester.
type Options struct {
	// Program is the absolute path of coffer-nvidia-attester.
	Program string
	// Run starts it.
	Run Run
	// Timeout bounds a run. Zero: [DefaultTimeout].
	Timeout time.Duration
}

// Attester makes evidence of all GPUs. It is safe for concurrent use, and is a
// [tee.Attester] for clients that send evidence of devices.
type Attester struct{ o Options }

var _ tee.Attester = (*Attester)(nil)

// New returns an attester. Nothing is run yet.
func New(o Options) (*Attester, error) {
	if !filepath.IsAbs(o.Program) || o.Run == nil {
		return nil, fmt.Errorf("nvidiaattest: expected the absolute path of a program and a way to run it, got %q", o.Program)
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	return &Attester{o}, nil
}

// TEE implements [tee.Attester].
func (*Attester) TEE() tee.Name { return tee.NVIDIA }

// InitData implements [tee.Attester]. Devices have no such field.
func (*Attester) InitData(context.Context) ([]byte, error) { return nil, nil }

// DeviceInfo is a GPU as its driver describes it.
type DeviceInfo struct {
	// Arch is HOPPER or BLACKWELL; another number of NVML's as "NVML_<n>" for one
	// that cannot attest.
	Arch string `json:"arch"`
	UUID string `json:"uuid"`
}

// List is the answer to [CommandList].
type List struct {
	Devices []DeviceInfo `json:"devices"`
}

// Devices lists the GPUs; none is no error.
func (a *Attester) Devices(ctx context.Context) ([]DeviceInfo, error) {
	out, err := a.run(ctx, maxList, CommandList)
	if errors.Is(err, ErrNoDevices) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var l List
	if err := strictjson.Decode(out, &l, strictjson.Limits{Bytes: maxList, Depth: 3}); err != nil {
		return nil, fmt.Errorf("nvidia: list of devices: %w", err)
	}
	if n := len(l.Devices); n == 0 || n > nvidia.MaxDevices {
		return nil, fmt.Errorf("nvidia: list of devices: expected 1 to %d, got %d", nvidia.MaxDevices, n)
	}
	return l.Devices, nil
}

// AdditionalEvidence returns the KBS evidence of all GPUs over a nonce of 32
// bytes, nil where there is none.
func (a *Attester) AdditionalEvidence(ctx context.Context, nonce []byte) (json.RawMessage, error) {
	raw, err := a.Evidence(ctx, nonce)
	if errors.Is(err, ErrNoDevices) {
		return nil, nil
	}
	return raw, err
}

// Evidence implements [tee.Attester]. The nonce is the first 32 bytes of the
// report data. Without a GPU the error wraps [ErrNoDevices].
func (a *Attester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	nonce := tee.Fit(reportData, nvidia.NonceSize)
	raw, err := a.run(ctx, nvidia.MaxEvidence, CommandEvidence, hex.EncodeToString(nonce))
	if err != nil {
		return nil, err
	}
	raw = bytes.TrimSuffix(raw, []byte("\n"))
	e, err := nvidia.ParseEvidence(raw)
	if err != nil {
		return nil, fmt.Errorf("nvidia: evidence: %w", err)
	}
	for i, d := range e.Devices {
		p, err := nvidia.ParseReport(d.Report)
		if err != nil {
			return nil, fmt.Errorf("nvidia: evidence of device %d (%s): %w", i, d.UUID, err)
		}
		if !bytes.Equal(p.Nonce[:], nonce) {
			return nil, fmt.Errorf("nvidia: evidence of device %d (%s): expected a report over the nonce %x, got %x", i, d.UUID, nonce, p.Nonce)
		}
	}
	return raw, nil
}

func (a *Attester) run(ctx context.Context, limit int, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, a.o.Timeout)
	defer cancel()
	out, err := a.o.Run(ctx, a.o.Program, args, limit)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w (%s is not installed)", ErrNoDevices, a.o.Program)
	case err != nil:
		return nil, fmt.Errorf("nvidia: %s %s: %w", a.o.Program, args[0], err)
	case out.Code == ExitNoDevices:
		return nil, fmt.Errorf("%w: %s", ErrNoDevices, plain(out.Stderr))
	case out.Code != 0:
		return nil, fmt.Errorf("nvidia: %s %s: exit code %d: %s", a.o.Program, args[0], out.Code, plain(out.Stderr))
	case len(out.Stdout) > limit:
		return nil, fmt.Errorf("nvidia: %s %s: expected at most %d bytes, got more", a.o.Program, args[0], limit)
	}
	return out.Stdout, nil
}

// plain is what a program says on standard error as one line of text.
func plain(b []byte) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == '\n' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, string(b[:min(len(b), maxErrors)])))
}
