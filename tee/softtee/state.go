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
	stateFile = "processor.pem"
	lockFile  = "lock"
	// maxState bounds the state file; a real one has about 7 kB.
	maxState = 64 << 10
)

// LoadOrCreate returns the chip whose state is in dir, or makes one there. The
// directory and its files are private to the user; the state is written in one
// step, so that it is there wholly or not at all. Two processes that create at
// once end up with the same chip. random gives the chip's and the guests'
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
		return p, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("softtee: %s: %w", path, err)
	}
	if p, err = newProcessor(random, now); err != nil {
		return nil, err
	}
	if err := p.save(dir); err != nil {
		return nil, fmt.Errorf("softtee: %w", err)
	}
	return p, nil
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
func (p *Processor) save(dir string) (err error) {
	key, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		return err
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
	f, err := os.CreateTemp(dir, stateFile+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, stateFile))
}

// load reads the state. A missing file is fs.ErrNotExist.
func load(path string, now time.Time) (*Processor, error) {
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
	p, err := parseState(data)
	if err != nil {
		return nil, err
	}
	return p, p.check(now)
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
