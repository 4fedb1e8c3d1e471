package notice

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// FileName is the name of the file in a pod's directory: a JSON object on each
// line.
const FileName = "notices.jsonl"

// more stands for what comes after the last of a reason.
const more = "there is more of this kind, which only the node's log has (journalctl -u containerd)"

// File is the notices of a living pod. Its methods are safe for concurrent use.
type File struct {
	dir string
	now func() time.Time

	mu      sync.Mutex
	known   map[string]bool // by key
	each    map[Reason]int
	text    []byte // of the file
	unsaved bool   // the file has less
	closed  bool
}

// New is the notices of the pod with a directory. The file is made with the
// first of them.
func New(dir string, now func() time.Time) *File {
	return &File{dir: dir, now: now, known: map[string]bool{}, each: map[Reason]int{}}
}

// Add writes a notice down, and reports whether it is a new one. One that is
// known, or one too many, or one after Close, is not; of those that are too many
// the file says so. The text is made safe. What could not be written is kept and
// written with the next.
func (f *File) Add(pod Pod, reason Reason, message string) (bool, error) {
	n := Notice{Pod: pod, Reason: reason, Message: Clean(message), At: f.now().UTC().Truncate(time.Millisecond)}
	if err := n.check(); err != nil {
		return false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed || f.known[n.Key()] || f.each[reason] >= MaxEach || len(f.known) >= MaxAll {
		return false, nil
	}
	if f.each[reason] == MaxEach-1 || len(f.known) == MaxAll-1 {
		n.Message = more
	}
	line, err := encode(n)
	if err != nil {
		return false, err
	}
	f.known[n.Key()] = true
	f.each[reason]++
	f.text = append(f.text, line...)
	return true, f.write()
}

// Close lets nothing be written any more, so that the directory can be removed.
// What could not be written is tried for the last time.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	if !f.unsaved {
		return nil
	}
	return f.write()
}

func encode(n Notice) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(n); err != nil {
		return nil, fmt.Errorf("notice: %w", err)
	}
	if b.Len() > maxLine {
		return nil, fmt.Errorf("notice: expected at most %d bytes, got %d", maxLine, b.Len())
	}
	return b.Bytes(), nil
}

// write replaces the file, so that a reader sees this one or the one before.
func (f *File) write() error {
	f.unsaved = true
	temp := filepath.Join(f.dir, "."+FileName)
	if err := os.WriteFile(temp, f.text, 0o600); err != nil {
		return fmt.Errorf("notices: %w", err)
	}
	if err := os.Rename(temp, filepath.Join(f.dir, FileName)); err != nil {
		return fmt.Errorf("notices: %w", err)
	}
	f.unsaved = false
	return nil
}
