package stdio

import (
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func openOutput(name, value string) (*output, error) {
	if value == "" {
		return &output{name: name}, nil
	}
	file, fifo, err := open(name, value, false)
	if err != nil {
		return nil, err
	}
	return &output{name: name, file: file, fifo: fifo}, nil
}

// open opens a path or URI; fifo tells what it is.
func open(name, value string, read bool) (f *os.File, fifo bool, err error) {
	scheme, _, ok := strings.Cut(value, "://")
	if !ok {
		return openPath(name, value, read)
	}
	switch scheme {
	case "fifo", "file":
	default:
		return nil, false, errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf(
			"%s: expected a path, fifo://, file:// or, for output, binary://, got %q; for containerd's CRI plugin set io_type = \"fifo\"", name, value))
	}
	u, err := url.Parse(value)
	if err != nil || u.Host != "" || !filepath.IsAbs(u.Path) {
		return nil, false, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s: expected %s:///ABSOLUTE/PATH, got %q", name, scheme, value))
	}
	if scheme == "fifo" {
		return openPath(name, u.Path, read)
	}
	if read {
		return nil, false, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s: expected a FIFO, got %q", name, value))
	}
	return openFile(name, u.Path)
}

// openFile opens a log file, and makes it.
func openFile(name, path string) (*os.File, bool, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, false, fmt.Errorf("%s: %w", name, err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", name, err)
	}
	return f, false, nil
}

// openPath opens a FIFO, or something else that is there. O_NONBLOCK keeps the
// opening from waiting for a peer and lets the runtime poll it.
func openPath(name, path string, read bool) (*os.File, bool, error) {
	if !filepath.IsAbs(path) {
		return nil, false, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s: expected an absolute path, got %q", name, path))
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", name, err)
	}
	fifo := info.Mode().Type() == fs.ModeNamedPipe
	flags := os.O_WRONLY | os.O_APPEND
	switch {
	case fifo:
		flags = os.O_RDWR
	case read:
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", name, err)
	}
	return f, fifo, nil
}
