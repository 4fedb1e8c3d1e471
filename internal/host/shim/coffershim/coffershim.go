// Package coffershim puts the shim together: package shim starts and serves
// it, package task has the containers, package pod their machine, and package
// sandboxapi the pod where containerd knows of pods.
//
// A shim has one pod. It is made by whoever is asked first: by the Task
// service for a pause container or a container without a pod, or by the
// Sandbox service, which then hands it over for its containers.
package coffershim

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	sandboxv1 "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/ttrpc"

	"github.com/coffer-project/coffer/internal/host/cri"
	"github.com/coffer-project/coffer/internal/host/network"
	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/host/pod"
	"github.com/coffer-project/coffer/internal/host/podcgroup"
	"github.com/coffer-project/coffer/internal/host/process"
	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/sandboxapi"
	"github.com/coffer-project/coffer/internal/host/shim"
	"github.com/coffer-project/coffer/internal/host/shim/podstate"
	"github.com/coffer-project/coffer/internal/host/task"
)

// Name is the runtime type.
const Name = "io.containerd.coffer.v2"

// cgroupRoot is where control groups are mounted.
const cgroupRoot = podcgroup.DefaultRoot

// Program is the shim.
func Program(version string) shim.Program {
	return shim.Program{
		Name: Name, Version: version,
		Configure: func(path string) (shim.Settings, error) {
			c, err := runtimeconfig.Load(path)
			if err != nil {
				return shim.Settings{}, err
			}
			return shim.Settings{StateDir: c.StateDir, Debug: c.Debug, Linger: c.Linger.D()}, nil
		},
		Open: open, Release: release,
	}
}

// release removes what a pod's processes left in the kernel.
func release(s podstate.State) error {
	var err error
	if s.NetNS != "" {
		err = network.Remove(s.NetNS)
	}
	if s.Driver == runtimeconfig.DriverProcess {
		err = errors.Join(err, process.Remove(s.ID))
	}
	return errors.Join(err, podcgroup.Remove(cgroupRoot, s.Cgroups))
}

// node is one pod's shim.
type node struct {
	d      *shim.Daemon
	config *runtimeconfig.Config
	tasks  *task.Service
	boxes  *sandboxapi.Service
	// notices are what a person should know of pod, which is nil at first.
	notices *notice.File
	pod     atomic.Pointer[pod.Pod]
	// sandboxed says that the pod is the Sandbox service's, and has been booted.
	sandboxed atomic.Bool
}

func open(_ context.Context, d *shim.Daemon) (*shim.Services, error) {
	config, err := runtimeconfig.Load(d.Config)
	if err != nil {
		return nil, err
	}
	if err := d.State.Update(func(s *podstate.State) { s.Driver = config.Driver }); err != nil {
		return nil, err
	}
	n := &node{d: d, config: config, notices: notice.New(d.State.Dir(), time.Now)}
	n.tasks = task.New(task.Options{
		NewPod: func(_ context.Context, b *cri.Bundle) (task.Pod, error) {
			p, err := n.newPod(b.SandboxID)
			if err != nil {
				return nil, err
			}
			return task.Of(p), nil
		},
		Publish: n.publish, Shutdown: n.shutdown, Logger: d.Logger, Notice: n.refused, Namespace: d.Namespace, CgroupV1: task.HostHasCgroupV1(cgroupRoot),
	})
	n.boxes = sandboxapi.New(sandboxapi.Options{
		NewPod: func(s *cri.Sandbox) (sandboxapi.Pod, error) {
			return n.newPod(s.ID)
		},
		Booted: func(p sandboxapi.Pod) error {
			n.sandboxed.Store(true)
			return n.adopt(p, n.tasks.Adopt)
		},
		Closed: func(p sandboxapi.Pod) {
			_ = n.adopt(p, func(t task.Pod) error { n.tasks.Release(t); return nil })
		},
		Shutdown: d.Shutdown, Logger: d.Logger,
	})
	return &shim.Services{Register: n.register, Close: n.close, Over: n.over}, nil
}

func (n *node) register(server *ttrpc.Server) {
	n.tasks.RegisterV2(server)
	n.tasks.RegisterV3(server)
	sandboxv1.RegisterTTRPCSandboxService(server, n.boxes)
}

// newPod makes the pod that this shim is for, and no other.
func (n *node) newPod(id string) (*pod.Pod, error) {
	if id != n.d.ID {
		return nil, fmt.Errorf("pod %s: this shim is the one of pod %s", id, n.d.ID)
	}
	p := pod.New(pod.Options{
		ID: id, Namespace: n.d.Namespace, Config: n.config, Logger: n.d.Logger, Note: n.note, Cgroup: enterCgroup,
		Warn: func(r notice.Reason, message string) { n.tell(r, message) },
	})
	n.pod.Store(p)
	return p, nil
}

// enterCgroup moves the shim into the pod's control group.
func enterCgroup(path string, note func([]string) error, warn func(string)) (pod.Cgroup, error) {
	g, err := podcgroup.Enter(podcgroup.Options{Path: path, Note: note, Warn: warn})
	if err != nil {
		return nil, err
	}
	return g, nil
}

// shutdown is asked for when the last container is deleted. A sandbox outlives
// its containers: containerd still asks how it ended, and then for its end. One
// that could not be booted has nothing to tell.
func (n *node) shutdown() {
	if !n.sandboxed.Load() {
		n.d.Shutdown()
	}
}

// over tells that the pod has ended, or was not made yet.
func (n *node) over() bool {
	p := n.pod.Load()
	if p == nil {
		return true
	}
	select {
	case <-p.Done():
		return true
	default:
		return false
	}
}

// adopt has the Task service use a pod of the Sandbox service, or not any more.
func (n *node) adopt(p sandboxapi.Pod, f func(task.Pod) error) error {
	own, ok := p.(*pod.Pod)
	if !ok {
		return fmt.Errorf("the sandbox's pod has an unexpected type %T", p)
	}
	return f(task.Of(own))
}

// close ends the pod, whoever made it.
func (n *node) close(ctx context.Context) error {
	err := errors.Join(n.boxes.Close(ctx), n.tasks.Close(ctx))
	// The pod's directory goes next.
	if err := n.notices.Close(); err != nil {
		n.d.Logger.WarnContext(ctx, "notices of the pod are lost; the log has them", "error", err)
	}
	return err
}
