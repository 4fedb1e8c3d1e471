package cri

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/coffer-project/coffer/internal/agentapi"
)

var update = flag.Bool("update", false, "write the golden files")

// resolv is what containerd writes for the pods' DNS configuration.
const resolv = "search shop.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"

func resolvConf(path string) ([]byte, error) {
	if !strings.HasSuffix(path, "/resolv.conf") {
		return nil, fmt.Errorf("%s is not to be read", path)
	}
	return []byte(resolv), nil
}

func load(t testing.TB, version, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", version, name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// golden is a bundle as it is written to a golden file.
type golden struct {
	Kind              string
	SandboxID         string
	Sandbox           *Sandbox        `json:",omitempty"`
	Proposal          json.RawMessage `json:",omitempty"`
	SharePID          bool
	Privileged        bool
	ContainerWarnings []string `json:",omitempty"`
}

func describe(t *testing.T, b *Bundle) []byte {
	t.Helper()
	g := golden{Kind: b.Kind.String(), SandboxID: b.SandboxID, Sandbox: b.Sandbox}
	if c := b.Container; c != nil {
		raw, err := protojson.Marshal(c.Proposal())
		if err != nil {
			t.Fatal(err)
		}
		g.Proposal, g.SharePID, g.Privileged, g.ContainerWarnings = raw, c.SharePID, c.Privileged, c.Warnings
	}
	raw, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	// protojson changes its white space now and then.
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		t.Fatal(err)
	}
	return append(out.Bytes(), '\n')
}

func names() []string {
	return []string{"web-sandbox", "web-app", "shared-sandbox", "shared-shell", "privileged-priv", "ctr"}
}

// TestGolden holds what is made of real bundles against files.
func TestGolden(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"1.6", "2.2", "2.4"} {
		for _, name := range names() {
			b, err := parse(load(t, version, name), "id-1", resolvConf)
			if err != nil {
				t.Errorf("%s %s: %v", version, name, err)
				continue
			}
			got := describe(t, b)
			file := filepath.Join("testdata", "golden", version+"-"+name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil { //nolint:gosec // no secret
					t.Fatal(err)
				}
				continue
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s %s: got\n%s\nexpected\n%s", version, name, got, want)
			}
		}
	}
}

// TestVersionsAgree: a guest is asked for the same by every version of containerd.
func TestVersionsAgree(t *testing.T) {
	t.Parallel()
	for _, name := range names() {
		var first *Bundle
		for _, version := range []string{"2.4", "2.2", "1.6"} {
			b, err := parse(load(t, version, name), "id-1", resolvConf)
			if err != nil {
				t.Fatal(err)
			}
			if b.Sandbox != nil {
				// What differs by nature, and what containerd 2 adds.
				b.Sandbox.NetNS, b.Sandbox.Sysctls, b.Sandbox.Cgroup = "", nil, filepath.Dir(b.Sandbox.Cgroup)
			}
			if c := b.Container; c != nil && version == "1.6" {
				// It does not look into the image's /etc/group with a number as user.
				c.Spec.Process.User.AdditionalGids = first.Container.Spec.Process.User.AdditionalGids
			}
			b.SandboxID = ""
			if first == nil {
				first = b
				continue
			}
			if got, want := describe(t, b), describe(t, first); !bytes.Equal(got, want) {
				t.Errorf("%s: containerd %s gives\n%s\n2.4 gives\n%s", name, version, got, want)
			}
		}
	}
}

