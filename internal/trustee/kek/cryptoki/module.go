package cryptoki

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coffer-project/coffer/secret"
)

// Module is a loaded library. One process loads one library once and shares it.
type Module struct {
	path string
	m    module
	mu   sync.Mutex // for Initialize and Finalize
	ours bool       // we initialized it, so we may finalize it
	busy atomic.Int64

	// calls is held for reading during calls into the library, which must not
	// be finalized meanwhile.
	calls     sync.RWMutex
	lastReset time.Time // guarded by calls
}

// resetEvery spaces out resets, which take the sessions of all tokens.
const resetEvery = 5 * time.Second

// reset starts the library anew: some find a device that was plugged in, or a
// service that was restarted, only then. It does nothing while calls are under
// way or shortly after another reset.
func (m *Module) reset() {
	if !m.calls.TryLock() {
		return
	}
	defer m.calls.Unlock()
	m.mu.Lock()
	ours := m.ours
	m.mu.Unlock()
	if !ours || time.Since(m.lastReset) < resetEvery {
		return
	}
	m.lastReset = time.Now()
	if err := m.m.Finalize(); err == nil || errors.Is(err, CryptokiNotInitialized) {
		_ = m.initialize() // otherwise the next call says so
	}
}

// Load loads a PKCS#11 library by its absolute path.
func Load(path string) (*Module, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("PKCS#11 module: expected an absolute path, got %q", path)
	}
	d, err := loadDriver(path)
	if err != nil {
		return nil, fmt.Errorf("PKCS#11 module: %w", err)
	}
	m := &Module{path: path, m: d}
	if err := m.initialize(); err != nil {
		d.Unload()
		return nil, err
	}
	return m, nil
}

// initialize may be called again after another user of the library in this
// process finalized it.
func (m *Module) initialize() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.m.Initialize()
	if errors.Is(err, CryptokiAlreadyInitialed) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("initialize PKCS#11 module %s: %w: %w", m.path, ErrUnavailable, err)
	}
	m.ours = true
	return nil
}

// Close unloads the library after its tokens were closed. With a call still
// under way, a hanging one, the library stays and Close says so.
func (m *Module) Close() error {
	if n := m.busy.Load(); n > 0 {
		return fmt.Errorf("PKCS#11 module %s stays loaded: %d calls have not returned", m.path, n)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	if m.ours {
		if err = m.m.Finalize(); errors.Is(err, CryptokiNotInitialized) {
			err = nil
		}
	}
	m.m.Unload()
	return err
}

// PINFile reads a PIN from a file at every login; a line break at the end is
// not part of it.
func PINFile(path string) func() (secret.Bytes, error) {
	return func() (secret.Bytes, error) {
		data, err := os.ReadFile(path)
		if err != nil {
			return secret.Bytes{}, fmt.Errorf("PIN: %w", err)
		}
		n := len(data)
		if n > 0 && data[n-1] == '\n' {
			n--
		}
		if n > 0 && data[n-1] == '\r' {
			n--
		}
		if n == 0 || n > 255 {
			return secret.Bytes{}, fmt.Errorf("PIN: expected 1 to 255 bytes in %s, got %d", path, n)
		}
		return secret.New(data[:n]), nil
	}
}
