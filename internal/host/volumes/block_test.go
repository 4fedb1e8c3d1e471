package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/podpolicy"
)

// loop is a block device of the kernel's, made of a file.
func loop(t *testing.T) (path string, device specs.LinuxDevice) {
	t.Helper()
	if os.Getuid() != 0 {
		unsupported(t, errors.New("not root"))
	}
	image := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	back, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		unsupported(t, err)
	}
	defer control.Close()
	// Several tests, and other programs, look for a free one at once.
	for range 20 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			unsupported(t, err)
		}
		path = fmt.Sprintf("/dev/loop%d", n)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			unsupported(t, err)
		}
		// The kernel takes it back when it is closed for the last time.
		err = unix.IoctlLoopConfigure(int(f.Fd()), &unix.LoopConfig{Fd: uint32(back.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}})
		if err == nil {
			t.Cleanup(func() { _ = f.Close() })
			break
		}
		_ = f.Close()
		if !errors.Is(err, unix.EBUSY) {
			unsupported(t, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return path, specs.LinuxDevice{Type: "b", Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev))}
}

func (k *kubelet) claim(pv, device string) {
	k.t.Helper()
	k.check(os.Symlink(device, filepath.Join(k.mkdir("volumeDevices/kubernetes.io~local-volume"), pv)))
}

func TestBlock(t *testing.T) {
	t.Parallel()
	k, g := newKubelet(t), newGuest()
	path, dev := loop(t)
	dev.Path = "/dev/xvda"
	k.claim("pv-7", path)
	rules := []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "b", Major: &dev.Major, Minor: &dev.Minor, Access: "rwm"}}
	m, _ := k.manager()
	null := specs.LinuxDevice{Type: "c", Path: "/dev/null", Major: 1, Minor: 3}
	p := prepare(t, m, g, Container{ID: "c", Name: "db", Devices: []specs.LinuxDevice{null, dev}, DeviceRules: rules})
	want := &Proposal{Volumes: []*agentapi.Volume{{Name: "pv-7", Kind: agentapi.Volume_BLOCK}}, Devices: []*agentapi.Device{{Path: "/dev/xvda", Volume: "pv-7"}}}
	if diff := cmp.Diff(want, p, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	id := serial(podUID, "pv-7")
	if !regexp.MustCompile(`^[A-Za-z0-9_-]{1,20}$`).MatchString(id) || id == serial(podUID, "pv-8") || id == serial("other", "pv-7") {
		t.Errorf("serial %q", id)
	}
	attached, ok := g.disks[id]
	if !ok || !attached.BlockDevice || attached.ReadOnly || attached.Image.File == nil {
		t.Errorf("%+v", g.disks)
	}
	// Another container, and the same one restarted, find it as it is.
	prepare(t, m, g, Container{ID: "c2", Name: "init", Devices: []specs.LinuxDevice{dev}})
	m.Release("c")
	m.Release("c2")
	prepare(t, m, g, Container{ID: "c3", Name: "db", Devices: []specs.LinuxDevice{dev}})
	if diff := cmp.Diff([]string{"pv-7=" + id}, g.attached); diff != "" || len(g.detached) > 0 {
		t.Error(diff, g.detached)
	}

	if _, err := (&disk{path: path, dev: unix.Mkdev(8, 0)}).device(); err == nil {
		t.Error("another device was opened")
	}
	stranger := specs.LinuxDevice{Type: "b", Path: "/dev/sda", Major: 8, Minor: 0}
	fuse := specs.LinuxDevice{Type: "c", Path: "/dev/fuse", Major: 10, Minor: 229}
	for d, want := range map[*specs.LinuxDevice]string{&stranger: "belongs to no claim of the pod", &fuse: "no devices of the node"} {
		if _, err := m.Prepare(t.Context(), g, Container{ID: "x", Name: "db", Devices: []specs.LinuxDevice{*d}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v", err)
		}
	}
	p = prepare(t, m, g, Container{ID: "p", Name: "privileged", Privileged: true, Devices: []specs.LinuxDevice{stranger, fuse}})
	if len(p.Devices) > 0 {
		t.Errorf("%v", p)
	}
}

func TestBlockReadOnlyAndRefused(t *testing.T) {
	t.Parallel()
	k, g := newKubelet(t), newGuest()
	path, dev := loop(t)
	dev.Path = "/dev/xvda"
	k.claim("pv_7", path) // no name for a guest
	m, _ := k.manager()
	c := Container{ID: "c", Name: "db", Devices: []specs.LinuxDevice{dev}, DeviceRules: []specs.LinuxDeviceCgroup{{Allow: true, Type: "b", Major: &dev.Major, Minor: &dev.Minor, Access: "r"}}}
	g.noDisk = status.Error(codes.PermissionDenied, "volume.disk")
	_, err := m.Prepare(t.Context(), g, c)
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "the guest did not open the disk") {
		t.Errorf("%v", err)
	}
	if len(g.disks) != 0 || len(g.detached) != 1 {
		t.Errorf("a refused disk stays: %v", g.disks)
	}
	g.noDisk = nil
	p := prepare(t, m, g, c)
	if !strings.HasPrefix(p.Devices[0].GetVolume(), "claim-") || !p.Devices[0].GetReadOnly() || !g.disks[serial(podUID, p.Devices[0].GetVolume())].ReadOnly {
		t.Errorf("%v, %v", p, g.disks)
	}
}