// TestConfigAgrees: the Sandbox API's message says the same as the bundle of the
// same pod.
func TestConfigAgrees(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"web", "shared"} {
		message, err := os.ReadFile(filepath.Join("testdata", name+".pb"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := FromConfig(message, "id-1", "/run/netns/x")
		if err != nil {
			t.Fatal(err)
		}
		b, err := parse(load(t, "2.4", name+"-sandbox"), "id-1", resolvConf)
		if err != nil {
			t.Fatal(err)
		}
		want := b.Sandbox
		if got.SharePID != (name == "shared") || !got.SharePIDKnown || want.SharePIDKnown {
			t.Errorf("%s: share PID %v, known %v", name, got.SharePID, got.SharePIDKnown)
		}
		for k, v := range got.Sysctls {
			if want.Sysctls[k] != v {
				t.Errorf("%s: sysctl %s=%s", name, k, v)
			}
		}
		want.Cgroup = filepath.Join(filepath.Dir(want.Cgroup), "id-1") // the recorded one has another id
		got.SharePID, got.SharePIDKnown, got.Sysctls, want.Sysctls, want.NetNS = false, false, nil, nil, "/run/netns/x"
		g, w := describe(t, &Bundle{Sandbox: got}), describe(t, &Bundle{Sandbox: want})
		if !bytes.Equal(g, w) {
			t.Errorf("%s: the message gives\n%s\nthe bundle\n%s", name, g, w)
		}
		if len(got.DNS.GetServers()) != 1 || len(got.DNS.GetSearches()) != 3 {
			t.Errorf("%s: DNS %v", name, got.DNS)
		}
	}
}

// edit changes a real bundle.
func edit(t testing.TB, version, name string, f func(s *specs.Spec)) []byte {
	t.Helper()
	s := new(specs.Spec)
	if err := json.Unmarshal(load(t, version, name), s); err != nil {
		t.Fatal(err)
	}
	f(s)
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func without(t specs.LinuxNamespaceType) func(s *specs.Spec) {
	return func(s *specs.Spec) {
		var kept []specs.LinuxNamespace
		for _, n := range s.Linux.Namespaces {
			if n.Type != t {
				kept = append(kept, n)
			}
		}
		s.Linux.Namespaces = kept
	}
}

func annotate(name, value string) func(s *specs.Spec) {
	return func(s *specs.Spec) { s.Annotations[name] = value }
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	users := func(s *specs.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	}
	hooks := func(s *specs.Spec) { s.Hooks = &specs.Hooks{} }
	bomb := base64.StdEncoding.EncodeToString(make([]byte, maxGzip+3))
	for _, tc := range []struct {
		name, bundle string
		edit         func(s *specs.Spec)
		want         []string
	}{
		{"hostNetwork", "web-sandbox", without(specs.NetworkNamespace), []string{"hostNetwork", "remove hostNetwork"}},
		{"hostPID", "web-sandbox", without(specs.PIDNamespace), []string{"hostPID", "remove hostPID"}},
		{"hostIPC", "web-sandbox", without(specs.IPCNamespace), []string{"hostIPC", "remove hostIPC"}},
		{"hostUsers", "web-sandbox", users, []string{"hostUsers: false", "remove hostUsers"}},
		{"users of a container", "web-app", users, []string{"container app", "remove hostUsers"}},
		{"hooks", "web-sandbox", hooks, []string{"OCI hooks", "remove what adds them"}},
		{"hooks of a container", "web-app", hooks, []string{"container app", "OCI hooks"}},
		{"no path of a namespace", "web-sandbox", func(s *specs.Spec) {
			for i := range s.Linux.Namespaces {
				s.Linux.Namespaces[i].Path = ""
			}
		}, []string{"without a path"}},
		{"net-host of ctr", "ctr", without(specs.NetworkNamespace), []string{"hostNetwork"}},
		{"no image", "ctr", func(s *specs.Spec) { delete(s.Annotations, AnnotationImage) }, []string{"--annotation coffer-project.io/image="}},
		{"no arguments", "web-app", func(s *specs.Spec) { s.Process.Args = nil }, []string{"container app", "give the container a command"}},
		{"relative directory", "web-app", func(s *specs.Spec) { s.Process.Cwd = "tmp" }, []string{"absolute path"}},
		{"huge pages", "web-app", func(s *specs.Spec) {
			s.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1 << 21}}
		}, []string{"huge pages", "remove them"}},
		{"container's name", "web-app", annotate(criContainerName, "../x"), []string{"DNS label"}},
		{"sandbox's id", "web-app", annotate(criSandboxID, "a/b"), []string{criSandboxID}},
		{"type", "web-app", annotate(criType, "vm"), []string{"expected sandbox or container"}},
		{"not Linux", "web-app", func(s *specs.Spec) { s.Linux = nil; s.Windows = &specs.Windows{} }, []string{"Linux"}},
		{"empty initdata", "web-sandbox", annotate(AnnotationInitdata, ""), []string{AnnotationInitdata, "got nothing"}},
		{"initdata not base64", "web-sandbox", annotate(AnnotationInitdata, "!!!"), []string{AnnotationInitdata, "base64"}},
		{"initdata not gzip", "web-sandbox", annotate(AnnotationInitdata, "aGVsbG8="), []string{AnnotationInitdata, "gzip"}},
		{"initdata too large", "web-sandbox", annotate(AnnotationInitdata, bomb), []string{AnnotationInitdata, "at most 1048576 bytes"}},
	} {
		b, err := parse(edit(t, "2.4", tc.bundle, tc.edit), "id-1", resolvConf)
		if err == nil {
			t.Errorf("%s: accepted as %+v", tc.name, b)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: expected %q in: %v", tc.name, want, err)
			}
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than a sentence: %v", tc.name, err)
		}
	}
}

