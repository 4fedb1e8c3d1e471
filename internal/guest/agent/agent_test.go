package agent_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/guest/agent"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/podpolicy"
)

const (
	stdin  = agentapi.StreamHeader_STDIN
	stdout = agentapi.StreamHeader_STDOUT
	stderr = agentapi.StreamHeader_STDERR
)

func TestUnsealedPod(t *testing.T) {
	w := newWorld(t, nil)
	h := w.connect()
	hello := must[*agentapi.HelloResponse](t)(h.Hello(t.Context(), &agentapi.HelloRequest{Versions: []uint32{1, 9}}))
	if hello.GetVersion() != 1 || hello.GetSealed() || !hello.GetSimulated() || hello.GetTee() != "" || len(hello.GetBootId()) != 16 {
		t.Errorf("hello = %v", hello)
	}
	if _, err := h.Hello(t.Context(), &agentapi.HelloRequest{Versions: []uint32{9}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("hello of another version: %v", err)
	}
	_, err := h.CreateContainer(t.Context(), w.shell("early", "true"))
	refused(t, err, podpolicy.RuleSandboxRequired)

	sandbox := &agentapi.CreateSandboxRequest{
		SandboxId: "pod", PodName: "web", Hostname: "web-0", Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"},
		Network: &agentapi.Network{
			Dns:   &agentapi.DNS{Servers: []string{"10.0.2.3"}, Searches: []string{"shop.example"}},
			Hosts: []*agentapi.HostEntry{{Address: "10.0.2.2", Names: []string{"host.coffer.internal"}}},
		},
	}
	for range 2 { // the second is a repetition
		resp := must[*agentapi.CreateSandboxResponse](t)(h.CreateSandbox(t.Context(), sandbox))
		if resp.GetSealed() {
			t.Error("sealed without initdata")
		}
	}
	_, err = h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "other"})
	refused(t, err, podpolicy.RuleSandboxOnce)
	if w.machine.hostname != "web-0" || w.machine.sysctls["net.ipv4.ip_unprivileged_port_start"] != "0" {
		t.Errorf("machine = %+v", w.machine)
	}

	req := w.shell("c1", "cat; echo $FROM $FOO; cat /etc/resolv.conf; cat /etc/hosts >&2; exit 9")
	req.Stdin = true
	req.Env = &agentapi.StringList{Values: []string{"PATH=/bin", "FROM=image", "FOO=bar"}}
	for range 2 {
		resp := must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), req))
		if resp.GetManifestDigest() != string(w.image.Digest) {
			t.Errorf("manifest %s, want %s", resp.GetManifestDigest(), w.image.Digest)
		}
	}
	in, out, errs := h.stream(stdin, "c1", ""), h.stream(stdout, "c1", ""), h.stream(stderr, "c1", "")
	must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "c1"}))
	must[*agentapi.StatsResponse](t)(h.Stats(t.Context(), &agentapi.StatsRequest{ContainerId: "c1"}))
	if _, err := in.Write([]byte("typed\n")); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	if got, want := readAll(t, out), "typed\nimage bar\nnameserver 10.0.2.3\nsearch shop.example\n"; got != want {
		t.Errorf("stdout %q, want %q", got, want)
	}
	if got := readAll(t, errs); !strings.Contains(got, "10.0.2.2\thost.coffer.internal") {
		t.Errorf("hosts file %q", got)
	}
	for range 2 {
		exit := must[*agentapi.WaitResponse](t)(h.Wait(t.Context(), &agentapi.WaitRequest{ContainerId: "c1"}))
		if exit.GetExitCode() != 9 || exit.GetReason() != "exited" || exit.GetExitedAt() == 0 {
			t.Errorf("wait = %v", exit)
		}
	}
	// A stream that is opened late has simply ended.
	if got := readAll(t, h.stream(stdout, "c1", "")); got != "" {
		t.Errorf("late stream %q", got)
	}
	if del := must[*agentapi.DeleteResponse](t)(h.Delete(t.Context(), &agentapi.DeleteRequest{ContainerId: "c1"})); del.GetExitCode() != 9 {
		t.Errorf("delete = %v", del)
	}
	if _, err := h.Delete(t.Context(), &agentapi.DeleteRequest{ContainerId: "c1"}); status.Code(err) != codes.NotFound {
		t.Errorf("second delete: %v", err)
	}
	if w.broker.attested != 0 {
		t.Errorf("an unsealed pod attested %d times", w.broker.attested)
	}
	must[*agentapi.ShutdownResponse](t)(h.Shutdown(t.Context(), &agentapi.ShutdownRequest{}))
	if w.machine.shutdown != 1 {
		t.Error("the machine was not shut down")
	}
}

