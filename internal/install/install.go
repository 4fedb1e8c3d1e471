// Package install puts the runtime on a node of a Kubernetes cluster and takes
// it away again.
//
// [Prepare] looks at the node and says what would be written: programs, guest
// image and a configuration for each handler below a prefix of our own
// (/opt/coffer), a drop-in for containerd with the handlers, and, only where
// containerd would not read that drop-in otherwise, one import in its main
// file. [Plan.Apply] writes it, and has containerd itself read the result: when
// anything but our handlers has changed by it, everything is taken back.
//
// Before the first file is written a [Record] of all of them is. [Uninstall]
// reads it and removes what it names, so that it also cleans up after an
// installation that died half-way, or after one of its own. Files that somebody
// has changed since are not removed silently, and a main file that somebody has
// edited loses our import and nothing else.
//
// All paths of the node are below a root directory, "/" or where a DaemonSet
// has the node mounted, and are opened through it (os.Root): a link cannot lead
// out of it.
package install

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"slices"
	"strings"
)

// DefaultPrefix is the directory of everything that is ours.
const DefaultPrefix = "/opt/coffer"

// ShimName is the name of the shim's program: containerd makes it from the
// runtime type.
const ShimName = "containerd-shim-coffer-v2"

// RuntimeType is what the handlers name as their runtime.
const RuntimeType = "io.containerd.coffer.v2"

// Exec runs a program of the node and returns its standard output. The path is
// the node's own.
type Exec func(ctx context.Context, argv ...string) ([]byte, error)

// Options are an installation.
type Options struct {
	// Root is where the node's file system is; empty is "/".
	Root string
	// Prefix is the directory of our files on the node; empty is DefaultPrefix.
	Prefix string
	// Shim, Program and GuestImage are the shim, this program (coffer) and the
	// directory of the guest image, in the file system of the caller.
	Shim, Program, GuestImage string
	// Handlers are the names of those to install; empty: all that the node has
	// firmware for.
	Handlers []string
	// Firmware is the path of an OVMF on the node by TEE ("snp", "tdx"); where it
	// is missing, the places of Linux distributions are searched.
	Firmware map[string]string
	// Extra is TOML that is appended to the configuration of each handler.
	Extra []byte
	// Check judges the configuration of a handler.
	Check func(toml []byte) error
	// Flavour of containerd; empty: it is found out.
	Flavour Flavour
	// Config is containerd's main file; empty: the flavour's.
	Config string
	// Version of containerd, such as 2.2.1; empty: it is asked.
	Version string
	// Sandboxer is podsandbox (or empty) or shim, from containerd 2.3 on.
	Sandboxer string
	// Replace files that were installed and changed since.
	Replace bool
	// Restarts says that the caller has containerd restarted, with Restart: then an
	// installation asks for it until it has worked.
	Restarts bool
	// Force uninstalls under running pods.
	Force bool
	// Exec runs programs of the node; nil: in a chroot of Root.
	Exec   Exec
	Logger *slog.Logger

	// testOnlyStep is called before each change of the node's file system.
	testOnlyStep func()
}

func (o Options) prepare() (Options, error) {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	if o.Sandboxer == "" {
		o.Sandboxer = SandboxerPod
	}
	if o.Exec == nil {
		o.Exec = Chroot(o.Root)
	}
	if o.testOnlyStep == nil {
		o.testOnlyStep = func() {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	var problems []error
	for name, p := range map[string]string{"prefix": o.Prefix, "containerd config": o.Config} {
		if p != "" && (!path.IsAbs(p) || path.Clean(p) != p || p == "/") {
			problems = append(problems, fmt.Errorf("%s: expected a clean absolute path, got %q", name, p))
		}
	}
	if strings.ContainsAny(o.Prefix, "*?[]\\\"'\n ") {
		problems = append(problems, fmt.Errorf("prefix: expected a path without spaces, quotes and wildcards, got %q", o.Prefix))
	}
	if o.Sandboxer != SandboxerPod && o.Sandboxer != SandboxerShim {
		problems = append(problems, fmt.Errorf("sandboxer: expected %s or %s, got %q", SandboxerPod, SandboxerShim, o.Sandboxer))
	}
	if f := o.Flavour; f != "" && !slices.Contains(Flavours(), f) {
		problems = append(problems, fmt.Errorf("runtime: expected %s, got %q", flavourNames(), f))
	}
	return o, errors.Join(problems...)
}

// node is the node's file system.
type node struct {
	*os.Root
	prefix string
	step   func()
}

// The changes of the file system there are.

// Rename is os.Root.Rename.
func (n *node) Rename(a, b string) error { n.step(); return n.Root.Rename(a, b) }

// Remove is os.Root.Remove.
func (n *node) Remove(p string) error { n.step(); return n.Root.Remove(p) }

// Mkdir is os.Root.Mkdir.
func (n *node) Mkdir(p string, mode os.FileMode) error { n.step(); return n.Root.Mkdir(p, mode) }

// Symlink is os.Root.Symlink.
func (n *node) Symlink(target, p string) error { n.step(); return n.Root.Symlink(target, p) }

// OpenFile is os.Root.OpenFile.
func (n *node) OpenFile(p string, flag int, mode os.FileMode) (*os.File, error) {
	n.step()
	return n.Root.OpenFile(p, flag, mode)
}

func (o Options) open() (*node, error) {
	root, err := os.OpenRoot(o.Root)
	if err != nil {
		return nil, fmt.Errorf("the node's file system: %w", err)
	}
	return &node{root, o.Prefix, o.testOnlyStep}, nil
}

// rel is an absolute path of the node as os.Root takes it.
func rel(p string) string {
	if p = strings.TrimPrefix(path.Clean(p), "/"); p != "" {
		return p
	}
	return "."
}

// exists tells whether there is anything at a path, a dangling link included.
func (n *node) exists(p string) (bool, error) {
	_, err := n.Lstat(rel(p))
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, os.ErrNotExist) || isNotDir(err):
		return false, nil
	}
	return false, fmt.Errorf("%s: %w", p, cause(err))
}
