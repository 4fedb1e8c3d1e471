package volumes

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
)

// files sends the files of one volume. It is for one goroutine at a time.
type files struct {
	name string
	read func() (*snapshot, error)
	// version of the last attempt: an answer may be lost, so none is used twice.
	version uint64
	sent    [sha256.Size]byte // what the guest has, if any
	any     bool
}

// errGone says that the kubelet has removed a volume.
var errGone = errors.New("the kubelet has removed the volume")

// send brings the guest up to date, if it is not.
func (f *files) send(ctx context.Context, h Host) error {
	s, err := f.read()
	if errors.Is(err, fs.ErrNotExist) && f.any {
		return errGone // the pod is ending
	}
	if err != nil {
		return err
	}
	digest := s.digest()
	if f.any && digest == f.sent {
		return nil
	}
	f.version++
	if err := put(ctx, h, f.name, f.version, s); err != nil {
		return fmt.Errorf("the guest did not take the files: %w", err)
	}
	f.sent, f.any = digest, true
	return nil
}

// final tells that the same attempt can only fail again.
func final(err error) bool {
	return errors.Is(err, errContent) || errors.Is(err, errGone) || refused(err)
}
