package softtee

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	stateFile    = "processor.pem"
	platformFile = "platform.pem"
	lockFile     = "lock"
	// maxState bounds a state file; a real one has about 7 kB.
	maxState = 64 << 10
)

// TDXRootFile is the file in a state's directory with what
// [Processor.TDXRootPEM] returns.
const TDXRootFile = "tdx-root.pem"

// LoadOrCreate returns the chip and the TDX platform whose state is in dir, or
// makes there what is missing. The directory and its files are private to the
// user; each file is written in one step, so that it is there wholly or not at
// all. Two processes that create at once end up with the same. The platform's
// collateral is signed anew when it has been half way to its end. random gives the chip's and the guests'
// identifiers; keys always come from the system.
func LoadOrCreate(dir string, random io.Reader, now time.Time) (*Processor, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("softtee: %w", err)
	}
	unlock, err := lock(filepath.Join(dir, lockFile))
	if err != nil {
		return nil, err
	}
	defer unlock()

	path := filepath.Join(dir, stateFile)
	p, err := load(path, now)
	switch {
	case err == nil:
		p.rand = random
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("softtee: %s: %w", path, err)
	default:
		if p, err = newChip(random, now); err != nil {
			return nil, err
		}
		if err := p.save(dir); err != nil {
			return nil, err
		}
	}
	p.intel, err = loadOrCreatePlatform(dir, random, now)
	return p, err
}

// lock takes the advisory lock in path, waiting for another process that is
// creating a chip.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("softtee: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("softtee: locking %s: %w", path, err), f.Close())
	}
	return func() { _ = f.Close() }, nil // closing gives the lock up
}

// save writes the state: the root, the intermediate and the chip's certificate,
// then the chip's key.
func (p *Processor) save(dir string) error {
	key, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		return fmt.Errorf("softtee: %w", err)
	}
	var data []byte
	for _, b := range []pem.Block{
		{Type: "CERTIFICATE", Bytes: p.ark.Raw},
		{Type: "CERTIFICATE", Bytes: p.ask.Raw},
		{Type: "CERTIFICATE", Bytes: p.vcek.Raw},
		{Type: "PRIVATE KEY", Bytes: key},
	} {
		data = append(data, pem.EncodeToMemory(&b)...)
	}
	return replace(dir, stateFile, data)
}

// replace writes a file in one step.
func replace(dir, name string, data []byte) (err error) {
	f, err := os.CreateTemp(dir, name+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("softtee: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = fmt.Errorf("softtee: %w", err)
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, name))
}

// load reads the state. A missing file is fs.ErrNotExist.
func load(path string, now time.Time) (*Processor, error) {
	data, err := readPrivate(path)
	if err != nil {
		return nil, err
	}
	p, err := parseState(data)
	if err != nil {
		return nil, err
	}
	return p, p.check(now)
}

// readPrivate reads a state file that nobody else can read.
func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("expected a regular file of mode 0600, got %s; others may have read the key: remove it, or chmod it", mode)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxState+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxState {
		return nil, fmt.Errorf("expected at most %d bytes", maxState)
	}
	return data, nil
}

func parseState(data []byte) (*Processor, error) {
	p := &Processor{}
	next := func(kind string) ([]byte, error) {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil || b.Type != kind {
			return nil, fmt.Errorf("expected three CERTIFICATE blocks and a PRIVATE KEY block; remove the file to make a new chip")
		}
		return b.Bytes, nil
	}
	for _, c := range []**x509.Certificate{&p.ark, &p.ask, &p.vcek} {
		der, err := next("CERTIFICATE")
		if err != nil {
			return nil, err
		}
		if *c, err = x509.ParseCertificate(der); err != nil {
			return nil, err
		}
	}
	der, err := next("PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok || ec.Curve != elliptic.P384() {
		return nil, fmt.Errorf("expected an EC P-384 key, got %T", key)
	}
	p.key = ec
	return p, nil
}
