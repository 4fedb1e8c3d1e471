package shim_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	taskv2 "github.com/containerd/containerd/api/runtime/task/v2"
	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/coffer-project/coffer/internal/host/shim/hosttest"
	"github.com/coffer-project/coffer/internal/host/shim/podstate"
)

const testNamespace = "test"

// node is a place where shims run: bundles, sockets and state.
type node struct {
	dir, binary string
	env         []string
}

// newNode makes a node. Its paths are short: sockets are in it.
func newNode(t *testing.T) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left := leftovers(dir); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		_ = os.RemoveAll(dir)
	})
	n := &node{dir: dir, binary: hosttest.InstallShim(t, dir, shimName)}
	n.env = append(os.Environ(), "COFFER_SHIM_TEST_SOCKETS="+filepath.Join(dir, "s"), "COFFER_SHIM_TEST_STATE="+filepath.Join(dir, "state"),
		"TTRPC_ADDRESS="+filepath.Join(dir, "none.ttrpc"))
	return n
}

// leftovers are sockets and pods' directories.
func leftovers(dir string) []string {
	sockets, _ := filepath.Glob(filepath.Join(dir, "s", "*"))
	states, _ := filepath.Glob(filepath.Join(dir, "state", "*", "*"))
	return append(sockets, states...)
}

func (n *node) bundle(t *testing.T, id, spec string) string {
	t.Helper()
	dir := filepath.Join(n.dir, "bundles", id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "log"), 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	return dir
}

