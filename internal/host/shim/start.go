package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coffer-project/coffer/internal/host/shim/podstate"
)

const (
	// addressFile is where containerd 1.6 looks for the daemon when it is
	// started anew; newer ones have their own bootstrap.json beside it.
	addressFile = "address"
	// stateFile holds the path of the pod's directory, for `delete`, which is
	// not told the runtime's options.
	stateFile = "coffer-state"
)

// start answers with the address of the pod's daemon, which it starts when the
// container is the pod's first.
func (p Program) start(ctx context.Context, proc Process, f flags) error {
	r, err := readRequest(proc.Stdin, proc.getenv, f)
	if err != nil {
		return err
	}
	pod, err := podOf(proc.Dir, f.id)
	if err != nil {
		return err
	}
	dir := proc.SocketDir
	if r.socketDir != "" {
		dir = r.socketDir
	}
	path, err := socketPath(dir, f.address, f.namespace, pod)
	if err != nil {
		return err
	}
	settings, err := p.Configure(r.config)
	if err != nil {
		return err
	}
	state, err := podstate.Dir(settings.StateDir, f.namespace, pod)
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(proc.Dir, stateFile), state); err != nil {
		return err
	}
	if pod != f.id && !reachable(ctx, path) {
		return fmt.Errorf("container %s: the shim of its pod %s does not run any more; the pod has to be made anew", f.id, pod)
	}
	if pod == f.id {
		l := launch{Process: proc, request: r, flags: f, socket: path, state: state, release: p.Release}
		if err := l.run(ctx); err != nil && !errors.Is(err, errListening) {
			return err
		}
	}
	address := unixScheme + path
	if err := writeFile(filepath.Join(proc.Dir, addressFile), address); err != nil {
		return err
	}
	answer, err := r.answer(address)
	if err != nil {
		return err
	}
	_, err = proc.Stdout.Write(answer)
	return err
}

// writeFile writes a small file into a bundle, whole or not at all. Two may at
// once.
func writeFile(path, content string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("bundle: %w", err)
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)) // mode 0600
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}
