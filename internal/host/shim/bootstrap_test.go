package shim

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bootstrapapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// options are what containerd writes: the type's bare name.
func options(t testing.TB, m proto.Message) *anypb.Any {
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: marshal(t, m)}
}

// TestDialects has what each daemon does when it calls `start`, and what it has
// to get.
func TestDialects(t *testing.T) {
	const address = "unix:///run/containerd/s/0123"
	f := flags{namespace: "k8s.io", id: "pod1", address: "/run/containerd/containerd.sock"}
	handler := &runtimeoptions.Options{TypeUrl: "x", ConfigPath: "/etc/coffer/qemu.toml"}
	socketDir := "/run/x/s"
	// Written by hand from bootstrap.proto: fields 1 to 3.
	var bootstrap []byte
	bootstrap = protowire.AppendTag(bootstrap, 1, protowire.VarintType)
	bootstrap = protowire.AppendVarint(bootstrap, 3)
	bootstrap = protowire.AppendTag(bootstrap, 2, protowire.BytesType)
	bootstrap = protowire.AppendString(bootstrap, address)
	bootstrap = protowire.AppendTag(bootstrap, 3, protowire.BytesType)
	bootstrap = protowire.AppendString(bootstrap, "ttrpc")

	for _, tt := range []struct {
		name   string
		stdin  []byte
		env    map[string]string
		want   request
		answer string
	}{
		{
			name: "containerd 1.6.20 without options", env: map[string]string{"TTRPC_ADDRESS": "/c.ttrpc"},
			want: request{dialect: dialectText, ttrpcAddress: "/c.ttrpc"}, answer: address,
		},
		{
			name: "containerd 1.6.20 with ConfigPath", stdin: marshal(t, options(t, handler)), env: map[string]string{"TTRPC_ADDRESS": "/c.ttrpc"},
			want: request{dialect: dialectText, ttrpcAddress: "/c.ttrpc", config: "/etc/coffer/qemu.toml"}, answer: address,
		},
		{
			name: "containerd 2.2.9", stdin: marshal(t, options(t, handler)),
			env: map[string]string{
				"TTRPC_ADDRESS": "/c.ttrpc", "GRPC_ADDRESS": "/c", "NAMESPACE": "k8s.io", "MAX_SHIM_VERSION": "2", "GOMAXPROCS": "2",
			},
			want:   request{dialect: dialectJSON, maxVersion: 2, ttrpcAddress: "/c.ttrpc", config: "/etc/coffer/qemu.toml"},
			answer: `{"version":2,"address":"unix:///run/containerd/s/0123","protocol":"ttrpc"}`,
		},
		{
			name: "a containerd that announces more than there is", env: map[string]string{"MAX_SHIM_VERSION": "4"},
			want:   request{dialect: dialectJSON, maxVersion: 4},
			answer: `{"version":3,"address":"unix:///run/containerd/s/0123","protocol":"ttrpc"}`,
		},
		{
			name: "containerd 2.4.2",
			stdin: marshal(t, &bootstrapapi.BootstrapParams{
				InstanceID: "pod1", Namespace: "k8s.io", ContainerdVersion: "2.4.2", ContainerdTtrpcAddress: "/d.ttrpc", ContainerdGrpcAddress: "/d",
				LogLevel: bootstrapapi.LogLevel_LOG_LEVEL_DEBUG, SocketDir: &socketDir,
				Extensions: []*bootstrapapi.Extension{
					{Value: &anypb.Any{TypeUrl: "unknown.Type", Value: []byte{1}}}, {Value: options(t, handler)}, {},
				},
			}),
			env: map[string]string{"TTRPC_ADDRESS": "/c.ttrpc", "MAX_SHIM_VERSION": "2"},
			want: request{
				dialect: dialectBootstrap, maxVersion: 3, ttrpcAddress: "/d.ttrpc", socketDir: socketDir, debug: true, config: "/etc/coffer/qemu.toml",
			},
			answer: string(bootstrap),
		},
		{
			name: "options of runc", stdin: marshal(t, options(t, &runcoptions.Options{ShimCgroup: "/shims", BinaryName: "x"})),
			want: request{shimCgroup: "/shims"}, answer: address,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := readRequest(bytes.NewReader(tt.stdin), func(n string) string { return tt.env[n] }, f)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(request{})); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			answer, err := got.answer(address)
			if err != nil {
				t.Fatal(err)
			}
			if string(answer) != tt.answer {
				t.Errorf("answer: want %q, got %q", tt.answer, answer)
			}
		})
	}
}