// call runs the shim as containerd 1.6 does, and returns what it prints.
func (n *node) call(t *testing.T, bundle string, stdin []byte, args ...string) (stdout []byte, err error) {
	t.Helper()
	args = append([]string{"-namespace", testNamespace, "-address", "/c.sock", "-publish-binary", "/bin/true", "-id", filepath.Base(bundle)}, args...)
	cmd := exec.CommandContext(t.Context(), n.binary, args...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stderr = bundle, n.env, bytes.NewReader(stdin), &stderr
	stdout, err = cmd.Output()
	if err != nil {
		err = errors.New(stderr.String())
	}
	return stdout, err
}

func (n *node) start(t *testing.T, bundle string) string {
	t.Helper()
	out, err := n.call(t, bundle, nil, "start")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(string(out), "unix://")
}

func (n *node) state(t *testing.T, id string) podstate.State {
	t.Helper()
	dir, err := podstate.Dir(filepath.Join(n.dir, "state"), testNamespace, id)
	if err != nil {
		t.Fatal(err)
	}
	s, err := podstate.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func dial(t *testing.T, path string) *ttrpc.Client {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c := ttrpc.NewClient(conn)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func awaitEnd(t *testing.T, p podstate.Process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := p.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

const podSpec = `{"process":{"args":["sleep","1000"]},"annotations":{"io.kubernetes.cri.container-type":"sandbox","io.kubernetes.cri.sandbox-id":"pod1"}}`
const containerSpec = `{"process":{"args":["sleep","1000"]},"annotations":{"io.kubernetes.cri.container-type":"container","io.kubernetes.cri.sandbox-id":"pod1"}}`

func TestStartServeShutdown(t *testing.T) {
	n := newNode(t)
	bundle := n.bundle(t, "pod1", podSpec)
	socket := n.start(t, bundle)

	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	if data, err := os.ReadFile(filepath.Join(bundle, "address")); err != nil || string(data) != "unix://"+socket {
		t.Errorf("address file: %q, %v", data, err)
	}
	if again := n.start(t, bundle); again != socket {
		t.Errorf("a second start: want %s, got %s", socket, again)
	}
	if member := n.start(t, n.bundle(t, "c1", containerSpec)); member != socket {
		t.Errorf("start of a container of the pod: want %s, got %s", socket, member)
	}
	client := dial(t, socket)
	state := n.state(t, "pod1")
	v2, err := taskv2.NewTTRPCTaskClient(client).Connect(t.Context(), &taskv2.ConnectRequest{ID: "pod1"})
	if err != nil || int(v2.ShimPid) != state.Shim.PID {
		t.Errorf("task v2: %v, %v; the state has pid %d", v2, err, state.Shim.PID)
	}
	v3 := taskv3.NewTTRPCTaskClient(client)
	if c, err := v3.Connect(t.Context(), &taskv3.ConnectRequest{ID: "pod1"}); err != nil || int(c.ShimPid) != state.Shim.PID {
		t.Errorf("task v3: %v, %v", c, err)
	}
	checkDaemon(t, state.Shim.PID)
	if _, err := v3.Shutdown(t.Context(), &taskv3.ShutdownRequest{ID: "pod1"}); err != nil {
		t.Error(err)
	}
	awaitEnd(t, state.Shim)
	for range 2 { // containerd calls it although everything is gone, and may again
		out, err := n.call(t, bundle, nil, "-bundle", bundle, "delete")
		checkDelete(t, out, err, 137)
	}
}

// checkDaemon checks what containerd expects of the process.
func checkDaemon(t *testing.T, pid int) {
	t.Helper()
	proc := "/proc/" + itoa(pid)
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session: want its own (%d), got %d, %v", pid, sid, err)
	}
	mine, err1 := os.ReadFile("/proc/self/oom_score_adj")
	its, err2 := os.ReadFile(proc + "/oom_score_adj")
	if want := itoa(min(atoi(string(mine))+1, 1000)); errors.Join(err1, err2) != nil || strings.TrimSpace(string(its)) != want {
		t.Errorf("OOM score: want %s, got %s", want, its)
	}
}

func checkDelete(t *testing.T, out []byte, err error, status uint32) {
	t.Helper()
	var resp taskv2.DeleteResponse
	if err != nil || proto.Unmarshal(out, &resp) != nil || resp.ExitStatus != status || time.Since(resp.ExitedAt.AsTime()) > time.Hour {
		t.Errorf("delete: want status %d, got %v, %v", status, &resp, err)
	}
}

func TestDeleteAfterKill(t *testing.T) {
	n := newNode(t)
	bundle, member := n.bundle(t, "pod1", podSpec), n.bundle(t, "c1", containerSpec)
	socket := n.start(t, bundle)
	n.start(t, member)
	task := taskv2.NewTTRPCTaskClient(dial(t, socket))
	for _, id := range []string{"pod1", "c1"} {
		if _, err := task.Create(t.Context(), &taskv2.CreateTaskRequest{ID: id, Bundle: filepath.Join(n.dir, "bundles", id)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := task.Start(t.Context(), &taskv2.StartRequest{ID: "pod1"}); err != nil {
		t.Fatal(err)
	}
	// While the daemon serves, the end of one container changes nothing.
	out, err := n.call(t, member, nil, "-bundle", member, "delete")
	checkDelete(t, out, err, 137)
	state := n.state(t, "pod1")
	if len(state.Machines) != 1 || !state.Machines[0].Alive() || !state.Shim.Alive() {
		t.Fatalf("after the delete of a container: %+v", state)
	}
	if err := state.Shim.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, state.Shim)
	var all sync.WaitGroup
	for _, b := range []string{bundle, member, bundle} {
		all.Go(func() {
			out, err := n.call(t, b, nil, "-bundle", b, "delete")
			checkDelete(t, out, err, 137)
		})
	}
	all.Wait()
	if state.Machines[0].Alive() {
		t.Error("the machine's process still runs")
	}
}

// A daemon that containerd has given up goes, with what it runs.
func TestDeleteOfLivingPod(t *testing.T) {
	n := newNode(t)
	bundle := n.bundle(t, "pod1", podSpec)
	task := taskv2.NewTTRPCTaskClient(dial(t, n.start(t, bundle)))
	if _, err := task.Create(t.Context(), &taskv2.CreateTaskRequest{ID: "pod1", Bundle: bundle}); err != nil {
		t.Fatal(err)
	}
	if _, err := task.Start(t.Context(), &taskv2.StartRequest{ID: "pod1"}); err != nil {
		t.Fatal(err)
	}
	state := n.state(t, "pod1")
	out, err := n.call(t, bundle, nil, "-bundle", bundle, "delete")
	checkDelete(t, out, err, 137)
	if state.Machines[0].Alive() {
		t.Error("the machine still runs")
	}
	awaitEnd(t, state.Shim) // it tries to tell a containerd that is not there
}

// A daemon without a machine that still has to answer for containers stays.
func TestDeleteLeavesDaemonThatAnswers(t *testing.T) {
	n := newNode(t)
	bundle := n.bundle(t, "pod1", podSpec)
	task := taskv2.NewTTRPCTaskClient(dial(t, n.start(t, bundle)))
	if _, err := task.Create(t.Context(), &taskv2.CreateTaskRequest{ID: "c1", Bundle: bundle}); err != nil {
		t.Fatal(err)
	}
	out, err := n.call(t, bundle, nil, "-bundle", bundle, "delete")
	checkDelete(t, out, err, 137)
	state := n.state(t, "pod1")
	if !state.Shim.Alive() {
		t.Fatal("the daemon is gone")
	}
	if _, err := task.Delete(t.Context(), &taskv2.DeleteRequest{ID: "c1"}); err != nil {
		t.Error(err)
	}
	// Now that it has nothing to do, the same `delete` ends it.
	out, err = n.call(t, bundle, nil, "-bundle", bundle, "delete")
	checkDelete(t, out, err, 137)
	awaitEnd(t, state.Shim)
}

func TestStaleSocketAndState(t *testing.T) {
	n := newNode(t)
	bundle := n.bundle(t, "pod1", podSpec)
	socket := n.start(t, bundle)
	old := n.state(t, "pod1")
	if err := old.Shim.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, old.Shim)
	if _, err := os.Stat(socket); err != nil {
		t.Fatal("the killed daemon's socket is gone: nothing to test")
	}
	// A container cannot join a pod whose daemon is dead.
	if _, err := n.call(t, n.bundle(t, "c1", containerSpec), nil, "start"); err == nil || !strings.Contains(err.Error(), "the shim of its pod pod1 does not run any more") {
		t.Errorf("start of a container: got %v", err)
	}
	if again := n.start(t, bundle); again != socket {
		t.Errorf("want %s, got %s", socket, again)
	}
	now := n.state(t, "pod1")
	if !now.Shim.Alive() || now.Shim.PID == old.Shim.PID {
		t.Errorf("state after the second start: %+v", now)
	}
	stop(t, now.Shim)
}

func stop(t *testing.T, p podstate.Process) {
	t.Helper()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, p)
}

func TestStartsRace(t *testing.T) {
	n := newNode(t)
	bundle := n.bundle(t, "pod1", podSpec)
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			out, err := n.call(t, bundle, nil, "start")
			if err != nil || !strings.HasPrefix(string(out), "unix://") {
				t.Errorf("start: %q, %v", out, err)
			}
		})
	}
	all.Wait()
	state := n.state(t, "pod1")
	client := taskv2.NewTTRPCTaskClient(dial(t, state.Socket))
	if c, err := client.Connect(t.Context(), &taskv2.ConnectRequest{}); err != nil || int(c.ShimPid) != state.Shim.PID {
		t.Errorf("who answers: %v, %v; who is noted: %d", c, err, state.Shim.PID)
	}
	stop(t, state.Shim)
	if n := daemons(t, n.binary); n != 0 {
		t.Errorf("%d daemons still run", n)
	}
}

