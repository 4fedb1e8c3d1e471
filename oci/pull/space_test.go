package pull

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layer"
)

// A quota that is used up (which root, as whom layers are unpacked in tests, never
// meets) is a full file system, and so is a spool's.
func TestExplainFull(t *testing.T) {
	t.Parallel()
	p := &puller{Options: Options{Dest: filepath.Join(t.TempDir(), "root")}, space: space{bytes: 1 << 30}}
	rest := []*planned{{Descriptor: oci.Descriptor{Size: 1 << 30}}}
	for _, errno := range []error{unix.EDQUOT, unix.ENOSPC} {
		err := p.explain(&layer.Error{Entry: "f", Err: errno}, layer.Stats{Allocated: 512 << 20}, rest)
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%v: not ENOSPC: %v", errno, err)
		}
		want := `no space: the image needs at least 1536 MiB, 1024 MiB were available when the pull began: entry "f"`
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: want %q, got %v", errno, want, err)
		}
	}
	for _, other := range []error{unix.EIO, &layer.SizeError{Limit: 5, Size: 6}} {
		if err := p.explain(other, layer.Stats{}, rest); err != other {
			t.Errorf("%v was explained: %v", other, err)
		}
	}
}