func TestRequestRefused(t *testing.T) {
	f := flags{namespace: "n", id: "i"}
	none := func(string) string { return "" }
	for _, tt := range []struct {
		name  string
		stdin []byte
		env   func(string) string
		want  string
	}{
		{"too long", make([]byte, stdinLimit+1), none, "at most 1048576 bytes"},
		{"not protobuf", []byte("\xff\xff"), none, "expected options or bootstrap parameters"},
		{"no number", nil, func(string) string { return "two" }, "MAX_SHIM_VERSION: expected a number from 2, got \"two\""},
		{"too small", nil, func(string) string { return "1" }, "expected a number from 2"},
		{"a body in place of a path", marshal(t, options(t, &runtimeoptions.Options{ConfigBody: []byte("a = 1")})), none, "expected ConfigPath"},
		{"broken options", marshal(t, &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: []byte{0xff}}), none, "runtime options"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := readRequest(bytes.NewReader(tt.stdin), tt.env, f)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("want an error with %q, got %v", tt.want, err)
			}
		})
	}
}

// Whatever is on standard input, the parameters count only when they name the
// container of the command line.
func FuzzReadRequest(f *testing.F) {
	f.Add(marshal(f, options(f, &runtimeoptions.Options{ConfigPath: "/a"})))
	f.Add(marshal(f, &bootstrapapi.BootstrapParams{InstanceID: "pod1", Namespace: "ns"}))
	f.Fuzz(func(t *testing.T, stdin []byte) {
		r, err := readRequest(bytes.NewReader(stdin), func(string) string { return "" }, flags{namespace: "ns", id: "pod1"})
		if err != nil {
			return
		}
		if r.dialect == dialectJSON {
			t.Error("JSON without MAX_SHIM_VERSION")
		}
		if r.dialect == dialectBootstrap && !bytes.Contains(stdin, []byte("pod1")) {
			t.Error("parameters of another container")
		}
	})
}

func TestPodOf(t *testing.T) {
	for _, tt := range []struct{ name, spec, want, err string }{
		{"no description", "", "c1", ""},
		{"a single container", `{"ociVersion":"1.1.0"}`, "c1", ""},
		{"a sandbox", `{"annotations":{"io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-id":"c1"}}`, "c1", ""},
		{"a container", `{"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"p1"}}`, "p1", ""},
		{"a container of CRI-O", `{"annotations":{"io.kubernetes.cri-o.ContainerType":"container","io.kubernetes.cri-o.SandboxID":"p2"}}`, "p2", ""},
		{"no sandbox", `{"annotations":{"io.kubernetes.cri.container-type":"container"}}`, "", "annotation io.kubernetes.cri.sandbox-id"},
		{"a path", `{"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"../x"}}`, "", "got \"../x\""},
		{"broken", `{"annotations":`, "", "config.json: unexpected EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if tt.spec != "" {
				if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(tt.spec), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := podOf(dir, "c1")
			if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("want %q and error %q, got %q and %v", tt.want, tt.err, got, err)
			}
		})
	}
}

func TestHugeSpec(t *testing.T) {
	dir := t.TempDir()
	file, err := os.Create(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(`{"annotations":{"a":"`); err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(bytes.Repeat([]byte("x"), specLimit)); err != nil {
		t.Fatal(err)
	}
	if _, err := podOf(dir, "c1"); err == nil || !strings.Contains(err.Error(), "at most 16777216 bytes") {
		t.Errorf("got %v", err)
	}
}

func TestSocketPath(t *testing.T) {
	// sha256 of the joined path, as containerd's shims derive theirs.
	got, err := socketPath("/run/containerd/s", "/run/containerd/containerd.sock", "k8s.io", "pod1")
	if err != nil {
		t.Fatal(err)
	}
	const want = "/run/containerd/s/" + podSum
	if got != want {
		t.Errorf("want %s, got %s", want, got)
	}
	if _, err := socketPath("/"+strings.Repeat("d", 42), "a", "b", "c"); err == nil || !strings.Contains(err.Error(), "at most 107 bytes, got 108") {
		t.Errorf("a path that is too long: got %v", err)
	}
}

// podSum is from: printf %s /run/containerd/containerd.sock/k8s.io/pod1 | sha256sum.
const podSum = "8e264b1ad347c80aee5f3dea6e4bb53d72026989222058782273d5db043c7723"

func TestLogNeverWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	line := []byte(strings.Repeat("a", 1023) + "\n")
	const lines = 100 // more than the pipe takes
	for range lines {
		if n, err := l.Write(line); n != len(line) || err != nil {
			t.Fatalf("write: %d, %v", n, err)
		}
	}
	if l.lost == 0 {
		t.Fatal("the pipe took everything")
	}
	lost := l.lost
	reader, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	buf := make([]byte, len(line)*(lines-lost))
	if _, err := reader.Read(buf); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Write([]byte("after\n")); err != nil {
		t.Fatal(err)
	}
	var rest [4096]byte
	n, err := reader.Read(rest[:])
	if err != nil || !strings.Contains(string(rest[:n]), "lost=") || !strings.HasSuffix(string(rest[:n]), "after\n") {
		t.Errorf("after the reader came: %q, %v", rest[:n], err)
	}
}

func TestLogRefusesFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openLog(path); err == nil || !strings.Contains(err.Error(), "expected a named pipe") {
		t.Errorf("got %v", err)
	}
}