func TestEvents(t *testing.T) {
	w := newWorld(t, nil)
	h := w.connect()
	must[*agentapi.CreateSandboxResponse](t)(h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod"}))
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), w.shell("c1", "exit 3")))
	must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "c1"}))
	events := h.open(&agentapi.StreamHeader{Kind: agentapi.StreamHeader_EVENTS})
	pulled, last := false, uint64(0)
	for {
		var e agentapi.Event
		if err := channel.ReadMessage(events, &e); err != nil {
			t.Fatal(err)
		}
		if e.GetSequence() != last+1 || e.GetAt() == 0 {
			t.Fatalf("event %v after number %d", &e, last)
		}
		last = e.GetSequence()
		if p := e.GetPull(); p != nil && p.GetContainerId() == "c1" {
			pulled = true
		}
		if exit := e.GetExit(); exit != nil {
			if exit.GetExitCode() != 3 || !pulled {
				t.Errorf("exit %v, pull seen: %v", exit, pulled)
			}
			return
		}
	}
}

func TestInitdataMustMatchTheEvidence(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	gz, digest := w.initdata(func(*podpolicy.Policy) {})
	tampered, other := w.initdata(func(p *podpolicy.Policy) { p.Containers[0].Allow.Logs = true })
	for _, tt := range []struct {
		name          string
		hostData, doc []byte
		want          []string
	}{
		{"launched without", make([]byte, 32), gz, []string{hex.EncodeToString(make([]byte, 32)), hex.EncodeToString(digest)}},
		{"not sent", digest, nil, []string{hex.EncodeToString(digest), "none"}},
		{"edited", digest, tampered, []string{hex.EncodeToString(digest), hex.EncodeToString(other)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.hostData)
			h := w.connect()
			_, err := h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod", Initdata: tt.doc})
			refused(t, err, agent.RuleInitdata)
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q is not in %v", part, err)
				}
			}
			if w.broker.attested != 0 {
				t.Error("the trustee was asked")
			}
			_, err = h.CreateContainer(t.Context(), w.shell("c", "true"))
			refused(t, err, podpolicy.RuleSandboxRequired)
		})
	}
	h := w.connect()
	_, err := h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod", Initdata: []byte("not gzip")})
	refused(t, err, agent.RuleInitdataContent)
}