func TestCheckAnnotations(t *testing.T) {
	t.Parallel()
	allowed := []string{"coffer-project.io/memory"}
	for _, tc := range []struct {
		own    map[string]string
		sealed bool
		want   string
	}{
		{nil, false, ""},
		{map[string]string{"coffer-project.io/memory": "1"}, false, ""},
		{map[string]string{"coffer-project.io/allow.web": "{}"}, false, ""},
		{map[string]string{"coffer-project.io/secret-env.web": "{}"}, true, ""},
		{map[string]string{"coffer-project.io/secret-env.web": "{}"}, false, "run coffer prepare"},
		{map[string]string{"coffer-project.io/secure-mount.data": "{}"}, false, "asks for a secret"},
		{map[string]string{"coffer-project.io/vcpus": "2"}, true, "lets pods set coffer-project.io/memory; remove it"},
		{map[string]string{"coffer-project.io/debug": "true"}, false, "coffer-project.io/debug"},
	} {
		s := &Sandbox{Annotations: tc.own}
		if tc.sealed {
			s.Initdata = []byte{1}
		}
		err := s.CheckAnnotations(allowed)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: expected %q, got %v", tc.own, tc.want, err)
		}
	}
	if err := (&Sandbox{Annotations: map[string]string{"coffer-project.io/x": ""}}).CheckAnnotations(nil); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("nothing allowed: %v", err)
	}
}

// TestCRIO: the annotations of CRI-O lead to the same.
func TestCRIO(t *testing.T) {
	t.Parallel()
	rename := map[string]string{
		criType: crioType, criSandboxID: crioSandboxID, criSandboxName: crioSandboxName, criNamespace: crioNamespace, criUID: crioUID,
		criLogDir: crioLogPath, criContainerName: crioContainer, criImageName: crioImageName,
	}
	for _, name := range []string{"web-sandbox", "web-app"} {
		want, err := parse(load(t, "2.4", name), "id-1", resolvConf)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parse(edit(t, "2.4", name, func(s *specs.Spec) {
			for k, v := range s.Annotations {
				if to := rename[k]; to != "" {
					delete(s.Annotations, k)
					s.Annotations[to] = v
				}
			}
		}), "id-1", resolvConf)
		if err != nil {
			t.Fatal(err)
		}
		if g, w := describe(t, got), describe(t, want); !bytes.Equal(g, w) {
			t.Errorf("%s: CRI-O gives\n%s\ncontainerd\n%s", name, g, w)
		}
	}
}

func TestUID(t *testing.T) {
	t.Parallel()
	a := annotations{criLogDir: "/var/log/pods/shop_web_0b2c6a3e"}
	if got := a.uid(); got != "0b2c6a3e" {
		t.Errorf("from the log directory: %q", got)
	}
	a[criUID] = "x"
	if got := a.uid(); got != "x" {
		t.Errorf("from the annotation: %q", got)
	}
	if got := (annotations{criLogDir: "/tmp/other"}).uid(); got != "" {
		t.Errorf("from another directory: %q", got)
	}
}

func TestReadBundle(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := ReadBundle(dir, "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no config.json: %v", err)
	}
	resolvFile := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(resolvFile, []byte(resolv), 0o600); err != nil {
		t.Fatal(err)
	}
	config := edit(t, "2.4", "web-sandbox", func(s *specs.Spec) {
		for i, m := range s.Mounts {
			if m.Destination == "/etc/resolv.conf" {
				s.Mounts[i].Source = resolvFile
			}
		}
	})
	file := filepath.Join(dir, "config.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := ReadBundle(dir, "x")
	if err != nil || b.Kind != KindSandbox || b.SandboxID != "x" || b.Sandbox.DNS.GetServers()[0] != "10.96.0.10" {
		t.Errorf("got %+v, %v", b, err)
	}
	if _, err := ReadBundle(dir, "a/b"); err == nil || !strings.Contains(err.Error(), "container id") {
		t.Errorf("id: %v", err)
	}
	for name, change := range map[string]func() error{
		"at most 8388608 bytes": func() error { return os.WriteFile(file, bytes.Repeat([]byte(" "), maxConfig+1), 0o600) },
		"config.json":           func() error { return os.WriteFile(file, []byte("{"), 0o600) },
		"escapes":               func() error { return errors.Join(os.Remove(file), os.Symlink("/etc/hostname", file)) },
		"regular file":          func() error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o700)) },
	} {
		_ = os.RemoveAll(file)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadBundle(dir, "x"); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("expected %q, got %v", name, err)
		}
	}
}

