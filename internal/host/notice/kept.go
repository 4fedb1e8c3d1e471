package notice

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// KeptName is the directory below a state directory in which the notices of pods
// that have ended wait until somebody has told them. It is no namespace of
// containerd: those begin with a letter or a digit.
const KeptName = "_ended"

// Bounds of what is kept below a state directory; the oldest go first.
const (
	MaxKept      = 256            // files
	MaxKeptBytes = 4 << 20        // of them all
	MaxKeptAge   = 24 * time.Hour // since the pod's end
	keptSuffix   = ".jsonl"       // of their names
	keptList     = 4 * MaxKept    // how many are looked at
)

// Ended is what is kept of a pod.
type Ended struct {
	// File names it for [Drop].
	File string
	// At is when the pod ended.
	At      time.Time
	Notices []Notice
}

// Keep takes the notices of a pod that ends out of its directory,
// STATE/NAMESPACE/ID, if they are to be told in Kubernetes. It is called before
// the directory is removed; after an error they are still there. Two sandboxes of
// a pod with the same notices leave them once.
func Keep(podDir string, now time.Time) error {
	if err := keep(podDir, now); err != nil {
		return fmt.Errorf("keep the notices of a pod that ends: %w", err)
	}
	return nil
}

func keep(podDir string, now time.Time) error {
	root, err := os.OpenRoot(filepath.Dir(filepath.Dir(podDir)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing is written to it
	file := path.Join(filepath.Base(filepath.Dir(podDir)), filepath.Base(podDir), FileName)
	all, err := read(root, file)
	if err != nil || !slices.ContainsFunc(all, func(n Notice) bool { return n.Pod.Kubernetes() }) {
		return err
	}
	if err := root.Mkdir(KeptName, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := root.Chtimes(file, now, now); err != nil {
		return err
	}
	if err := root.Rename(file, path.Join(KeptName, keptName(all))); err != nil {
		return err
	}
	return prune(root, now)
}

// keptName is the same for the same notices.
func keptName(all []Notice) string {
	h := sha256.New()
	for _, n := range all {
		_, _ = io.WriteString(h, n.Key())
	}
	return hex.EncodeToString(h.Sum(nil)[:16]) + keptSuffix
}

// Prune removes what is too much or too old below a state directory.
func Prune(stateDir string, now time.Time) error {
	root, err := os.OpenRoot(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing is written to it
	return prune(root, now)
}

func prune(root *os.Root, now time.Time) error {
	files, err := kept(root)
	problems := []error{err}
	bytes := int64(0)
	for i, f := range files {
		bytes += f.Size()
		if i < MaxKept && bytes <= MaxKeptBytes && fresh(f, now) {
			continue
		}
		if err := root.Remove(path.Join(KeptName, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// fresh tells that a file is to be told yet.
func fresh(f fs.FileInfo, now time.Time) bool { return now.Sub(f.ModTime()) <= MaxKeptAge }

// kept are the files, the newest first.
func kept(root *os.Root) ([]fs.FileInfo, error) {
	all, err := entries(root, KeptName, keptList)
	var files []fs.FileInfo
	for _, e := range all {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && strings.HasSuffix(e.Name(), keptSuffix) {
			files = append(files, info)
		}
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	return files, err
}

// Kept reads what is kept below a state directory, the oldest first. What can be
// read is returned also with an error.
func Kept(stateDir string, now time.Time) ([]Ended, error) {
	root, err := os.OpenRoot(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	defer root.Close() //nolint:errcheck // only read
	files, err := kept(root)
	problems := []error{err}
	var all []Ended
	for _, f := range slices.Backward(files[:min(len(files), MaxKept)]) {
		if !fresh(f, now) {
			continue
		}
		notices, err := read(root, path.Join(KeptName, f.Name()))
		problems = append(problems, err)
		if err == nil {
			all = append(all, Ended{File: f.Name(), At: f.ModTime(), Notices: notices})
		}
	}
	if err := errors.Join(problems...); err != nil {
		return all, fmt.Errorf("notices of pods that have ended, below %s: %w", stateDir, err)
	}
	return all, nil
}

// Drop removes what has been told.
func Drop(stateDir, file string) error {
	if file != filepath.Base(file) || !strings.HasSuffix(file, keptSuffix) {
		return fmt.Errorf("notices of a pod that has ended: expected a file's name, got %.80q", file)
	}
	root, err := os.OpenRoot(stateDir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing is written to it
	if err := root.Remove(path.Join(KeptName, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