func TestSealedPod(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	w.broker.resources["kbs:///shop/db/password"] = "hunter2"
	h := w.seal(func(p *podpolicy.Policy) {
		c := &p.Containers[0]
		c.Args = []string{"/bin/sh", "-c", "echo $SECRET; exec sleep 1000"}
		c.Env = map[string]podpolicy.EnvValue{"SECRET": {Resource: "kbs:///shop/db/password"}}
		c.Allow = podpolicy.Allow{Logs: true, Exec: []podpolicy.ExecRule{{Args: []string{"/bin/sh", "-c", "cat; echo $SECRET"}, Output: true, Stdin: true}}}
	})
	hello := must[*agentapi.HelloResponse](t)(h.Hello(t.Context(), &agentapi.HelloRequest{Versions: []uint32{1}}))
	if !hello.GetSealed() || !bytes.Equal(hello.GetInitdataDigest(), w.attester.initData) || hello.GetTee() != "snp" {
		t.Errorf("hello = %v", hello)
	}

	// What the policy does not have is refused before the trustee is asked.
	_, err := h.CreateContainer(t.Context(), w.shell("evil", "true"))
	refused(t, err, podpolicy.RuleContainerUnknown)
	other := w.shell("web", "echo other")
	_, err = h.CreateContainer(t.Context(), other)
	if r := refused(t, err, podpolicy.RuleContainerArgs); r.GetPath() != "args[2]" || r.GetGot() == "" {
		t.Errorf("refusal = %v", r)
	}
	if w.broker.attested != 0 || w.fetches.count != 0 {
		t.Errorf("attested %d times, fetched %d times", w.broker.attested, w.fetches.count)
	}

	create := &agentapi.CreateContainerRequest{ContainerId: "web", Name: "web"}
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), create))
	if w.broker.attested != 1 {
		t.Errorf("attested %d times, want 1", w.broker.attested)
	}
	out := h.stream(stdout, "web", "")
	must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "web"}))
	line := make([]byte, len("hunter2\n"))
	if _, err := io.ReadFull(out, line); err != nil || string(line) != "hunter2\n" {
		t.Errorf("output %q, %v", line, err)
	}

	// Exec: only what is listed.
	_, err = h.Exec(t.Context(), &agentapi.ExecRequest{ContainerId: "web", ExecId: "e0", Args: []string{"/bin/sh"}})
	refused(t, err, podpolicy.RuleExecArgs)
	must[*agentapi.ExecResponse](t)(h.Exec(t.Context(), &agentapi.ExecRequest{
		ContainerId: "web", ExecId: "e1", Args: []string{"/bin/sh", "-c", "cat; echo $SECRET"}, Stdin: true}))
	in, execOut := h.stream(stdin, "web", "e1"), h.stream(stdout, "web", "e1")
	if _, err := in.Write([]byte("in ")); err != nil {
		t.Fatal(err)
	}
	must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "web", ExecId: "e1"}))
	_ = in.Close()
	if got := readAll(t, execOut); got != "in hunter2\n" {
		t.Errorf("exec output %q", got)
	}
	if exit := must[*agentapi.WaitResponse](t)(h.Wait(t.Context(), &agentapi.WaitRequest{ContainerId: "web", ExecId: "e1"})); exit.GetExitCode() != 0 {
		t.Errorf("exec exit %v", exit)
	}
	must[*agentapi.DeleteResponse](t)(h.Delete(t.Context(), &agentapi.DeleteRequest{ContainerId: "web", ExecId: "e1"}))

	// Signals: the stop signals only; a running container is not deleted.
	_, err = h.Signal(t.Context(), &agentapi.SignalRequest{ContainerId: "web", Signal: 10})
	refused(t, err, podpolicy.RuleSignal)
	if _, err := h.Delete(t.Context(), &agentapi.DeleteRequest{ContainerId: "web"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("delete of a running container: %v", err)
	}
	must[*agentapi.SignalResponse](t)(h.Signal(t.Context(), &agentapi.SignalRequest{ContainerId: "web", Signal: 9, All: true}))
	if exit := must[*agentapi.WaitResponse](t)(h.Wait(t.Context(), &agentapi.WaitRequest{ContainerId: "web"})); exit.GetExitCode() != 137 || exit.GetReason() != "signalled" {
		t.Errorf("exit %v", exit)
	}
	must[*agentapi.DeleteResponse](t)(h.Delete(t.Context(), &agentapi.DeleteRequest{ContainerId: "web"}))
	// It may not be started a second time.
	_, err = h.CreateContainer(t.Context(), create)
	refused(t, err, podpolicy.RuleContainerRestarts)
}

func TestForbiddenStreamsAreDrained(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	h := w.seal(func(p *podpolicy.Policy) {
		// More output than any pipe holds: a workload nobody reads would hang.
		p.Containers[0].Args = []string{"/bin/busybox", "dd", "if=/dev/zero", "bs=65536", "count=64"}
	})
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), &agentapi.CreateContainerRequest{ContainerId: "web", Name: "web"}))
	in, out, errs := h.stream(stdin, "web", ""), h.stream(stdout, "web", ""), h.stream(stderr, "web", "")
	must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "web"}))
	if _, err := in.Write(make([]byte, 1<<20)); err != nil {
		t.Errorf("forbidden stdin: %v", err)
	}
	if exit := must[*agentapi.WaitResponse](t)(h.Wait(t.Context(), &agentapi.WaitRequest{ContainerId: "web"})); exit.GetExitCode() != 0 {
		t.Errorf("exit %v", exit)
	}
	if got := readAll(t, out) + readAll(t, errs); got != "" {
		t.Errorf("%d bytes of forbidden output came out", len(got))
	}
	if r := channel.Refusal(out); r.GetRule() != agent.RuleStream || r.GetPath() != "allow.logs" {
		t.Errorf("the reply's refusal: %v", r)
	}
	// Each of them is told of, by its rule.
	events := h.open(&agentapi.StreamHeader{Kind: agentapi.StreamHeader_EVENTS})
	told := map[string]int{}
	for told["allow.stdin"] != 1 || told["allow.logs"] != 2 {
		var e agentapi.Event
		if err := channel.ReadMessage(events, &e); err != nil {
			t.Fatalf("after the refusals %v: %v", told, err)
		}
		if r := e.GetRefusal(); r.GetRule() == agent.RuleStream {
			told[r.GetPath()]++
		}
	}
}

