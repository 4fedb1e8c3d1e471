// Package podshim puts a shim for pods together: package shim, which containerd
// starts, with the Task service (package task) and the Sandbox service
// (package sandboxapi) on one pod (package pod).
//
// The first Create of the Task service makes the pod, or StartSandbox of the
// Sandbox service does and hands it to the Task service. What the pod would
// leave behind if this process were killed is noted in the pod's state file
// (package podstate) before it is made; `delete` works from that.
package podshim

import (
	"context"
	"errors"
	"fmt"

	api "github.com/containerd/containerd/api/events"
	sandbox "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/ttrpc"

	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/network"
	"github.com/coffer-project/coffer/internal/host/pod"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/sandboxapi"
	"github.com/coffer-project/coffer/internal/host/shim"
	"github.com/coffer-project/coffer/internal/host/shim/podstate"
	"github.com/coffer-project/coffer/internal/host/task"
)

// Name is the runtime type of the shim.
const Name = "io.containerd.coffer.v2"

// Program is the shim.
func Program(version string) shim.Program {
	return shim.Program{Name: Name, Version: version, Configure: configure, Open: open, Release: release}
}

func load(path string) (*runtimeconfig.Config, error) {
	if path == "" {
		path = runtimeconfig.DefaultPath
	}
	return runtimeconfig.Load(path)
}

func configure(path string) (shim.Settings, error) {
	c, err := load(path)
	if err != nil {
		return shim.Settings{}, err
	}
	return shim.Settings{StateDir: c.StateDir, Debug: c.Debug}, nil
}

// release removes what a dead shim left in its pod's network namespace.
func release(s podstate.State) error {
	if s.NetNS == "" {
		return nil
	}
	return network.Remove(s.NetNS)
}

// server is what one shim serves.
type server struct {
	daemon    *shim.Daemon
	config    *runtimeconfig.Config
	tasks     *task.Service
	sandboxes *sandboxapi.Service
}

func open(_ context.Context, d *shim.Daemon) (*shim.Services, error) {
	config, err := load(d.Config)
	if err != nil {
		return nil, err
	}
	s := &server{daemon: d, config: config}
	s.tasks = task.New(task.Options{
		NewPod:   func(context.Context, *cri.Bundle) (task.Pod, error) { return task.Of(s.newPod()), nil },
		Publish:  s.publish,
		Shutdown: d.Shutdown,
		Logger:   d.Logger,
		CgroupV1: task.HostHasCgroupV1("/sys/fs/cgroup"),
	})
	s.sandboxes = sandboxapi.New(sandboxapi.Options{
		NewPod:   func(*cri.Sandbox) (sandboxapi.Pod, error) { return s.newPod(), nil },
		Booted:   s.booted,
		Shutdown: d.Shutdown,
		Logger:   d.Logger,
	})
	return &shim.Services{Register: s.register, Close: s.close}, nil
}

func (s *server) register(server *ttrpc.Server) {
	s.tasks.RegisterV2(server)
	s.tasks.RegisterV3(server)
	sandbox.RegisterTTRPCSandboxService(server, s.sandboxes)
}

func (s *server) close(ctx context.Context) error {
	return errors.Join(s.tasks.Close(ctx), s.sandboxes.Close(ctx))
}

func (s *server) newPod() *pod.Pod {
	return pod.New(pod.Options{ID: s.daemon.ID, Namespace: s.daemon.Namespace, Config: s.config, Logger: s.daemon.Logger, Note: s.note})
}

// booted hands a pod of the Sandbox service to the Task service.
func (s *server) booted(p sandboxapi.Pod) error {
	booted, ok := p.(*pod.Pod)
	if !ok {
		return fmt.Errorf("pod: expected one that newPod has made, got %T", p)
	}
	return s.tasks.Adopt(task.Of(booted))
}

// note writes down what would outlive this process.
func (s *server) note(t pod.Trace) error {
	var machines []podstate.Process
	if t.PID != 0 {
		machine, err := podstate.Look("machine", t.PID)
		if err != nil {
			return err
		}
		machines = append(machines, machine)
	}
	return s.daemon.State.Update(func(state *podstate.State) {
		state.NetNS, state.Machines = t.NetNS, machines
	})
}

// publish queues an event for containerd. How a container ended is noted, too:
// containerd learns it from `delete` if this process dies before it is asked.
func (s *server) publish(ctx context.Context, topic string, event any) error {
	if e, ok := event.(*api.TaskExit); ok && e.GetID() == e.GetContainerID() {
		err := s.daemon.State.Update(func(state *podstate.State) {
			if state.Exits == nil {
				state.Exits = map[string]podstate.Exit{}
			}
			state.Exits[e.GetID()] = podstate.Exit{Status: e.GetExitStatus(), PID: e.GetPid(), At: e.GetExitedAt().AsTime()}
		})
		if err != nil {
			s.daemon.Logger.WarnContext(ctx, "the end of a container is not noted", "container", e.GetID(), "error", err)
		}
	}
	return s.daemon.Publisher.Publish(ctx, topic, event)
}
