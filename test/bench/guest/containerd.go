package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// containerd is a daemon of its own, with root, state and socket in the
// benchmark's directory.
type containerd struct {
	daemon  *daemon
	ctr     string
	socket  string
	version string
}

// startContainerd runs containerd 2.x, which is built when it is not there. It
// returns nil if that cannot be done here.
func (b *bench) startContainerd(ctx context.Context) (*containerd, error) {
	program, ctr := filepath.Join(b.containerd, "containerd"), filepath.Join(b.containerd, "ctr")
	if _, err := os.Stat(program); err != nil {
		if err := buildContainerd(ctx, b.containerd); err != nil {
			fmt.Fprintln(os.Stderr, "  no containerd:", err)
			return nil, nil
		}
	}
	dir := b.path("containerd")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	c := &containerd{ctr: ctr, socket: filepath.Join(dir, "c.sock"), version: strings.ReplaceAll(version(ctx, program, "--version"), "github.com/containerd/containerd/v2 ", "")}
	config := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\", \"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), c.socket)
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	var err error
	if c.daemon, err = startDaemon(ctx, filepath.Join(dir, "log"), program, "--config", file); err != nil {
		return nil, err
	}
	if err := c.daemon.await(ctx, func() bool {
		_, err := c.run(ctx, "version")
		return err == nil
	}); err != nil {
		c.daemon.stop()
		return nil, err
	}
	return c, nil
}

// buildContainerd builds the versions that tools/interop names.
func buildContainerd(ctx context.Context, to string) error {
	const module = "tools/interop"
	if _, err := os.Stat(filepath.Join(module, "go.mod")); err != nil {
		return err
	}
	to, err := filepath.Abs(to)
	if err != nil {
		return err
	}
	for _, name := range []string{"containerd", "ctr"} {
		fmt.Fprintln(os.Stderr, "  building", name)
		if _, err := command(ctx, []string{"CGO_ENABLED=0"}, "go", "build", "-C", module, "-o", filepath.Join(to, name),
			"github.com/containerd/containerd/v2/cmd/"+name); err != nil {
			return err
		}
	}
	return nil
}

func (c *containerd) stop() { c.daemon.stop() }

func (c *containerd) run(ctx context.Context, args ...string) (cost, error) {
	return command(ctx, nil, c.ctr, append([]string{"--address", c.socket}, args...)...)
}

// pull pulls and unpacks. The CPU time is the daemon's and the client's.
func (c *containerd) pull(im *images, name string) contender {
	return contender{"containerd", func(ctx context.Context) (cost, error) {
		before, err := c.daemon.cpu()
		if err != nil {
			return cost{}, err
		}
		begun := time.Now()
		client, err := c.run(ctx, "images", "pull", "--plain-http", "--snapshotter", "overlayfs", im.tag(name))
		if err != nil {
			return cost{}, err
		}
		took := time.Since(begun).Seconds()
		after, err := c.daemon.cpu()
		if err != nil {
			return cost{}, err
		}
		_, err = c.run(ctx, "images", "rm", "--sync", im.tag(name))
		return cost{took, after - before + client.cpu, c.daemon.peak()}, errors.Join(err, ctx.Err())
	}}
}
