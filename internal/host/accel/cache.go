package accel

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/coffer-project/coffer/internal/host/vmm"
	"github.com/coffer-project/coffer/internal/strictjson"
)

// Bounds of the cache.
const (
	maxEntryBytes = 16 << 10
	maxEntries    = 32
)

// cache is a directory of verdicts, one file each. The zero cache is empty
// and stays so.
type cache struct{ dir string }

// entry is a cached verdict.
type entry struct {
	Accelerator vmm.Accelerator `json:"accelerator"`
	Reason      string          `json:"reason"`
}

func (c cache) path(key string) string { return filepath.Join(c.dir, key+".json") }

// load returns a verdict. What cannot be read is as good as absent: the probe
// then runs again and replaces it.
func (c cache) load(key string) (Verdict, bool) {
	if c.dir == "" {
		return Verdict{}, false
	}
	info, err := os.Stat(c.path(key))
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxEntryBytes {
		return Verdict{}, false
	}
	data, err := os.ReadFile(c.path(key))
	if err != nil {
		return Verdict{}, false
	}
	e, err := parseEntry(data)
	if err != nil {
		return Verdict{}, false
	}
	return Verdict{Accelerator: e.Accelerator, Reason: e.Reason, Cached: true}, true
}

func parseEntry(data []byte) (entry, error) {
	var e entry
	if err := strictjson.Decode(data, &e, strictjson.Limits{Bytes: maxEntryBytes, Depth: 2}); err != nil {
		return entry{}, err
	}
	if e.Accelerator != vmm.KVM && e.Accelerator != vmm.TCG {
		return entry{}, errors.New("accelerator: expected kvm or tcg")
	}
	return e, nil
}

// store keeps a verdict, in one step: a reader sees all of it or nothing.
func (c cache) store(key string, v Verdict) error {
	if c.dir == "" {
		return nil
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	c.prune()
	data, err := json.Marshal(entry{v.Accelerator, v.Reason})
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(c.dir, ".verdict-*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), c.path(key))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// prune empties a cache that has grown: entries of earlier boots are never
// read again, and a verdict is cheap to find out anew.
func (c cache) prune() {
	old, err := filepath.Glob(filepath.Join(c.dir, "*.json"))
	if err != nil || len(old) < maxEntries {
		return
	}
	for _, path := range old {
		_ = os.Remove(path)
	}
}
