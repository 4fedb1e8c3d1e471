// Package podstate is what a pod's shim writes down so that somebody else can
// clean up after it.
//
// Every pod has one directory below the configured state directory. In it are
// a small file, state.json, and whatever else the pod needs while it lives.
// The shim updates the file before it makes something that would outlive it:
// processes with the moment they started, the network namespace with its taps,
// files elsewhere. [Clean] takes a directory and removes all of that, the
// directory last. It may be called again and again, by several at once, and
// after any crash.
package podstate

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/host/notice"
)

const (
	fileName = "state.json"
	// fileLimit bounds what is read of it: names and numbers of one pod.
	fileLimit = 1 << 20
	// version of the format. A shim that is newer than the one that wrote the
	// file must still clean up after it.
	version = 1
)

// State is what has to go when the pod goes.
type State struct {
	Version   int    `json:"version"`
	Namespace string `json:"namespace"` // containerd's
	ID        string `json:"id"`        // of the pod
	// Bundle is the directory that containerd made for the pod.
	Bundle string `json:"bundle"`
	// Socket is the path of the shim's socket.
	Socket string  `json:"socket"`
	Shim   Process `json:"shim"`
	// Driver is what the machine is, as the configuration calls it.
	Driver string `json:"driver,omitempty"`
	// Machines are the processes of the virtual machine.
	Machines []Process `json:"machines,omitempty"`
	// NetNS is the network namespace that has taps of ours.
	NetNS string `json:"netns,omitempty"`
	// Cgroups are control groups that were made for the pod, its own first.
	Cgroups []string `json:"cgroups,omitempty"`
	// Files are files and directories outside of the pod's directory.
	Files []string `json:"files,omitempty"`
	// Exits are how containers ended, by their ids.
	Exits map[string]Exit `json:"exits,omitempty"`
}

// Exit is how a container ended.
type Exit struct {
	Status uint32    `json:"status"`
	PID    uint32    `json:"pid"`
	At     time.Time `json:"at"`
}

// identifier is what containerd allows for ids and namespaces, and so what may
// become part of a path: containerd/containerd v2 pkg/identifiers.
var identifier = regexp.MustCompile(`^[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*$`)

// CheckID refuses what is not an identifier of containerd.
func CheckID(field, id string) error {
	const limit = 76
	if len(id) > limit || !identifier.MatchString(id) {
		return fmt.Errorf("%s: expected letters and digits with single '.', '_' or '-' between them, at most %d bytes, got %.80q", field, limit, id)
	}
	return nil
}

// Dir is the directory of a pod. It is not made.
func Dir(root, namespace, id string) (string, error) {
	if err := errors.Join(CheckID("namespace", namespace), CheckID("pod id", id)); err != nil {
		return "", err
	}
	if !filepath.IsAbs(root) {
		return "", fmt.Errorf("state directory: expected an absolute path, got %q", root)
	}
	return filepath.Join(root, namespace, id), nil
}

// File is the state of a living pod. Its methods are safe for concurrent use.
type File struct {
	dir string

	mu    sync.Mutex
	state State
	gone  bool
}

// Create makes the pod's directory and writes its first state.
func Create(dir string, s State) (*File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("pod directory: %w", err)
	}
	s.Version = version
	f := &File{dir: dir, state: s}
	return f, f.Update(func(*State) {})
}

// Dir is the pod's directory.
func (f *File) Dir() string { return f.dir }

// Update changes the state and returns once it is written. The change is kept
// even when writing fails, for the next attempt.
func (f *File) Update(change func(*State)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.state)
	if f.gone {
		return nil
	}
	return f.write()
}

func (f *File) write() error {
	data, err := json.Marshal(f.state)
	if err != nil {
		return fmt.Errorf("pod state: %w", err)
	}
	temp := filepath.Join(f.dir, "."+fileName)
	// The whole file or the one before: readers come after crashes. It does
	// not have to outlive a loss of power, which also ends all it names.
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return fmt.Errorf("pod state: %w", err)
	}
	if err := os.Rename(temp, filepath.Join(f.dir, fileName)); err != nil {
		return fmt.Errorf("pod state: %w", err)
	}
	return nil
}

// Remove removes the pod's directory: the caller has removed everything else. The
// pod's notices are kept, see notice.Keep.
func (f *File) Remove() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = true
	return removeDir(f.dir)
}

// removeDir removes a pod's directory. Its notices are worth less than an end in
// order: should they be lost, the node's log has them.
func removeDir(dir string) error {
	_ = notice.Keep(dir, time.Now())
	return os.RemoveAll(dir)
}

// Leave is Remove where nobody has asked yet how containers ended: their ends
// stay in the state, for `delete`, and nothing else does.
func (f *File) Leave() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone = true
	s := &f.state
	if len(s.Exits) == 0 {
		return removeDir(f.dir)
	}
	_ = notice.Keep(f.dir, time.Now())
	s.Socket, s.NetNS, s.Machines, s.Cgroups, s.Files = "", "", nil, nil, nil
	problems := []error{f.write()}
	entries, err := os.ReadDir(f.dir)
	problems = append(problems, err)
	for _, e := range entries {
		if e.Name() != fileName {
			problems = append(problems, os.RemoveAll(filepath.Join(f.dir, e.Name())))
		}
	}
	return errors.Join(problems...)
}

// ErrBroken says that a state is not readable JSON. It is only ever replaced
// whole, so that this is what a loss of power leaves, which also ended all that
// it named.
var ErrBroken = errors.New("the pod's state is broken")

// Read reads the state in a pod's directory. Without one the error is
// fs.ErrNotExist.
func Read(dir string) (State, error) {
	var s State
	file, err := os.OpenFile(filepath.Join(dir, fileName), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return s, err
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, fileLimit+1))
	if err != nil {
		return s, err
	}
	if len(data) > fileLimit {
		return s, fmt.Errorf("%w: %s: expected at most %d bytes, got more", ErrBroken, file.Name(), fileLimit)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("%w: %s: %w", ErrBroken, file.Name(), err)
	}
	return s, nil
}

// exists tells a missing directory from one that cannot be looked at.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
