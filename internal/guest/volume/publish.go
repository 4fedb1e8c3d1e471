package volume

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// publish lets every name lead to the new directory at once, by renaming one
// link, and then retires what is left of the old. What may fail for want of
// room comes first: names that lead nowhere yet.
func publish(root *os.Root, next string, names map[string]bool, retire func(version string)) error {
	old, err := root.Readlink(dataLink)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for name := range names {
		if err := root.Symlink(filepath.Join(dataLink, name), name); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	const temp = "..data_tmp"
	if err := root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.Symlink(next, temp); err != nil {
		return err
	}
	if err := root.Rename(temp, dataLink); err != nil {
		return err
	}
	// The new files are in effect. What cannot be removed leads nowhere.
	if dir, err := root.Open("."); err == nil {
		entries, _ := dir.ReadDir(-1)
		_ = dir.Close()
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), "..") && !names[e.Name()] {
				_ = root.Remove(e.Name())
			}
		}
	}
	if old != "" {
		retire(old)
	}
	return nil
}