// A guest may need longer for a new volume than the kubelet waits: it must not be
// stopped, and the next attempt finds what it has done.
func TestBlockGoesOn(t *testing.T) {
	t.Parallel()
	k, g := newKubelet(t), newGuest()
	path, dev := loop(t)
	dev.Path = "/dev/xvda"
	k.claim("pv-7", path)
	g.opening = make(chan struct{})
	m, _ := k.manager()
	c := Container{ID: "c", Name: "db", Devices: []specs.LinuxDevice{dev}}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := m.Prepare(ctx, g, c); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "still opening the disk") {
		t.Errorf("%v", err)
	}
	close(g.opening)
	c.ID = "c2"
	prepare(t, m, g, c)
	if len(g.attached) != 1 || len(g.detached) != 0 {
		t.Errorf("attached %v, detached %v", g.attached, g.detached)
	}
	// At the pod's end it is given up.
	other, _ := k.manager()
	g = newGuest()
	g.opening = make(chan struct{})
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := other.Prepare(ctx, g, c); err == nil {
		t.Error("expected an error")
	}
	if err := other.Close(); err != nil || len(g.detached) != 1 {
		t.Errorf("%v, detached %v", err, g.detached)
	}
}

func policyWith(t *testing.T, c podpolicy.Container) []byte {
	t.Helper()
	c.Name, c.Image = "db", podpolicy.Image{Digest: "sha256:" + strings.Repeat("0a", 32), From: []string{"registry.example/db"}}
	p := &podpolicy.Policy{
		APIVersion: podpolicy.APIVersion, Kind: podpolicy.Kind, Pod: podpolicy.Pod{Name: podpolicy.Name{Value: "db"}}, Containers: []podpolicy.Container{c},
		Volumes: map[string]podpolicy.Volume{
			"data": {Kind: podpolicy.VolumeBlock, Key: "kbs:///shop/db/data"}, "log": {Kind: podpolicy.VolumeBlock, Key: "kbs:///shop/db/log", Filesystem: "ext4"},
			"more": {Kind: podpolicy.VolumeBlock, Key: "kbs:///shop/db/more", Filesystem: "ext4"}, "tmp": {Kind: podpolicy.VolumeEphemeral},
		},
	}
	text, err := p.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := (&initdata.Document{Version: initdata.Version, Algorithm: initdata.SHA256, Data: map[string]string{initdata.KeyPodPolicy: string(text)}}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	gz, err := initdata.Compress(raw)
	if err != nil {
		t.Fatal(err)
	}
	return gz
}

func TestNames(t *testing.T) {
	t.Parallel()
	data := podpolicy.Container{Devices: []podpolicy.Device{{Path: "/dev/a", Volume: "data", ReadOnly: true}}}
	log := podpolicy.Mount{Path: "/var/log/db", Volume: "log"}
	mounted := podpolicy.Container{Mounts: []podpolicy.Mount{log, {Path: "/tmp", Volume: "tmp"}}}
	both := podpolicy.Container{Devices: data.Devices, Mounts: mounted.Mounts}
	two := podpolicy.Container{Mounts: []podpolicy.Mount{log, {Path: "/more", Volume: "more"}}}
	for name, tt := range map[string]struct {
		policy     *podpolicy.Container
		annotation string
		paths      string // devicePaths, of PersistentVolumes pv-0, pv-1 …
		want       []blockPlace
		err        string
	}{
		"unsealed":             {paths: "/dev/a", want: []blockPlace{{volume: "pv-0"}}},
		"annotated by path":    {annotation: "/dev/a=x, pv-1=y", paths: "/dev/a /dev/b", want: []blockPlace{{volume: "x"}, {volume: "y"}}},
		"by the policy's path": {policy: &data, paths: "/dev/a", want: []blockPlace{{volume: "data", readOnly: true}}},
		"the only mount":       {policy: &mounted, paths: "/dev/b", want: []blockPlace{{volume: "log", mount: &log}}},
		"path, and what is left": {
			policy: &both, paths: "/dev/b /dev/a", want: []blockPlace{{volume: "log", mount: &log}, {volume: "data", readOnly: true}},
		},
		"two are left":      {policy: &two, paths: "/dev/a /dev/b", err: "annotate the pod with coffer-project.io/volumes: /dev/a=VOLUME"},
		"one of two is":     {policy: &two, annotation: "pv-1=log", paths: "/dev/a /dev/b", want: []blockPlace{{volume: "more", mount: &two.Mounts[1]}, {volume: "log", mount: &log}}},
		"none is left":      {policy: &data, paths: "/dev/b", err: "is not known"},
		"bad annotation":    {annotation: "pv-1", paths: "/dev/a", err: "expected KEY=VOLUME"},
		"annotation's name": {annotation: "pv-1=A", paths: "/dev/a", err: "expected KEY=VOLUME"},
		"twice":             {annotation: "a=b,a=c", paths: "/dev/a", err: "named twice"},
	} {
		o := Options{Annotations: map[string]string{AnnotationVolumes: tt.annotation}}
		if tt.policy != nil {
			o.Sealed, o.Initdata = true, policyWith(t, *tt.policy)
		}
		var blocks []claimed
		for i, path := range strings.Fields(tt.paths) {
			blocks = append(blocks, claimed{dev: specs.LinuxDevice{Path: path}, link: fmt.Sprintf("volumeDevices/kubernetes.io~csi/pv-%d", i)})
		}
		got, err := New(o).namePlaces("db", blocks)
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(blockPlace{})); diff != "" || (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %s, %v", name, diff, err)
		}
	}
	noPolicy, err := (&initdata.Document{Version: initdata.Version, Algorithm: initdata.SHA256, Data: map[string]string{initdata.KeyPodPolicy: "{}"}}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	gz, err := initdata.Compress(noPolicy)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"no gzip": []byte("x"), "no policy": gz} {
		if _, err := New(Options{Sealed: true, Initdata: data}).namePlaces("db", []claimed{{}}); err == nil || !strings.Contains(err.Error(), "initdata: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