// daemons counts processes of a program.
func daemons(t *testing.T, binary string) int {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, l := range links {
		if target, err := os.Readlink(l); err == nil && target == binary {
			count++
		}
	}
	return count
}

// await waits until so many processes of the node's shim run.
func (n *node) await(t *testing.T, want int) {
	t.Helper()
	const limit = 30 * time.Second
	for end := time.Now().Add(limit); daemons(t, n.binary) != want; {
		if time.Now().After(end) {
			t.Fatalf("processes of the shim after %s: want %d, got %d", limit, want, daemons(t, n.binary))
		}
		<-time.After(time.Millisecond)
	}
}

// What is wrong is told by `start`, in one line, and nothing is left.
func TestStartFails(t *testing.T) {
	n := newNode(t)
	config := func(path string) []byte {
		value, err := proto.Marshal(&runtimeoptions.Options{ConfigPath: path})
		if err != nil {
			t.Fatal(err)
		}
		data, err := proto.Marshal(&anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: value})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for _, tt := range []struct {
		name, spec string
		stdin      []byte
		want       string
	}{
		{"configuration", podSpec, config("/bad"), "configuration: expected a name that ends in .toml"},
		{"daemon", podSpec, config("/broken.toml"), "the guest image is missing"},
		{"bundle", `{"annotations":3}`, nil, "config.json: json: cannot unmarshal"},
		{"options", podSpec, []byte{0xff}, "expected options or bootstrap parameters"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := n.call(t, n.bundle(t, "pod1", tt.spec), tt.stdin, "start")
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Count(err.Error(), "\n") != 1 || len(out) != 0 {
				t.Errorf("want one line with %q, got %v; printed %q", tt.want, err, out)
			}
		})
	}
	if n := daemons(t, n.binary); n != 0 {
		t.Errorf("%d daemons still run", n)
	}
}

