package volumes

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// await waits until something is so. It is for what another goroutine brings
// about by way of the kernel, which nothing here can wait for.
func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func prepare(t *testing.T, m *Manager, h Host, c Container) *Proposal {
	t.Helper()
	p, err := m.Prepare(t.Context(), h, c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// spec is what containerd puts into every container's specification.
func specMounts(k *kubelet) []specs.Mount {
	sandbox := "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/0123abcd/"
	return []specs.Mount{
		{Type: "proc", Source: "proc", Destination: "/proc"},
		{Type: "tmpfs", Source: "tmpfs", Destination: "/dev"},
		{Type: "devpts", Source: "devpts", Destination: "/dev/pts"},
		{Type: "mqueue", Source: "mqueue", Destination: "/dev/mqueue"},
		{Type: "sysfs", Source: "sysfs", Destination: "/sys"},
		{Type: "cgroup", Source: "cgroup", Destination: "/sys/fs/cgroup"},
		bind(k.write("etc-hosts", "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n10.0.0.7\tweb\n\n# Entries added by HostAliases.\n10.1.2.3\tdb\tdb.example\n"), "/etc/hosts"),
		bind(k.write("containers/web/5f3a91c2", ""), "/dev/termination-log"),
		bind(sandbox+"hostname", "/etc/hostname"),
		bind(sandbox+"resolv.conf", "/etc/resolv.conf"),
		bind(strings.Replace(sandbox, "/var/lib", "/run", 1)+"shm", "/dev/shm"),
		bind("/var/lib/containerd/io.containerd.grpc.v1.cri/containers/ffff/volumes/9876", "/data"),
	}
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	k, g := newKubelet(t), newGuest()
	token := k.volume(pluginProjected, "kube-api-access-x2b9q", map[string]string{"token": "t1", "namespace": "shop"})
	config := k.volume(pluginConfigMap, "config", map[string]string{"a.conf": "a", "sub/b.conf": "b"})
	empty := k.volume(pluginConfigMap, "optional", nil)
	secret := k.volume(pluginSecret, "tls", map[string]string{"key": "k"})
	labels := k.volume(pluginDownwardAPI, "info", map[string]string{"labels": "app=web"})
	k.check(os.Chmod(filepath.Join(secret.dir, "..data", "key"), 0o400))
	scratch := k.mkdir("volumes/" + pluginEmptyDir + "/scratch")
	k.check(os.Chown(scratch, -1, 2000))
	k.check(os.Chmod(scratch, 0o775|os.ModeSetgid))
	m, _ := k.manager()
	p := prepare(t, m, g, Container{ID: "c1", Name: "web", Mounts: append(specMounts(k),
		bind(token.dir, "/var/run/secrets/kubernetes.io/serviceaccount", "ro"),
		bind(config.dir, "/etc/web", "ro"), bind(config.dir, "/again"), bind(empty.dir, "/empty"), bind(secret.dir, "/tls", "ro"),
		bind(labels.dir, "/info", "ro"), bind(scratch, "/scratch", "rw"), bind(scratch, "/ro", "ro"))})
	want := &Proposal{
		Mounts: []*agentapi.Mount{
			{Path: "/var/run/secrets/kubernetes.io/serviceaccount", Volume: "kube-api-access", ReadOnly: true},
			{Path: "/etc/web", Volume: "config", ReadOnly: true}, {Path: "/again", Volume: "config", ReadOnly: true},
			{Path: "/empty", Volume: "optional", ReadOnly: true}, {Path: "/tls", Volume: "tls", ReadOnly: true},
			{Path: "/info", Volume: "info", ReadOnly: true}, {Path: "/scratch", Volume: "scratch"}, {Path: "/ro", Volume: "scratch", ReadOnly: true},
		},
		Volumes: []*agentapi.Volume{
			{Name: "kube-api-access", Kind: agentapi.Volume_FILES}, {Name: "config", Kind: agentapi.Volume_FILES},
			{Name: "optional", Kind: agentapi.Volume_FILES}, {Name: "tls", Kind: agentapi.Volume_FILES}, {Name: "info", Kind: agentapi.Volume_FILES},
			{Name: "scratch", Kind: agentapi.Volume_EPHEMERAL, Group: new(uint32(2000))},
		},
		TerminationPath: "/dev/termination-log",
		Hosts:           []*agentapi.HostEntry{{Address: "10.1.2.3", Names: []string{"db", "db.example"}}},
	}
	if diff := cmp.Diff(want, p, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	for volume, files := range map[string]contents{
		"kube-api-access": {"token": "0644 t1", "namespace": "0644 shop"}, "config": {"a.conf": "0644 a", "sub/b.conf": "0644 b"},
		"optional": {}, "tls": {"key": "0400 k"}, "info": {"labels": "0644 app=web"},
	} {
		if diff := cmp.Diff([]contents{files}, g.seen(volume)); diff != "" {
			t.Errorf("%s: %s", volume, diff)
		}
	}
	// A second container of the pod has the same, which is sent no second time.
	prepare(t, m, g, Container{ID: "c2", Name: "sidecar", Mounts: []specs.Mount{bind(config.dir, "/c", "ro")}})
	if n := len(g.seen("config")); n != 1 {
		t.Errorf("config was sent %d times, expected once", n)
	}
	if _, err := m.Prepare(t.Context(), g, Container{ID: "c2", Name: "sidecar"}); err == nil {
		t.Error("a container was prepared twice")
	}
}

func TestOwners(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		unsupported(t, fmt.Errorf("not root"))
	}
	k, g := newKubelet(t), newGuest()
	v := k.volume(pluginProjected, "token", map[string]string{"token": "t", "run": "r", "odd": "o"})
	at := func(name string) string { return filepath.Join(v.dir, "..data", name) }
	k.check(os.Chmod(at("token"), 0o600))
	k.check(os.Chown(at("token"), 1000, 2000))
	k.check(os.Chmod(at("run"), 0o755))
	k.check(os.Chmod(at("odd"), 0o667|os.ModeSetuid))
	m, _ := k.manager()
	prepare(t, m, g, Container{ID: "c", Name: "web", Mounts: []specs.Mount{bind(v.dir, "/v")}})
	if diff := cmp.Diff(contents{"token": "0600 1000:2000 t", "run": "0755 r", "odd": "0667 o"}, g.latest("token")); diff != "" {
		t.Error(diff)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	k := newKubelet(t)
	config := k.volume(pluginConfigMap, "config", map[string]string{"a": "a"})
	upper := k.volume(pluginConfigMap, "Config", map[string]string{"a": "a"})
	plain := k.mkdir("volumes/" + pluginSecret + "/plain") // without ..data
	large := k.volume(pluginSecret, "large", map[string]string{"big": strings.Repeat("x", maxBytes+1)})
	odd := k.volume(pluginConfigMap, "odd", map[string]string{"a b": ""})
	link := k.volume(pluginConfigMap, "link", map[string]string{"a": ""})
	k.check(os.Symlink("/etc/passwd", filepath.Join(link.dir, "..data", "out")))
	away := k.mkdir("volumes/" + pluginConfigMap + "/away")
	k.check(os.Symlink("/etc", filepath.Join(away, "..data")))
	claim := k.mkdir("volumes/kubernetes.io~csi/pvc-1/mount")
	other := filepath.Join(k.root, "pods", "11111111-2222", "volumes", pluginSecret, "s")
	k.check(os.MkdirAll(other, 0o755))
	file := k.write("containers/web/abc", "")
	for name, tt := range map[string]struct {
		mount specs.Mount
		want  string
	}{
		"shared":         {bind(config.dir, "/c", "rshared"), "mountPropagation: Bidirectional"},
		"name":           {bind(upper.dir, "/c"), "DNS label"},
		"not written":    {bind(plain, "/c"), "has not written the volume yet"},
		"large":          {bind(large.dir, "/c"), `file "big": 16777217 bytes are more than`},
		"odd name":       {bind(odd.dir, "/c"), `file "a b": expected letters`},
		"link out":       {bind(link.dir, "/c"), `file "out": a link that leads to no file inside`},
		"data leads out": {bind(away, "/c"), "expected a link to a directory beside it"},
		"below":          {bind(filepath.Join(config.dir, "a"), "/c"), "expected the volume's directory"},
		"claim":          {bind(claim, "/c", "rw"), "volume pvc-1 (kubernetes.io/csi): a file system of the node cannot be mounted in a guest; use a claim with volumeMode: Block"},
		"another pod's":  {bind(other, "/c", "ro"), "secrets of other pods"},
		"last words":     {bind(file, "/dev/termination-log"), "belongs to container web"},
		"unknown":        {bind(k.mkdir("plugins"), "/c"), "in the pod's directory"},
		"tmpfs":          {specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/cache"}, "medium: Memory"},
		"type":           {specs.Mount{Type: "nfs", Source: "a:/b", Destination: "/c"}, "expected a bind mount"},
		"destination":    {bind(config.dir, "c"), "absolute path in the container"},
		"source":         {bind("relative", "/c"), "absolute path of the node"},
		"/":              {bind("/", "/host"), "the node's root"},
		"/dev":           {bind("/dev/shm", "/dev/shm"), "devices of its own"},
		"/proc":          {bind("/proc", "/host/proc"), "a /proc of its own"},
		"/sys":           {bind("/sys/fs", "/host/sys"), "a /sys of its own"},
		"docker":         {bind("/var/run/docker.sock", "/var/run/docker.sock"), ""},
		"image volume":   {bind("/run/containerd/io.containerd.grpc.v1.cri/image-volumes/pod/img", "/c"), "init container"},
		"missing":        {bind("/nonexistent/path", "/c"), "no such file"},
	} {
		g := newGuest()
		m, _ := k.manager()
		p, err := m.Prepare(t.Context(), g, Container{ID: "c", Name: "app", Mounts: []specs.Mount{tt.mount}})
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "container app: ") {
			t.Errorf("%s: %v, %v; want %q", name, p, err, tt.want)
		}
		if len(g.volumes) > 0 {
			t.Errorf("%s: files were sent", name)
		}
		// It is as if it had not been tried.
		if _, err := m.Prepare(t.Context(), g, Container{ID: "c", Name: "app"}); err != nil {
			t.Errorf("%s: afterwards: %v", name, err)
		}
	}
}

func TestLinkedRoot(t *testing.T) {
	t.Parallel()
	k := newKubelet(t)
	config := k.volume(pluginConfigMap, "config", map[string]string{"a": "a"})
	link := filepath.Join(t.TempDir(), "kubelet")
	k.check(os.Symlink(k.root, link))
	// The mount may have the link or what it leads to, and so may the configuration.
	other := filepath.Join(t.TempDir(), "other")
	k.check(os.Symlink(k.root, other))
	for i, source := range []string{config.dir, strings.Replace(config.dir, k.root, link, 1), strings.Replace(config.dir, k.root, other, 1)} {
		m, _ := k.manager(func(o *Options) { o.KubeletRoot = link })
		p := prepare(t, m, newGuest(), Container{ID: fmt.Sprint(i), Name: "app", Mounts: []specs.Mount{bind(source, "/c")}})
		if len(p.Mounts) != 1 || p.Mounts[0].GetVolume() != "config" {
			t.Errorf("%s: %v", source, p)
		}
	}
}

func TestLiveUpdate(t *testing.T) {
	t.Parallel()
	k, g := newKubelet(t), newGuest()
	config := k.volume(pluginConfigMap, "config", map[string]string{"a": "1", "b": "1"})
	m, _ := k.manager()
	use := Container{Name: "app", Mounts: []specs.Mount{bind(config.dir, "/c")}}
	use.ID = "c1"
	prepare(t, m, g, use)
	use.ID, use.Name = "c2", "sidecar"
	prepare(t, m, g, use)
	config.swap(map[string]string{"a": "2", "b": "1"})
	await(t, "an update", func() bool { return cmp.Equal(g.latest("config"), contents{"a": "0644 2", "b": "0644 1"}) })
	m.Release("c1")
	config.swap(map[string]string{"a": "2"})
	await(t, "a deletion", func() bool { return cmp.Equal(g.latest("config"), contents{"a": "0644 2"}) })
	m.Release("c2")
	w := m.volumes["config"].worker
	<-w.done
	n := len(g.seen("config"))
	config.swap(map[string]string{"a": "3"})
	if len(m.watcher.notify.WatchList()) != 0 {
		t.Error("the directory is still watched")
	}
	if len(g.seen("config")) != n {
		t.Error("an update was sent when nobody used the volume")
	}
	// A container that comes later has the newest, by a newer version.
	use.ID = "c3"
	prepare(t, m, g, use)
	if diff := cmp.Diff(contents{"a": "0644 3"}, g.latest("config")); diff != "" {
		t.Error(diff)
	}
	config.swap(map[string]string{})
	await(t, "no files", func() bool { return len(g.latest("config")) == 0 })
	m.Release("unknown")
}

func TestRetry(t *testing.T) {
	t.Parallel()
	k, g := newKubelet(t), newGuest()
	config := k.volume(pluginConfigMap, "config", map[string]string{"a": "1"})
	m, w := k.manager()
	prepare(t, m, g, Container{ID: "c", Name: "app", Mounts: []specs.Mount{bind(config.dir, "/c")}})
	g.mu.Lock()
	g.refuse = []error{status.Error(codes.Unavailable, "no room"), status.Error(codes.Unavailable, "no room")}
	g.mu.Unlock()
	config.swap(map[string]string{"a": "2"})
	await(t, "a retry", func() bool { return cmp.Equal(g.latest("config"), contents{"a": "0644 2"}) })
	w.has(t, "volume config: the containers do not have its latest files yet, and it is tried again: the guest did not take the files")
	// What a policy refuses is not tried again, but the next change is.
	g.mu.Lock()
	g.refuse = []error{status.Error(codes.PermissionDenied, "files.digest")}
	g.mu.Unlock()
	config.swap(map[string]string{"a": "3"})
	await(t, "a refusal", func() bool { g.mu.Lock(); defer g.mu.Unlock(); return len(g.refuse) == 0 })
	await(t, "a warning", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.all) == 2 })
	w.has(t, "volume config: the containers keep the files that they have: ")
	config.swap(map[string]string{"a": "4"})
	await(t, "the next", func() bool { return cmp.Equal(g.latest("config"), contents{"a": "0644 4"}) })
	if n := len(g.seen("config")); n != 3 {
		t.Errorf("%d versions, expected 3", n)
	}
}

// A first put that the guest refuses fails the container, and leaves nothing.
func TestPrepareFails(t *testing.T) {
	t.Parallel()
	k, g := newKubelet(t), newGuest()
	config := k.volume(pluginConfigMap, "config", map[string]string{"a": "1"})
	m, _ := k.manager()
	g.refuse = []error{status.Error(codes.PermissionDenied, "files.digest")}
	c := Container{ID: "c", Name: "app", Mounts: []specs.Mount{bind(config.dir, "/c")}}
	_, err := m.Prepare(t.Context(), g, c)
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "container app: volume config: ") {
		t.Errorf("%v", err)
	}
	if len(m.uses) != 0 || len(m.volumes["config"].users) != 0 {
		t.Error("something is left")
	}
	prepare(t, m, g, c)
	// A guest that does not answer is waited for as long as the caller does.
	g.puts = make(chan string) // nobody reads
	ctx, cancel := context.WithCancel(t.Context())
	config.swap(map[string]string{"a": "2"})
	m.Release("c")
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := m.Prepare(ctx, g, c); err == nil {
		t.Error("expected an error")
	}
	go func() {
		for range g.puts {
		}
	}()
	t.Cleanup(func() { close(g.puts) })
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, err := m.Prepare(t.Context(), g, c); err == nil {
		t.Error("prepared after Close")
	}
}

