package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
)

// mostOver is how much more than runc's shim ours may take for a call.
const mostOver = 1.2

// The calls of a container's life that are timed, in order.
const (
	callCreate = iota
	callStart
	callKill // until Wait answers
	callDelete
	callKinds
)

var callNames = [callKinds]string{"create", "start", "kill", "delete"}

// lifetimes are the times of one container's calls, in seconds.
type lifetimes [callKinds]float64

// sum is that of Create, Start and Delete.
func (l lifetimes) sum() float64 { return l[callCreate] + l[callStart] + l[callDelete] }

// life compares the calls of containers' lives. The pods are there before: the
// agent has pulled the image, and containerd has unpacked it.
func (b *bench) life(ctx context.Context) (err error) {
	config, err := b.world.processConfig()
	if err != nil {
		return err
	}
	crun, err := b.crun()
	if err != nil {
		return err
	}
	contenders := [3]handler{b.coffer(config), b.runc(), crun}
	var shims [3]*shim
	var times [3][]lifetimes
	for i, r := range contenders {
		s, err := b.world.pod(ctx, r)
		if err != nil {
			return err
		}
		shims[i] = s
		defer func() {
			if eerr := s.end(ctx); err == nil {
				err = eerr
			}
		}()
		if err := s.boot(ctx); err != nil {
			return err
		}
	}
	const warm = 3
	for round := range b.rounds + warm {
		for turn := range shims {
			i := (turn + round) % len(shims)
			t, err := shims[i].oneLife(ctx, fmt.Sprintf("%s-%d", shims[i].pod.id, round))
			if err != nil {
				return err
			}
			if round >= warm {
				times[i] = append(times[i], t)
			}
		}
	}
	b.reportLife(times[0], times[1])
	withCrun := ratios(times[0], times[2], lifetimes.sum)
	b.report.Add("life/create-start-delete/over-crun", median(withCrun), "×", "containerd-shim-runc-v2 2.2, with crun in runc's place")
	b.report.Add("life/create-start-delete/over-crun/spread", spread(withCrun), "%", "")
	for c, name := range callNames {
		b.report.Add("life/"+name+"/over-crun", median(ratios(times[0], times[2], func(l lifetimes) float64 { return l[c] })), "×", "")
	}
	return nil
}

// ratios are those of the pairs.
func ratios(ours, theirs []lifetimes, of func(lifetimes) float64) []float64 {
	var list []float64
	for i := range ours {
		list = append(list, of(ours[i])/of(theirs[i]))
	}
	return list
}

func (b *bench) reportLife(ours, theirs []lifetimes) {
	const peer = "containerd-shim-runc-v2 2.2, runc"
	sums := ratios(ours, theirs, lifetimes.sum)
	b.report.AtMost("life/create-start-delete/ratio", median(sums), "×", mostOver, peer)
	b.report.Add("life/create-start-delete/spread", spread(sums), "%", "")
	for c, name := range callNames {
		of := func(l []lifetimes) []float64 {
			var list []float64
			for _, t := range l {
				list = append(list, t[c])
			}
			return list
		}
		mine, peers := of(ours), of(theirs)
		b.report.AtMost("life/"+name+"/ratio", median(ratios(ours, theirs, func(l lifetimes) float64 { return l[c] })), "×", mostOver, peer)
		for _, side := range []struct {
			name string
			list []float64
		}{{"coffer", mine}, {"runc", peers}} {
			b.report.Add("life/"+name+"/"+side.name+"/p50", 1000*quantile(side.list, 0.5), "ms", "")
			b.report.Add("life/"+name+"/"+side.name+"/p99", 1000*quantile(side.list, 0.99), "ms", "")
		}
	}
}

func (b *bench) coffer(config string) handler {
	return handler{name: "coffer", binary: b.shim, config: config}
}

func (b *bench) runc() handler {
	return handler{name: "runc", binary: filepath.Join(b.containerd, "containerd-shim-runc-v2")}
}

// crun is containerd's shim with the runtime that our agent has.
func (b *bench) crun() (handler, error) {
	h := b.runc()
	h.name = "crun"
	var err error
	h.options, err = pack(&runcoptions.Options{BinaryName: "/usr/bin/crun"})
	return h, err
}

