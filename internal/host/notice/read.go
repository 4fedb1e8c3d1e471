package notice

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// maxPods bounds how many directories of pods, and of namespaces, are looked
// at.
const maxPods = 2048

// Parse reads the lines of a file. What is no whole notice is left out, such as a
// line that is not finished; of too many the first count.
func Parse(data []byte) []Notice {
	var all []Notice
	for len(all) < MaxAll {
		line, rest, whole := bytes.Cut(data, []byte("\n"))
		if !whole {
			break
		}
		data = rest
		if n, ok := parseLine(line); ok {
			all = append(all, n)
		}
	}
	return all
}

func parseLine(line []byte) (Notice, bool) {
	var n Notice
	if len(line) >= maxLine || json.Unmarshal(line, &n) != nil {
		return Notice{}, false
	}
	// Whoever prints it may not clean it again.
	n.Message = Clean(n.Message)
	return n, n.check() == nil
}

// Scan reads the notices of all pods below a state directory, in the order of
// containerd's namespaces, the pods' ids, and time. A directory that is not there
// has none. What can be read is returned also with an error.
func Scan(stateDir string) ([]Notice, error) {
	root, err := os.OpenRoot(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	defer root.Close() //nolint:errcheck // only read
	var all []Notice
	var problems []error
	namespaces, err := list(root, ".")
	problems = append(problems, err)
	left := maxPods
	for _, namespace := range namespaces {
		if namespace == KeptName {
			continue
		}
		pods, err := list(root, namespace)
		problems = append(problems, err)
		for _, id := range pods[:min(len(pods), left)] {
			notices, err := read(root, path.Join(namespace, id, FileName))
			all, problems = append(all, notices...), append(problems, err)
		}
		left -= min(len(pods), left)
	}
	if err := errors.Join(problems...); err != nil {
		return all, fmt.Errorf("notices below %s: %w", stateDir, err)
	}
	return all, nil
}

// Dirs lists the directories below a state directory in which files of notices
// are made and changed, and the state directory itself, as paths; none without it.
func Dirs(stateDir string) []string {
	root, err := os.OpenRoot(stateDir)
	if err != nil {
		return nil
	}
	defer root.Close() //nolint:errcheck // only read
	all := []string{stateDir}
	namespaces, _ := list(root, ".")
	for _, namespace := range namespaces {
		all = append(all, path.Join(stateDir, namespace))
		pods, _ := list(root, namespace)
		for _, id := range pods {
			if len(all) < maxPods {
				all = append(all, path.Join(stateDir, namespace, id))
			}
		}
	}
	return all
}

// list is the directories in a directory, sorted; none when it is gone.
func list(root *os.Root, dir string) ([]string, error) {
	all, err := entries(root, dir, maxPods)
	var names []string
	for _, e := range all {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, err
}

// entries are the first of a directory, at most as many as are asked for; none
// when it is gone.
func entries(root *os.Root, dir string, most int) ([]fs.DirEntry, error) {
	f, err := root.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	all, err := f.ReadDir(most)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return all, nil
}

// read reads a file; none when there is none.
func read(root *os.Root, name string) ([]Notice, error) {
	// Not to wait, should it be a pipe.
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: expected a regular file, got %s", name, info.Mode())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, err
	}
	return Parse(data), nil
}