// Whatever the kubelet writes, and when, the guest has one whole version after
// the other, and in the end the last.
func TestSwaps(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	k, g := newKubelet(t), newGuest()
	m, _ := k.manager()
	written := []contents{}
	files := func(n int) (map[string]string, contents) {
		f, c := map[string]string{}, contents{}
		for i := range r.IntN(30) {
			name, content := fmt.Sprintf("dir%d/f%d", i%3, i), fmt.Sprintf("version %d %s", n, strings.Repeat("x", r.IntN(4000)))
			f[name], c[name] = content, "0644 "+content
		}
		written = append(written, c)
		return f, c
	}
	first, last := files(0)
	v := k.volume(pluginSecret, "s", first)
	prepare(t, m, g, Container{ID: "c", Name: "app", Mounts: []specs.Mount{bind(v.dir, "/s")}})
	for n := range 300 {
		var f map[string]string
		f, last = files(n + 1)
		v.swap(f)
		if r.IntN(4) == 0 {
			<-time.After(time.Duration(r.IntN(6)) * time.Millisecond)
		}
	}
	await(t, "the last version", func() bool { return cmp.Equal(g.latest("s"), last) })
	at := -1
	for _, c := range g.seen("s") {
		i := slices.IndexFunc(written, func(w contents) bool { return maps.Equal(w, c) })
		if i < 0 {
			t.Fatalf("seed %d: the guest had files that were never together: %v", seed, slices.Sorted(maps.Keys(c)))
		}
		if i < at && !cmp.Equal(written[i], written[at]) && len(c) > 0 {
			t.Errorf("seed %d: version %d came after %d", seed, i, at)
		}
		at = i
	}
	t.Logf("%d of %d versions were sent", len(g.seen("s")), len(written))
}
