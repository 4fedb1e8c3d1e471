package program

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/reaper"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/nvidia/nvidiaattest"
)

// nvidiaProgram makes evidence of GPUs, in images that have it.
const nvidiaProgram = "/usr/lib/coffer/coffer-nvidia-attester"

// maxComplaint is how much of a program's standard error is kept.
const maxComplaint = 4 << 10

// devices are the attesters of what may be attached to the guest: none in an
// image without the program that asks the driver.
func devices(program string, run nvidiaattest.Run) ([]tee.Attester, error) {
	if _, err := os.Stat(program); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	a, err := nvidiaattest.New(nvidiaattest.Options{Program: program, Run: run})
	if err != nil {
		return nil, err
	}
	return []tee.Attester{gpus{a}}, nil
}

// gpus has no evidence, instead of an error, where there is no GPU. One that does
// not attest stays an error.
type gpus struct{ *nvidiaattest.Attester }

// Evidence implements [tee.Attester] as [kbs.ClientOptions] wants it of devices.
func (g gpus) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	return g.AdditionalEvidence(ctx, reportData)
}

// runThrough runs programs as children that the reaper collects.
func runThrough(r *reaper.Reaper) nvidiaattest.Run {
	return func(ctx context.Context, path string, args []string, limit int) (nvidiaattest.Output, error) {
		out, err := runProgram(ctx, r, path, args, limit)
		if errors.Is(err, fs.ErrNotExist) {
			// The program may be there and its loader not.
			if _, gone := os.Stat(path); gone == nil {
				err = fmt.Errorf("it cannot be started: %v; is the loader that it is linked for in the image?", err) //nolint:errorlint // it is not absent
			}
		}
		return out, err
	}
}

// collected is what came out of a pipe.
type collected struct {
	data []byte
	err  error
}

func runProgram(ctx context.Context, r *reaper.Reaper, path string, args []string, limit int) (out nvidiaattest.Output, err error) {
	if err := ctx.Err(); err != nil {
		return out, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return out, err
	}
	defer null.Close() //nolint:errcheck // read only
	var ours, theirs [2]*os.File
	defer func() {
		for _, f := range ours {
			_ = f.Close() // ends the readers as well
		}
	}()
	for i := range ours {
		if ours[i], theirs[i], err = os.Pipe(); err != nil {
			_ = theirs[0].Close()
			return out, err
		}
	}
	p, err := r.Start(path, append([]string{filepath.Base(path)}, args...), &os.ProcAttr{
		Dir: "/", Env: []string{"PATH=/usr/bin"}, Files: []*os.File{null, theirs[0], theirs[1]},
	})
	for _, f := range theirs {
		_ = f.Close() // the child has its copies
	}
	if err != nil {
		return out, err
	}
	said, complained := make(chan collected, 1), make(chan collected, 1)
	go collect(ours[0], limit+1, said)
	go collect(ours[1], maxComplaint, complained)
	// One that says too much, or whose time is over, is not waited for: a driver
	// may hold it where no signal ends it.
	var stdout collected
	select {
	case stdout = <-said:
	case <-ctx.Done():
	}
	if ctx.Err() != nil || len(stdout.data) > limit {
		err := p.Signal(unix.SIGKILL)
		if errors.Is(err, reaper.ErrExited) {
			err = nil
		}
		return nvidiaattest.Output{Stdout: stdout.data}, errors.Join(context.Cause(ctx), err)
	}
	status, err := p.Wait(ctx)
	if err != nil {
		return out, errors.Join(err, p.Signal(unix.SIGKILL))
	}
	if status.Signal != 0 {
		return out, fmt.Errorf("it was killed by signal %d", status.Signal)
	}
	out = nvidiaattest.Output{Code: status.Code, Stdout: stdout.data}
	select {
	case c := <-complained:
		out.Stderr = c.data
	case <-ctx.Done():
	}
	return out, stdout.err
}

// collect reads at most limit bytes, and drops the rest: a program that writes
// on must not wait for a reader.
func collect(f io.Reader, limit int, done chan<- collected) {
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)))
	done <- collected{data, err}
	if err == nil {
		_, _ = io.Copy(io.Discard, f)
	}
}
