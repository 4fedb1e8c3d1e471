package pod

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/coffer-project/coffer/internal/host/accel"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/tee/softtee"
)

// Files beside the software TEE's key: the roots that a trustee lists under
// tee.snp.development_roots and tee.tdx.development_roots to accept its evidence.
const (
	softTEERoot = "softtee-root.pem"
	softTDXRoot = "softtee-tdx-root.pem"
)

// needsProcessor tells whether the software TEE may be what protects the machine.
func needsProcessor(c *runtimeconfig.Config) bool {
	k := sandbox.Kind(c.TEE)
	return k.Software() || k == sandbox.Auto
}

func accelerator(c *runtimeconfig.Config) accel.Mode { return accel.Mode(c.Accelerator) }

// softTEE opens the node's software TEE, which all pods share: its key is made
// once, under a lock on a file.
func softTEE(dir string, now time.Time) (*softtee.Processor, error) {
	p, err := softtee.LoadOrCreate(filepath.Join(dir, "key"), rand.Reader, now)
	if err != nil {
		return nil, err
	}
	for name, text := range map[string][]byte{softTEERoot: p.RootPEM(), softTDXRoot: p.TDXRootPEM()} {
		if err := writeOnce(filepath.Join(dir, name), text); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// writeOnce writes a file in one step unless it is there already.
func writeOnce(file string, text []byte) error {
	if have, err := os.ReadFile(file); err == nil && bytes.Equal(have, text) { //nolint:gosec // the configuration's directory
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
