// Package image keeps the pod's images, in the guest's own memory or on a disk
// that only the guest can read, and gives each container a root file system of
// its own on top of one.
//
// An image is pulled once and unpacked to one directory; containers get an
// overlay with a private writable layer, so that a restarted container starts
// from the image and two containers of one image do not see each other.
package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/pull"
	"github.com/coffer-project/coffer/oci/signature"
)

const (
	// reserve is left free on the image store, for what containers write.
	reserve = 16 << 20
	// maxPulls is how many images are pulled at once.
	maxPulls = 2
	// maxLies is how often a pull is begun anew without the source that lied.
	maxLies = 4
)

// Request says what to pull and how it is checked.
type Request struct {
	// Ref names the image. Without a digest its tag is resolved first, which
	// only an unsealed pod may ask for: the caller sees to that.
	Ref     oci.Reference
	Fetcher oci.Fetcher
	Policy  *signature.Policy
	Keys    crypt.KeySource
	// Concurrency is how many layers are fetched at once; 0: the default.
	Concurrency int
	// Progress may be nil.
	Progress func(pull.Progress)
}

// Image is an image that was pulled.
type Image struct {
	// Digest is the one that was asked for, of an index or of a manifest;
	// ManifestDigest is the platform manifest that was unpacked.
	Digest, ManifestDigest oci.Digest
	Config                 *oci.ImageConfig
	// Root is the unpacked image. It must not be written.
	Root string

	pulled *pull.Image
}

// Store keeps images and root file systems. It is safe for concurrent use.
type Store struct {
	dir   string
	slots chan struct{} // of pulls, each of which takes memory

	mu     sync.Mutex
	images map[oci.Digest]*entry
}

// entry is an image or the attempt to get it. Its turn is held meanwhile, and
// users, which the store's lock guards, counts who has it or waits for it.
type entry struct {
	turn  chan struct{}
	users int
	image *Image
}

// NewStore keeps images below dir, which should be a file system of its own,
// mounted nodev: its free space bounds what is pulled. It may be a tmpfs or a
// disk that the host can neither read nor change.
func NewStore(dir string) (*Store, error) {
	for _, sub := range []string{"images", "spool", "containers"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	return &Store{dir: dir, slots: make(chan struct{}, maxPulls), images: map[oci.Digest]*entry{}}, nil
}

// Pull returns the image, from the network the first time. Requests for the
// same one wait for each other. The layers of an image that was verified stay,
// and stay for every repository; but whether this request may have them is
// decided anew: by its signature policy, under its reference, and by whether it
// is given the keys of encrypted layers.
func (s *Store) Pull(ctx context.Context, req Request) (*Image, error) {
	ref := req.Ref
	if ref.Digest == "" {
		desc, err := req.Fetcher.Resolve(ctx, ref)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", ref, err)
		}
		ref.Digest = desc.Digest
	}
	ref = ref.WithDigest(ref.Digest)
	e := s.enter(ref.Digest)
	defer s.leave(ref.Digest, e)
	select {
	case <-e.turn:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { e.turn <- struct{}{} }()
	if e.image != nil {
		options := pull.Options{Ref: ref, Fetcher: req.Fetcher, Policy: req.Policy, Keys: req.Keys}
		if err := pull.Recheck(ctx, options, e.image.pulled); err != nil {
			return nil, err
		}
		return e.image, nil
	}
	img, err := s.pull(ctx, ref, req)
	if err != nil {
		return nil, err
	}
	e.image = img
	return img, nil
}

func (s *Store) enter(d oci.Digest) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.images[d]
	if e == nil {
		e = &entry{turn: make(chan struct{}, 1)}
		e.turn <- struct{}{}
		s.images[d] = e
	}
	e.users++
	return e
}

// leave forgets an attempt that nobody has succeeded with.
func (s *Store) leave(d oci.Digest, e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.users--; e.users == 0 && e.image == nil {
		delete(s.images, d)
	}
}

// pull pulls the image, anew if a cache or a mirror before the registry gave
// something else than was asked for: the fetcher asks that one no more then, but
// another may lie, too.
func (s *Store) pull(ctx context.Context, ref oci.Reference, req Request) (*Image, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for lies := 0; ; lies++ {
		img, err := s.pullOnce(ctx, ref, req)
		if !errors.Is(err, oci.ErrLied) || lies == maxLies || ctx.Err() != nil {
			return img, err
		}
	}
}

func (s *Store) pullOnce(ctx context.Context, ref oci.Reference, req Request) (*Image, error) {
	inMemory, err := s.inMemory()
	if err != nil {
		return nil, err
	}
	o := pull.Options{
		Ref: ref, Fetcher: req.Fetcher, Policy: req.Policy, Keys: req.Keys,
		Dest: filepath.Join(s.dir, "images", ref.Digest.Algorithm()+"-"+ref.Digest.Hex()), Reserve: reserve,
		Limits: pull.Limits{Concurrency: req.Concurrency}, Progress: req.Progress,
	}
	if !inMemory {
		o.Spool = filepath.Join(s.dir, "spool")
	}
	pulled, err := pull.Pull(ctx, o)
	if err != nil {
		if _, ok := errors.AsType[*pull.SpaceError](err); ok {
			err = fmt.Errorf("%w; %s", err, remedy(inMemory))
		}
		return nil, err
	}
	return &Image{Digest: ref.Digest, ManifestDigest: pulled.ManifestDigest, Config: pulled.Config, Root: o.Dest, pulled: pulled}, nil
}

func remedy(inMemory bool) string {
	if inMemory {
		return "images are kept in the guest's memory: give the pod more of it, or a scratch disk"
	}
	return "images are kept on the pod's scratch disk: give it a larger one"
}

// inMemory says whether the store's file system is memory.
func (s *Store) inMemory() (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return false, fmt.Errorf("image store: %w", err)
	}
	return st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC, nil
}

// Mount makes a container's root file system: the image with a writable layer
// on top. The id must be a valid container id. It is removed by [Store.Unmount].
func (s *Store) Mount(img *Image, id string) (_ string, err error) {
	dir := filepath.Join(s.dir, "containers", id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("root of container %s: %w", id, err)
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	upper, work, root := filepath.Join(dir, "upper"), filepath.Join(dir, "work"), filepath.Join(dir, "root")
	for _, d := range []string{upper, work, root} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", fmt.Errorf("root of container %s: %w", id, err)
		}
	}
	// The root directory's owner and mode come from the upper layer.
	if err := copyAttributes(img.Root, upper); err != nil {
		return "", fmt.Errorf("root of container %s: %w", id, err)
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", img.Root, upper, work)
	if err := unix.Mount("overlay", root, "overlay", unix.MS_NODEV, options); err != nil {
		return "", fmt.Errorf("root of container %s: mount overlay: %w", id, err)
	}
	return root, nil
}

// Unmount removes a container's root file system and all it has written. One
// that is not there is no error.
func (s *Store) Unmount(id string) error {
	dir := filepath.Join(s.dir, "containers", id)
	err := unix.Unmount(filepath.Join(dir, "root"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("root of container %s: unmount: %w", id, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("root of container %s: %w", id, err)
	}
	return nil
}

func copyAttributes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return err
	}
	if err := unix.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Chmod(to, st.Mode&0o7777)
}

// TmpfsSize is how large the image store may be in a machine with this much
// memory: three quarters of it, and never so much that less than 96 MiB
// stay for the kernel, the agent and the workload's own memory.
func TmpfsSize(memory uint64) uint64 {
	const rest = 96 << 20
	size := memory / 4 * 3
	if memory > rest && memory-size < rest {
		size = memory - rest
	}
	return size
}