func TestResolvConf(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		text     string
		sealed   bool
		want     *agentapi.DNS
		warnings int
	}{
		{"", false, &agentapi.DNS{}, 0},
		{"# c\nnameserver 10.0.0.1 # x\nnameserver\nnameserver 10.0.0.1\n; y\noptions ndots:5 edns0\n", false,
			&agentapi.DNS{Servers: []string{"10.0.0.1"}, Options: []string{"ndots:5", "edns0"}}, 0},
		{"nameserver 127.0.0.53\nnameserver fe80::1%eth0\nnameserver x\nnameserver fd00::1", false, &agentapi.DNS{Servers: []string{"fd00::1"}}, 3},
		{"nameserver 127.0.0.1\n", true, &agentapi.DNS{Servers: []string{"127.0.0.1"}}, 0},
		{"nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4", false, &agentapi.DNS{Servers: []string{"1.1.1.1", "1.1.1.2", "1.1.1.3"}}, 1},
		{"domain a.b\nsearch c.d. . e.f c.d.", false, &agentapi.DNS{Searches: []string{"c.d.", "e.f"}}, 0},
		{"search " + strings.Repeat("a.b ", 3) + strings.Join(many(40), " "), false, &agentapi.DNS{Searches: append([]string{"a.b"}, many(31)...)}, 1},
	} {
		got, warnings := parseResolvConf([]byte(tc.text), tc.sealed)
		if !reflect.DeepEqual([]any{got.Servers, got.Searches, got.Options}, []any{tc.want.Servers, tc.want.Searches, tc.want.Options}) || len(warnings) != tc.warnings {
			t.Errorf("%q: got %v, %q", tc.text, got, warnings)
		}
	}
}

func many(n int) []string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("d%d.example", i))
	}
	return list
}

func TestLimits(t *testing.T) {
	t.Parallel()
	limit := func(v int64) *specs.LinuxMemory { return &specs.LinuxMemory{Limit: &v} }
	cpu := func(q int64, p uint64) *specs.LinuxCPU { return &specs.LinuxCPU{Quota: &q, Period: &p} }
	pids := func(v int64) *specs.LinuxPids { return &specs.LinuxPids{Limit: &v} }
	for i, tc := range []struct {
		r            specs.LinuxResources
		memory       uint64
		millis, pids uint32
	}{
		{specs.LinuxResources{}, 0, 0, 0},
		{specs.LinuxResources{Memory: limit(1 << 20), CPU: cpu(50_000, 100_000), Pids: pids(7)}, 1 << 20, 500, 7},
		{specs.LinuxResources{Memory: limit(-1), CPU: cpu(-1, 100_000), Pids: pids(-1)}, 0, 0, 0},
		{specs.LinuxResources{Memory: limit(1<<63 - 4096), CPU: cpu(1, 0), Pids: pids(0)}, 0, 0, 0},
		{specs.LinuxResources{CPU: cpu(1, 1_000_000)}, 0, 1, 0},
		{specs.LinuxResources{CPU: cpu(33_300, 100_000)}, 0, 333, 0},
		{specs.LinuxResources{CPU: cpu(1<<62, 1)}, 0, 0, 0},
	} {
		l := Limits(&tc.r)
		if l.GetMemoryBytes() != tc.memory || l.GetCpuMillis() != tc.millis || l.GetPids() != tc.pids {
			t.Errorf("%d: got %v", i, l)
		}
	}
}