// prepare makes a pod's network and bundle.
func (w *world) prepare(ctx context.Context, h handler) (*shim, error) {
	w.pods++
	n := w.pods
	netns, err := podNetwork(ctx, workDir, n)
	if err != nil {
		return nil, err
	}
	p := podSpec{id: fmt.Sprintf("%s-%d", h.name, n), uid: fmt.Sprintf("0b2c6a3e-5d0d-4d5c-9f57-2d3f6d1b%04d", n), netns: netns, image: w.image}
	s := &shim{handler: h, pod: p, rootfs: w.rootfs}
	if s.dir, err = p.sandbox(); err != nil {
		return nil, err
	}
	return s, openLog(filepath.Join(s.dir, "log"), filepath.Join(workDir, p.id+".log"))
}

// pod prepares a pod and starts its shim; the sandbox is not created yet.
func (w *world) pod(ctx context.Context, h handler) (*shim, error) {
	s, err := w.prepare(ctx, h)
	if err != nil {
		return nil, err
	}
	return s, s.connect(ctx)
}

// oneLife creates a container, starts, kills, awaits and deletes it.
func (s *shim) oneLife(ctx context.Context, id string) (t lifetimes, err error) {
	c, err := s.newContainer(id)
	if err != nil {
		return t, err
	}
	if t[callCreate], err = timed(func() error { return c.create(ctx) }); err != nil {
		return t, err
	}
	ended := make(chan error, 1)
	go func() { ended <- c.wait(ctx) }()
	if t[callStart], err = timed(func() error { return c.start(ctx) }); err != nil {
		return t, err
	}
	if t[callKill], err = timed(func() error {
		if err := c.kill(ctx); err != nil {
			return err
		}
		return <-ended
	}); err != nil {
		return t, err
	}
	if t[callDelete], err = timed(func() error { return c.delete(ctx) }); err != nil {
		return t, err
	}
	return t, c.forget()
}

func timed(f func() error) (float64, error) {
	begun := time.Now()
	err := f()
	return time.Since(begun).Seconds(), err
}

// container is one of a shim's pod, with FIFOs for its output as the CRI plugin
// makes them.
type container struct {
	shim    *shim
	request *task.CreateTaskRequest
	files   []*os.File
}

func (s *shim) newContainer(id string) (*container, error) {
	bundle, err := s.pod.container(id, s.sandbox)
	if err != nil {
		return nil, err
	}
	mounts, err := overlay(id, s.rootfs)
	if err != nil {
		return nil, err
	}
	c := &container{shim: s, request: &task.CreateTaskRequest{ID: id, Bundle: bundle, Rootfs: mounts, Options: s.options}}
	for name, path := range map[string]*string{"stdout": &c.request.Stdout, "stderr": &c.request.Stderr} {
		*path = filepath.Join(bundle, name)
		if err := unix.Mkfifo(*path, 0o600); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(*path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		c.files = append(c.files, f)
		go func() { _, _ = io.Copy(io.Discard, f) }()
	}
	return c, nil
}

func (c *container) create(ctx context.Context) error {
	return c.shim.call(ctx, "Create", c.request, new(task.CreateTaskResponse))
}

func (c *container) start(ctx context.Context) error {
	return c.shim.call(ctx, "Start", &task.StartRequest{ID: c.request.GetID()}, new(task.StartResponse))
}

// wait waits for the end, which must be that of a process that ran until it was
// killed.
func (c *container) wait(ctx context.Context) error {
	r := new(task.WaitResponse)
	if err := c.shim.call(ctx, "Wait", &task.WaitRequest{ID: c.request.GetID()}, r); err != nil {
		return err
	}
	if want := 128 + uint32(unix.SIGKILL); r.GetExitStatus() != want {
		return fmt.Errorf("%s: container %s ended with status %d: expected %d", c.shim.name, c.request.GetID(), r.GetExitStatus(), want)
	}
	return nil
}

func (c *container) kill(ctx context.Context) error {
	return c.shim.call(ctx, "Kill", &task.KillRequest{ID: c.request.GetID(), Signal: uint32(unix.SIGKILL)}, new(emptypb.Empty))
}

func (c *container) delete(ctx context.Context) error {
	return c.shim.call(ctx, "Delete", &task.DeleteRequest{ID: c.request.GetID()}, new(task.DeleteResponse))
}

// end kills and removes the container.
func (c *container) end(ctx context.Context) error {
	if err := c.kill(ctx); err != nil {
		return err
	}
	if err := c.wait(ctx); err != nil {
		return err
	}
	return errors.Join(c.delete(ctx), c.forget())
}

// forget removes what containerd would.
func (c *container) forget() error {
	for _, f := range c.files {
		_ = f.Close()
	}
	if err := os.RemoveAll(c.request.GetBundle()); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(workDir, "snapshots", c.request.GetID()))
}
