package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/podpolicy/kube"
)

// A stub is an image that a node's container runtime pulls instead of the one that
// a guest runs: the same configuration, and one layer with no more than the users
// of the image. Runtimes insist on unpacking the image that a pod names, and make a
// container's arguments, variables and user from its configuration; they cannot
// unpack encrypted layers, and have no use for any.

const (
	// stubTag begins the tags of stubs; the digest of what they stand for follows.
	stubTag = "coffer-host-"
	// stubTagDigits is how much of that digest, in hexadecimal digits.
	stubTagDigits = 12
	// annotationStub of a stub's manifest is the digest of what it stands for.
	annotationStub = "coffer-project.io/stub-of"
)

// Stub is a stub in a registry.
type Stub struct {
	// Digest of the stub.
	Digest string
	// Reference is what a pod names: REPOSITORY:TAG@DIGEST.
	Reference string
}

// PushStub makes the stub of an image that Image has returned for reference, and
// pushes it to the image's repository. uids are the users that containers of the
// image are given besides the image's own. The same image and users give the same
// stub.
func (w *WorkloadImages) PushStub(ctx context.Context, reference string, img *kube.Image, uids []uint32) (*Stub, error) {
	s, err := w.pushStub(ctx, reference, img, uids)
	if err != nil {
		return nil, fmt.Errorf("stub of image %s: %w", reference, err)
	}
	return s, nil
}

func (w *WorkloadImages) pushStub(ctx context.Context, reference string, img *kube.Image, uids []uint32) (*Stub, error) {
	config, ok := w.configs[img.Digest]
	if !ok {
		return nil, errors.New("the image has not been read")
	}
	digest, err := oci.ParseDigest(img.Digest)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(w.spool, "stub-")
	if err != nil {
		return nil, err
	}
	own, err := writeAccounts(ctx, dir, img, uids)
	if err != nil {
		return nil, err
	}
	stub := *config
	stub.Created, stub.Author = "", ""
	stub.Config.User = own
	ref, err := oci.ParseReference(reference)
	if err != nil {
		return nil, err
	}
	client, err := RegistryClient(w.Options)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	repository, err := client.Repository(ref)
	if err != nil {
		return nil, err
	}
	d, err := build.Build(ctx, repository, build.Options{
		Layers: []build.Tree{{Dir: dir, ModTime: time.Unix(0, 0)}}, Config: stub, Compression: oci.Gzip, Spool: w.spool,
		Annotations: map[string]string{annotationStub: img.Digest},
	})
	if err != nil {
		return nil, err
	}
	ref.Tag, ref.Digest = stubTag+digest.Hex()[:stubTagDigits], ""
	if err := repository.Tag(ctx, d, ref.Tag); err != nil {
		return nil, err
	}
	return &Stub{Digest: d.Digest.String(), Reference: ref.Name() + ":" + ref.Tag + "@" + d.Digest.String()}, nil
}

// writeAccounts writes /etc/passwd and /etc/group with what a runtime looks up
// there: the numbers of the image's user, and the groups of all users that
// containers have. It returns the image's user in numbers.
func writeAccounts(ctx context.Context, dir string, img *kube.Image, uids []uint32) (own string, err error) {
	passwd, group, accountsErr := img.Accounts(ctx)
	name, _, _ := strings.Cut(img.Config.User, ":")
	user, err := podpolicy.ResolveUser(img.Config.User, passwd, group)
	switch {
	case err == nil:
		if img.Config.User != "" {
			own = fmt.Sprintf("%d:%d", user.UID, user.GID)
		}
		uids = append(slices.Clone(uids), user.UID)
	case strings.Trim(name, "0123456789") == "":
		own = img.Config.User
	case accountsErr != nil && len(uids) > 0:
		// The layers are encrypted: containers must be given a user in numbers, and
		// the policy's generator has seen to that.
	default:
		return "", errors.Join(err, accountsErr)
	}
	slices.Sort(uids)
	var users, groups bytes.Buffer
	members := map[uint32][]string{}
	for _, uid := range slices.Compact(uids) {
		u, err := podpolicy.ResolveUser(strconv.FormatUint(uint64(uid), 10), passwd, group)
		if err != nil {
			continue // a runtime finds nothing either
		}
		login := "u" + strconv.FormatUint(uint64(uid), 10)
		if uid == 0 {
			login = "root"
		}
		fmt.Fprintf(&users, "%s:x:%d:%d::/:\n", login, uid, u.GID)
		for _, g := range u.Groups {
			members[g] = append(members[g], login)
		}
	}
	for _, g := range slices.Sorted(maps.Keys(members)) {
		fmt.Fprintf(&groups, "g%d:x:%d:%s\n", g, g, strings.Join(members[g], ","))
	}
	etc := filepath.Join(dir, "etc")
	if err := os.Mkdir(etc, 0o755); err != nil {
		return "", err
	}
	return own, errors.Join(os.WriteFile(filepath.Join(etc, "passwd"), users.Bytes(), 0o644), os.WriteFile(filepath.Join(etc, "group"), groups.Bytes(), 0o644))
}

// stubbed is the digest of what an image stands for, if it is a stub.
func stubbed(ctx context.Context, src oci.Fetcher, ref oci.Reference) (oci.Digest, bool, error) {
	_, m, err := build.Inspect(ctx, src, ref, oci.GuestPlatform())
	if err != nil {
		return "", false, err
	}
	text, ok := m.Annotations[annotationStub]
	if !ok {
		return "", false, nil
	}
	d, err := oci.ParseDigest(text)
	if err != nil {
		return "", false, fmt.Errorf("annotation %s: %w", annotationStub, err)
	}
	return d, true, nil
}

// WithStubs has the workload's policy know the stubs, by references of its
// images.
func WithStubs(g *kube.Generated, stubs map[string]*Stub) {
	for reference, img := range g.Images {
		stub := stubs[reference]
		if stub == nil {
			continue
		}
		for i := range g.Policy.Containers {
			if c := &g.Policy.Containers[i].Image; c.Digest == img.Digest && slices.Equal(c.From, img.From) {
				c.Stub = stub.Digest
			}
		}
	}
}

// StubUsers are the users that containers of an image have in workloads.
func StubUsers(workloads []kube.Generated, img *kube.Image) []uint32 {
	var uids []uint32
	for _, g := range workloads {
		for _, c := range g.Policy.Containers {
			if c.Image.Digest == img.Digest && c.User != nil {
				uids = append(uids, c.User.UID)
			}
		}
	}
	return uids
}