func TestFromConfigRefuses(t *testing.T) {
	t.Parallel()
	web, err := os.ReadFile("testdata/web.pb")
	if err != nil {
		t.Fatal(err)
	}
	mode := func(field, value byte) []byte { // linux.security_context.namespace_options
		return append(bytes.Clone(web), 0x42, 6, 0x12, 4, 0x0a, 2, field<<3, value)
	}
	for want, message := range map[string][]byte{
		"hostNetwork": mode(1, 2), "hostPID": mode(2, 2), "hostIPC": mode(3, 2),
		"hostUsers":         append(bytes.Clone(web), 0x42, 6, 0x12, 4, 0x0a, 2, 5<<3|2, 0),
		"at most 4194304":   make([]byte, maxPodConfig+1),
		"PodSandboxConfig":  append(bytes.Clone(web), 0xff),
		"expected text":     append(bytes.Clone(web), 0x12, 1, 0xff),
		"expected a number": append(bytes.Clone(web), 0x42, 6, 0x12, 4, 0x0a, 2, 1<<3|2, 0),
	} {
		if _, err := FromConfig(message, "x", "/ns"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("expected %q, got %v", want, err)
		}
	}
	if _, err := FromConfig(web, "x", ""); err == nil || !strings.Contains(err.Error(), "network namespace") {
		t.Errorf("no namespace: %v", err)
	}
	if _, err := FromConfig(web, "x/y", "/ns"); err == nil || !strings.Contains(err.Error(), "sandbox id") {
		t.Errorf("id: %v", err)
	}
}

// invariants of whatever is accepted.
func invariants(t *testing.T, s *Sandbox) {
	t.Helper()
	if s == nil {
		return
	}
	if len(s.Initdata) > maxGzip || len(s.DNS.GetServers()) > maxServers || len(s.DNS.GetSearches()) > maxSearches || len(s.DNS.GetOptions()) > maxOptions {
		t.Fatalf("out of bounds: %+v", s)
	}
	if s.Resources.MemoryBytes < 0 || s.Resources.CPUMillis < 0 || s.Resources.CPUMillis > maxMillis {
		t.Fatalf("resources %+v", s.Resources)
	}
}

func FuzzReadBundle(f *testing.F) {
	for _, name := range names() {
		f.Add(load(f, "2.4", name))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := parse(data, "id-1", func(string) ([]byte, error) { return data, nil })
		if err != nil {
			return
		}
		invariants(t, b.Sandbox)
		if (b.Sandbox == nil) == (b.Kind != KindContainer) || (b.Container == nil) == (b.Kind != KindSandbox) {
			t.Fatalf("%s: %v, %v", b.Kind, b.Sandbox, b.Container)
		}
		if b.Container != nil && len(b.Container.Proposal().GetArgs().GetValues()) == 0 {
			t.Fatal("no arguments")
		}
	})
}

func TestCgroupOf(t *testing.T) {
	t.Parallel()
	for parent, want := range map[string]string{
		"": "", "/kubepods/pod1": "/kubepods/pod1/id-1", "/": "/id-1",
		"/kubepods.slice/kubepods-pod1.slice": "kubepods-pod1.slice:cri-containerd:id-1", "kubepods-pod1.slice": "kubepods-pod1.slice:cri-containerd:id-1",
	} {
		if got := cgroupOf(parent, "id-1"); got != want {
			t.Errorf("%q: %q, expected %q", parent, got, want)
		}
	}
}

func FuzzFromConfig(f *testing.F) {
	for _, name := range []string{"web", "shared"} {
		data, err := os.ReadFile(filepath.Join("testdata", name+".pb"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := FromConfig(data, "id-1", "/ns")
		if err == nil {
			invariants(t, s)
		}
	})
}

// TestOOMScore: what the kernel does not know is refused, wherever it stands.
func TestOOMScore(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		score int
		ok    bool
	}{{-1000, true}, {0, true}, {1000, true}, {-1001, false}, {1001, false}, {1 << 40, false}} {
		p := &specs.Process{OOMScoreAdj: &tt.score}
		if err := checkOOMScore(p); (err == nil) != tt.ok || err != nil && !strings.Contains(err.Error(), fmt.Sprint("process.oomScoreAdj: expected -1000 to 1000, got ", tt.score)) {
			t.Errorf("%d: %v", tt.score, err)
		}
	}
	for _, name := range []string{"web-sandbox", "web-app"} {
		data := load(t, "2.2", name)
		if !bytes.Contains(data, []byte(`"oomScoreAdj"`)) {
			t.Fatalf("%s has none", name)
		}
		bad := regexp.MustCompile(`"oomScoreAdj": *-?[0-9]+`).ReplaceAll(data, []byte(`"oomScoreAdj":5000`))
		if _, err := parse(bad, strings.Repeat("a", 64), resolvConf); err == nil || !strings.Contains(err.Error(), "oomScoreAdj") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
