package collateral

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Store is a directory of collateral in the layout that docs/collateral.md
// describes. It is safe for concurrent use, also by several processes: files
// come up whole, by renaming, and never change in place.
//
// A store verifies nothing; [Client] checks whatever it reads from one.
type Store struct {
	dir  string
	root *os.Root // nil: there is no such directory yet
}

// OpenStore opens a directory for reading; nothing in it is changed. One that is
// not there is empty.
func OpenStore(dir string) (*Store, error) {
	root, err := os.OpenRoot(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return &Store{dir: dir, root: root}, nil
}

// createStore opens a directory for writing, and makes it where it is missing.
func createStore(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s, err := OpenStore(dir)
	if err != nil {
		return nil, err
	}
	return s, s.sweep()
}

// Close releases the directory.
func (s *Store) Close() error {
	if s.root == nil {
		return nil
	}
	return s.root.Close()
}

const (
	tempPrefix = ".new-"
	tempAge    = time.Hour
	// damagedDir is where files go that are not what was written, so that
	// somebody can look at them.
	damagedDir = "damaged"
	maxDamaged = 100
)

// sweep removes what writers that died have left.
func (s *Store) sweep() error {
	return fs.WalkDir(s.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasPrefix(d.Name(), tempPrefix) {
			return err
		}
		if info, err := d.Info(); err == nil && time.Since(info.ModTime()) > tempAge {
			_ = s.root.Remove(name) // another process may have been faster
		}
		return nil
	})
}

// path is the item's file in the layout, relative to the store.
func (i Item) path() string {
	parts := strings.Split(i.ID, "/")
	flat := strings.Join(parts, "-") + ".json"
	switch i.Kind {
	case VCEK: // as Trustee's offline store has it
		return "vcek/" + parts[1] + "/" + parts[2] + "_vcek.der"
	case AMDChain:
		return "amd/chain/" + flat
	case AMDCRL:
		return "amd/crl/" + flat
	case TCBInfo:
		return "intel/tcb/" + flat
	case QEIdentity:
		return "intel/qe/" + flat
	case PCKCRL, RootCRL:
		return "intel/crl/" + flat
	case RIM:
		return "nvidia/rim/" + flat
	case OCSP:
		return "nvidia/ocsp/" + flat
	}
	return "hygon/hsk_cek/" + flat
}

// sidecar is the file that says where a VCEK came from.
func sidecar(name string) string { return name + ".json" }

// damagedError is a file that is not what was written.
type damagedError struct {
	file string
	err  error
}

func (e *damagedError) Error() string { return e.file + ": " + e.err.Error() }
func (e *damagedError) Unwrap() error { return e.err }

// Load returns what the store has of an item, unverified, or an error that is
// fs.ErrNotExist.
func (s *Store) Load(i Item) (*Entry, error) {
	if s.root == nil {
		return nil, fs.ErrNotExist
	}
	name := i.path()
	limit := int64(maxEnvelope)
	if i.Kind == VCEK {
		limit = MaxBody
	}
	data, modified, err := s.read(name, limit)
	if errors.Is(err, fs.ErrNotExist) && i.Kind == VCEK {
		// Trustee's offline store: one certificate for all patch levels of a chip.
		name = path.Join(path.Dir(name), "vcek.der")
		data, modified, err = s.read(name, limit)
	}
	if err != nil {
		return nil, err
	}
	file := filepath.Join(s.dir, filepath.FromSlash(name))
	if i.Kind != VCEK {
		e, err := decodeEntry(data, nil)
		if err == nil && e.Item != i {
			err = fmt.Errorf("item: expected %s, got %s", i, e.Item)
		}
		if err != nil {
			return nil, &damagedError{file, err}
		}
		return e, nil
	}
	if about, _, err := s.read(sidecar(name), maxEnvelope); err == nil {
		if e, err := decodeEntry(about, data); err == nil && e.Item == i {
			return e, nil
		}
	}
	return &Entry{Item: i, Body: data, Source: file, Fetched: modified}, nil
}

func (s *Store) read(name string, limit int64) ([]byte, time.Time, error) {
	f, err := s.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer func() { _ = f.Close() }() // read only
	info, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, time.Time{}, &damagedError{name, fmt.Errorf("expected a file of at most %d bytes", limit)}
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = &damagedError{name, fmt.Errorf("expected a file of at most %d bytes", limit)}
	}
	return data, info.ModTime(), err
}

// save writes an entry.
func (s *Store) save(e *Entry) error {
	name := e.Item.path()
	if err := s.root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return err
	}
	about, err := e.encode(e.Item.Kind != VCEK)
	if err != nil {
		return err
	}
	if e.Item.Kind != VCEK {
		return s.write(name, about)
	}
	// The certificate proves itself; what is beside it only says where it came
	// from, and is ignored where it does not fit.
	if err := s.write(name, e.Body); err != nil {
		return err
	}
	return s.write(sidecar(name), about)
}

// write makes a file whole or not at all, also when the machine stops.
func (s *Store) write(name string, data []byte) error {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return err
	}
	temp := path.Join(path.Dir(name), tempPrefix+hex.EncodeToString(random[:]))
	f, err := s.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = s.root.Rename(temp, name)
	}
	if err != nil {
		_ = s.root.Remove(temp)
		return err
	}
	return s.syncDir(path.Dir(name))
}

func (s *Store) syncDir(name string) error {
	d, err := s.root.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	if e := d.Close(); err == nil {
		err = e
	}
	return err
}

// setAside moves an item's damaged file away, where somebody can look at it.
func (s *Store) setAside(i Item) error {
	if err := s.root.MkdirAll(damagedDir, 0o700); err != nil {
		return err
	}
	if old, err := fs.ReadDir(s.root.FS(), damagedDir); err == nil && len(old) >= maxDamaged {
		_ = s.root.Remove(path.Join(damagedDir, old[0].Name())) // the oldest: names begin with the time
	}
	name := i.path()
	to := fmt.Sprintf("%s-%s", time.Now().UTC().Format("20060102T150405.000000000"), strings.ReplaceAll(name, "/", "_"))
	return s.root.Rename(name, path.Join(damagedDir, to))
}