func TestTheTrusteeDenies(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	w.broker.denial = &kbs.StatusError{Op: "GET /kbs/v0/resource/shop/db/password", Status: 403, Info: kbs.ErrorInfo{Detail: "no", Reason: &kbs.Reason{
		Rule: "measurement.unknown", Claim: "measurement", Expected: "aa", Got: "bb", Help: "register it"}}}
	h := w.seal(func(*podpolicy.Policy) {})
	_, err := h.CreateContainer(t.Context(), &agentapi.CreateContainerRequest{ContainerId: "web", Name: "web"})
	if r := refused(t, err, agent.RuleTrustee); r.GetPath() != "kbs:///shop/db/password: measurement" || r.GetExpected() != "aa" || r.GetGot() != "bb" {
		t.Errorf("refusal = %v", r)
	}
	if w.fetches.count != 0 {
		t.Error("the image was pulled all the same")
	}
	if _, err := h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "web"}); status.Code(err) != codes.NotFound {
		t.Errorf("start: %v", err)
	}
	// The host may try again when the owner has put things right.
	w.broker.denial = nil
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), &agentapi.CreateContainerRequest{ContainerId: "web", Name: "web"}))
}

func TestASecretThatIsMissingStopsTheContainer(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	h := w.seal(func(p *podpolicy.Policy) {
		p.Containers[0].Env = map[string]podpolicy.EnvValue{"SECRET": {Resource: "kbs:///shop/db/password"}}
	})
	_, err := h.CreateContainer(t.Context(), &agentapi.CreateContainerRequest{ContainerId: "web", Name: "web"})
	refused(t, err, agent.RuleTrustee)
}

func TestTheHostVanishesAndComesBack(t *testing.T) {
	w := newWorld(t, nil)
	h := w.connect()
	must[*agentapi.CreateSandboxResponse](t)(h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod"}))
	req := w.shell("c1", "echo one; read line; echo got $line; exit 4")
	req.Stdin = true
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), req))
	in, out := h.stream(stdin, "c1", ""), h.stream(stdout, "c1", "")
	must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "c1"}))
	first := make([]byte, 4)
	if _, err := io.ReadFull(out, first); err != nil || string(first) != "one\n" {
		t.Fatalf("output %q, %v", first, err)
	}
	if _, err := in.Write([]byte("he")); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() {
		_, err := h.Wait(context.WithoutCancel(t.Context()), &agentapi.WaitRequest{ContainerId: "c1"})
		waiting <- err
	}()
	h.vanish()
	if err := <-waiting; err == nil {
		t.Error("a call outlived its host")
	}

	h = w.connect()
	hello := must[*agentapi.HelloResponse](t)(h.Hello(t.Context(), &agentapi.HelloRequest{Versions: []uint32{1}}))
	if hello.GetBootId()[0] != 7 {
		t.Errorf("hello = %v", hello)
	}
	must[*agentapi.CreateSandboxResponse](t)(h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod"}))
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), req))
	must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "c1"}))
	in, out = h.stream(stdin, "c1", ""), h.stream(stdout, "c1", "")
	if _, err := in.Write([]byte("llo\n")); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, out); got != "got hello\n" {
		t.Errorf("output after the return %q", got)
	}
	if exit := must[*agentapi.WaitResponse](t)(h.Wait(t.Context(), &agentapi.WaitRequest{ContainerId: "c1"})); exit.GetExitCode() != 4 {
		t.Errorf("exit %v", exit)
	}
}

func TestTheHostVanishesInAPull(t *testing.T) {
	w := newWorld(t, nil)
	w.fetches.shut = true
	h := w.connect()
	must[*agentapi.CreateSandboxResponse](t)(h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod"}))
	go func() { _, _ = h.CreateContainer(context.WithoutCancel(t.Context()), w.shell("c1", "true")) }()
	<-w.fetches.tried
	h.vanish()
	w.fetches.mu.Lock()
	w.fetches.shut = false
	w.fetches.mu.Unlock()
	h = w.connect()
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), w.shell("c1", "true")))
}