// A daemon that nobody asks ends by itself, one that was asked does not.
func TestLonelyDaemonEnds(t *testing.T) {
	n := newNode(t)
	n.env = append(n.env, "COFFER_SHIM_TEST_LINGER=4s")
	lonely, asked := n.bundle(t, "pod1", podSpec), n.bundle(t, "pod2", `{}`)
	n.start(t, lonely)
	task := taskv2.NewTTRPCTaskClient(dial(t, n.start(t, asked)))
	if _, err := task.Connect(t.Context(), &taskv2.ConnectRequest{}); err != nil {
		t.Fatal(err)
	}
	other := n.state(t, "pod2")
	n.await(t, 1)
	if !other.Shim.Alive() {
		t.Error("the daemon that was asked has ended")
	}
	stop(t, other.Shim)
}

// A daemon whose `+"`start`"+` was killed before it was ready ends, too.
func TestStartIsKilled(t *testing.T) {
	n := newNode(t)
	bundle := n.bundle(t, "pod1", podSpec)
	cmd := exec.CommandContext(t.Context(), n.binary, "-namespace", testNamespace, "-address", "/c.sock", "-id", "pod1", "start")
	cmd.Dir, cmd.Env = bundle, append(n.env, "COFFER_SHIM_TEST_SLOW=500ms")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n.await(t, 2)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	n.await(t, 0)
}

func TestCommandLine(t *testing.T) {
	n := newNode(t)
	bundle := n.bundle(t, "pod1", podSpec)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-namespace", "../x", "-id", "a", "start"}, `-namespace: expected letters and digits`},
		{[]string{"-namespace", "x", "-id", "a/b", "delete"}, `-id: expected letters and digits`},
		{[]string{"-namespace", "x", "-id", "a", "go"}, `action: expected start, delete or none, got "go"`},
		{[]string{"-namespace", "x", "-id", "a", "start", "now"}, `expected one action`},
		{[]string{"-colour"}, "flag provided but not defined"},
		{[]string{"-namespace", "x", "-id", "a"}, "no socket was inherited"},
	} {
		cmd := exec.CommandContext(t.Context(), n.binary, tt.args...)
		cmd.Dir, cmd.Env = bundle, n.env
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), tt.want) {
			t.Errorf("%q: want %q, got %q, %v", tt.args, tt.want, out, err)
		}
	}
}

func TestVersionAndInfo(t *testing.T) {
	n := newNode(t)
	out, err := exec.CommandContext(t.Context(), n.binary, "-v").Output()
	if err != nil || !strings.Contains(string(out), "io.containerd.coffertest.v2:\n  Version:    1.2.3\n") {
		t.Errorf("-v: %q, %v", out, err)
	}
	value, err := proto.Marshal(&runtimeoptions.Options{ConfigPath: "/etc/a.toml"})
	if err != nil {
		t.Fatal(err)
	}
	options := &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: value}
	data, err := proto.Marshal(options)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), n.binary, "-info")
	cmd.Stdin = bytes.NewReader(data)
	if out, err = cmd.Output(); err != nil {
		t.Fatal(err)
	}
	var info types.RuntimeInfo
	if err := proto.Unmarshal(out, &info); err != nil || info.Name != "io.containerd.coffertest.v2" || !proto.Equal(info.Options, options) {
		t.Errorf("-info: %v, %v", &info, err)
	}
	var f features.Features
	if err := json.Unmarshal(info.Features.GetValue(), &f); err != nil || f.OCIVersionMax != "1.3.0" {
		t.Errorf("features: %+v, %v", f, err)
	}
}
