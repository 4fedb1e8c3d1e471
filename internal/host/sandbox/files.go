package sandbox

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/coffer-project/coffer/internal/host/vmm"
)

// imageFile is a file that a machine starts with. It was read through the
// descriptor that the emulator inherits: another file that takes its name
// meanwhile does not matter, and the emulator reads it from the page cache,
// which all machines of the image share.
//
// Whoever writes to the file in place, between the reading and the boot, has
// something else booted than what was read. With a hardware TEE the measurement
// then differs, which the relying party notices: the emulator hashes what it
// hands over. With the software TEE, whose measurement is of what was read and
// whose word is only as good as its host, unchanged notices it. A file that is
// cut short ends the emulator (SIGBUS), and with it the machine.
type imageFile struct {
	file     *os.File
	size     int64
	modified time.Time
}

// hold keeps an open file with what tells that it was written to.
func hold(f *os.File) (imageFile, error) {
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: expected a regular file, got %s", f.Name(), info.Mode().Type())
	}
	if err != nil {
		return imageFile{}, errors.Join(err, f.Close())
	}
	return imageFile{file: f, size: info.Size(), modified: info.ModTime()}, nil
}

func (i imageFile) input() vmm.Input { return vmm.Input{File: i.file} }

// unchanged returns an error when the file was written to since hold.
func (i imageFile) unchanged() error {
	info, err := i.file.Stat()
	if err != nil {
		return err
	}
	if info.Size() != i.size || !info.ModTime().Equal(i.modified) {
		return fmt.Errorf("%s was written to while a machine booted from it: what runs may not be what was checked (replace files of an image by renaming new ones over them)", i.file.Name())
	}
	return nil
}

// files are those that are open.
func (i *Image) files() []imageFile {
	var open []imageFile
	for _, f := range []imageFile{i.firmware, i.kernel, i.initrd} {
		if f.file != nil {
			open = append(open, f)
		}
	}
	return open
}

// unchanged returns an error when one of the files was written to since
// LoadImage.
func (i *Image) unchanged() error {
	var problems []error
	for _, f := range i.files() {
		problems = append(problems, f.unchanged())
	}
	return errors.Join(problems...)
}

// Close closes the image's files. What was read from them stays.
func (i *Image) Close() error {
	var problems []error
	for _, f := range i.files() {
		problems = append(problems, f.file.Close())
	}
	i.firmware, i.kernel, i.initrd = imageFile{}, imageFile{}, imageFile{}
	return errors.Join(problems...)
}