func TestDeadlinesAreHonoured(t *testing.T) {
	w := newWorld(t, nil)
	w.fetches.shut = true
	h := w.connect()
	must[*agentapi.CreateSandboxResponse](t)(h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod"}))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.CreateContainer(ctx, w.shell("c1", "true")); err == nil {
		t.Error("no error")
	}
	if _, err := h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "c1"}); status.Code(err) != codes.NotFound {
		t.Errorf("start: %v", err)
	}
}

func TestIdentifiers(t *testing.T) {
	w := newWorld(t, nil)
	h := w.connect()
	must[*agentapi.CreateSandboxResponse](t)(h.CreateSandbox(t.Context(), &agentapi.CreateSandboxRequest{SandboxId: "pod"}))
	for _, id := range []string{"", ".", "..", "-rf", "--help", "a/b", "a\x00", strings.Repeat("a", 65), "ä"} {
		if _, err := h.CreateContainer(t.Context(), w.shell(id, "true")); status.Code(err) != codes.InvalidArgument {
			t.Errorf("id %q: %v", id, err)
		}
	}
}

func TestFiles(t *testing.T) {
	w := newWorld(t, make([]byte, 32))
	good := sha256.Sum256([]byte("setting\n"))
	h := w.seal(func(p *podpolicy.Policy) {
		p.Volumes = map[string]podpolicy.Volume{"config": {Kind: podpolicy.VolumeFiles, Pinned: map[string]string{"app.conf": fmt.Sprintf("sha256:%x", good)}}}
		c := &p.Containers[0]
		c.Args = []string{"/bin/cat", "/etc/app/app.conf"}
		c.Mounts = []podpolicy.Mount{{Path: "/etc/app", Volume: "config", ReadOnly: true}}
		c.Allow.Logs = true
	})
	must[*agentapi.CreateContainerResponse](t)(h.CreateContainer(t.Context(), &agentapi.CreateContainerRequest{ContainerId: "web", Name: "web"}))
	_, err := h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "web"})
	refused(t, err, podpolicy.RuleVolumeEmpty)

	put := func(version uint64, name, content string) error {
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			conn, err := h.session.Open(t.Context(), &agentapi.StreamHeader{Kind: agentapi.StreamHeader_FILES, Volume: "config", Version: version})
			if err != nil {
				return
			}
			defer func() { _ = conn.Close() }()
			tw := tar.NewWriter(conn)
			_ = tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(len(content))})
			_, _ = tw.Write([]byte(content))
			_ = tw.Close()
		}()
		_, err := h.PutFiles(t.Context(), &agentapi.PutFilesRequest{Volume: "config", Version: version})
		<-sent
		return err
	}
	refused(t, put(1, "app.conf", "evil!!!\n"), podpolicy.RuleFilesDigest)
	refused(t, put(2, "other", "setting\n"), podpolicy.RuleFilesName)
	if err := put(3, "app.conf", "setting\n"); err != nil {
		t.Fatal(err)
	}
	_, err = h.PutFiles(t.Context(), &agentapi.PutFilesRequest{Volume: "config", Version: 3})
	refused(t, err, podpolicy.RuleFilesVersion)
	_, err = h.PutFiles(t.Context(), &agentapi.PutFilesRequest{Volume: "nothing", Version: 3})
	refused(t, err, podpolicy.RuleFilesVolume)

	out := h.stream(stdout, "web", "")
	must[*agentapi.StartResponse](t)(h.Start(t.Context(), &agentapi.StartRequest{ContainerId: "web"}))
	if got := readAll(t, out); got != "setting\n" {
		t.Errorf("output %q", got)
	}
}

func TestHostileStreams(t *testing.T) {
	w := newWorld(t, nil)
	h := w.connect()
	for _, header := range []*agentapi.StreamHeader{
		{}, {Kind: 99}, {Kind: stdout, ContainerId: "nobody"}, {Kind: stdin, ContainerId: "../.."},
	} {
		if _, err := h.session.Open(t.Context(), header); err == nil {
			t.Errorf("stream %v was accepted", header)
		}
	}
	// Garbage ends the session, and the agent serves the next.
	if _, err := h.conn.Write(bytes.Repeat([]byte{0xff}, 4096)); err != nil {
		t.Fatal(err)
	}
	<-h.session.Done()
	must[*agentapi.HelloResponse](t)(w.connect().Hello(t.Context(), &agentapi.HelloRequest{Versions: []uint32{1}}))
}
