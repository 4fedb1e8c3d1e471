package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// handler is a shim that pods can be given to.
type handler struct {
	name, binary string
	// config is the path that is passed as an option; empty: none.
	config string
	// options are those of a task; nil: none.
	options *anypb.Any
}

// shim is a running one, with its pod.
type shim struct {
	handler
	pod     podSpec
	client  *ttrpc.Client
	service string
	// pid is the daemon's, sandbox that of the pod's first process.
	pid, sandbox uint32
	rootfs       string
	dir          string
	cgroup       *os.File   // where `start` is run; nil: here
	first        *container // that runs, if one does
}

const shimNamespace = "k8s.io"

// connect runs `start` for the pod, whose bundle is there, and connects.
func (s *shim) connect(ctx context.Context) error {
	out, err := s.start(ctx)
	if err != nil {
		return err
	}
	address := strings.TrimSpace(string(out))
	version := 2
	if strings.HasPrefix(address, "{") {
		var answer struct {
			Version int
			Address string
		}
		if err := json.Unmarshal(out, &answer); err != nil {
			return fmt.Errorf("answer of start: %w", err)
		}
		address, version = answer.Address, max(answer.Version, 2)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(address, "unix://"))
	if err != nil {
		return err
	}
	s.client, s.service = ttrpc.NewClient(conn), fmt.Sprintf("containerd.task.v%d.Task", version)
	return nil
}

// start is how containerd 2.2 starts a shim (core/runtime/v2/binary.go,
// pkg/shim/util.go).
func (s *shim) start(ctx context.Context) ([]byte, error) {
	cmd := exec.CommandContext(ctx, s.binary, "-namespace", shimNamespace, "-address", grpcSocket, "-publish-binary", "/bin/true", "-id", s.pod.id, "start")
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2", "MAX_SHIM_VERSION=2", "TTRPC_ADDRESS="+eventSocket, "GRPC_ADDRESS="+grpcSocket, "NAMESPACE="+shimNamespace)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if s.cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(s.cgroup.Fd())
	}
	if s.config != "" {
		options, err := pack(&runtimeoptions.Options{ConfigPath: s.config})
		if err != nil {
			return nil, err
		}
		data, err := proto.Marshal(options)
		if err != nil {
			return nil, err
		}
		cmd.Stdin = bytes.NewReader(data)
	}
	return command(ctx, cmd)
}

// pack puts a message into another as containerd's package typeurl does.
func pack(m proto.Message) (*anypb.Any, error) {
	packed, err := anypb.New(m)
	if err != nil {
		return nil, err
	}
	packed.TypeUrl = strings.TrimPrefix(packed.GetTypeUrl(), "type.googleapis.com/")
	return packed, nil
}

// openLog makes the FIFO that a shim logs to, and writes what comes to a file.
func openLog(fifo, file string) error {
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		return fmt.Errorf("%s: %w", fifo, err)
	}
	from, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	to, err := os.Create(file)
	if err != nil {
		return err
	}
	go func() { _, _ = io.Copy(to, from) }()
	return nil
}

// call is one of the Task service. Its messages are the same in versions 2 and 3.
func (s *shim) call(ctx context.Context, method string, req, resp proto.Message) error {
	if err := s.client.Call(ctx, s.service, method, req, resp); err != nil {
		return fmt.Errorf("%s: %s: %w", s.name, method, err)
	}
	return nil
}

// boot creates and starts the sandbox, and asks who serves it.
func (s *shim) boot(ctx context.Context) error {
	mounts, err := overlay(s.pod.id, s.rootfs)
	if err != nil {
		return err
	}
	r := new(task.CreateTaskResponse)
	if err := s.call(ctx, "Create", &task.CreateTaskRequest{ID: s.pod.id, Bundle: s.dir, Rootfs: mounts, Options: s.options}, r); err != nil {
		return err
	}
	s.sandbox = r.GetPid()
	if err := s.call(ctx, "Start", &task.StartRequest{ID: s.pod.id}, new(task.StartResponse)); err != nil {
		return err
	}
	answer := new(task.ConnectResponse)
	if err := s.call(ctx, "Connect", &task.ConnectRequest{ID: s.pod.id}, answer); err != nil {
		return err
	}
	s.pid = answer.GetShimPid()
	return nil
}

// overlay is the root file system as containerd's snapshotter gives it.
func overlay(id, lower string) ([]*types.Mount, error) {
	dir := filepath.Join(workDir, "snapshots", id)
	for _, sub := range []string{"fs", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	return []*types.Mount{{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + lower, "upperdir=" + filepath.Join(dir, "fs"), "workdir=" + filepath.Join(dir, "work"),
	}}}, nil
}

// lastWords is the end of what the shim logged, for error messages.
func (s *shim) lastWords() string {
	const most = 4000
	text, err := os.ReadFile(filepath.Join(workDir, s.pod.id+".log"))
	if err != nil {
		return "; " + err.Error()
	}
	return "\nthe shim's log ends with:\n" + string(text[max(0, len(text)-most):])
}

// end kills and deletes container and sandbox and has the daemon go.
func (s *shim) end(ctx context.Context) error {
	var err error
	if s.first != nil {
		err = s.first.end(ctx)
	}
	err = errors.Join(err,
		s.call(ctx, "Kill", &task.KillRequest{ID: s.pod.id, Signal: uint32(unix.SIGKILL), All: true}, new(emptypb.Empty)),
		s.call(ctx, "Wait", &task.WaitRequest{ID: s.pod.id}, new(task.WaitResponse)),
		s.call(ctx, "Delete", &task.DeleteRequest{ID: s.pod.id}, new(task.DeleteResponse)))
	_ = s.call(ctx, "Shutdown", &task.ShutdownRequest{ID: s.pod.id}, new(emptypb.Empty)) // it may end before it answers
	if cerr := s.client.Close(); err == nil {
		err = cerr
	}
	err = errors.Join(err, s.gone())
	return errors.Join(err, os.RemoveAll(s.dir), os.RemoveAll(filepath.Join(workDir, "snapshots", s.pod.id)))
}

// gone waits for the daemon's end.
func (s *shim) gone() error {
	const limit = 30 * time.Second
	fd, err := unix.PidfdOpen(int(s.pid), 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(limit.Milliseconds()))
	if n == 0 && err == nil {
		err = fmt.Errorf("%s: the shim of %s does not end", s.name, s.pod.id)
	}
	return err
}
