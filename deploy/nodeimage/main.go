// Command nodeimage makes the image of the DaemonSet that installs the runtime on
// nodes: this project's programs and the guest image, and nothing else. There is
// no base image and no Dockerfile; the same inputs make the same bytes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/coffer-project/coffer/internal/guestimage/manifest"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/layout"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "nodeimage:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func run(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("nodeimage", flag.ContinueOnError)
	programs := f.String("programs", "bin", "directory with coffer and containerd-shim-coffer-v2")
	guest := f.String("guest-image", "build/guest", "directory of the guest image")
	out := f.String("out", "build/node-image", "OCI image layout to write, which must not exist")
	tag := f.String("tag", "latest", "tag of the image in the layout")
	if err := f.Parse(args); err != nil {
		return err
	}
	if _, err := os.Lstat(*out); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: expected nothing there yet (remove it)", *out)
	}
	root, err := os.MkdirTemp("", "coffer-node-image-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root) //nolint:errcheck // a temporary directory
	if err := stage(root, *programs, *guest); err != nil {
		return err
	}
	return write(ctx, root, *out, *tag)
}

// stage lays the files out as they are found by the programs' defaults.
func stage(root, programs, guest string) error {
	m, err := manifest.Load(guest)
	if err != nil {
		return err
	}
	if err := m.Check(guest); err != nil {
		return err
	}
	files := map[string]string{
		"bin/coffer":                       filepath.Join(programs, "coffer"),
		"bin/containerd-shim-coffer-v2":    filepath.Join(programs, "containerd-shim-coffer-v2"),
		"build/guest/" + manifest.FileName: filepath.Join(guest, manifest.FileName),
	}
	for _, file := range m.Files() {
		files["build/guest/"+file.Name] = filepath.Join(guest, file.Name)
	}
	for _, dir := range []string{"bin", "build", "build/guest", "host", "tmp"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	for name, source := range files {
		mode := os.FileMode(0o644)
		if filepath.Dir(name) == "bin" {
			mode = 0o755
		}
		if err := copyFile(filepath.Join(root, name), source, mode); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(to, from string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(mode), out.Close())
}

func write(ctx context.Context, root, out, tag string) error {
	l, err := layout.Create(out)
	if err != nil {
		return err
	}
	defer l.Close() //nolint:errcheck // written by then
	d, err := build.Build(ctx, l, build.Options{
		Layers:      []build.Tree{{Dir: root, ModTime: time.Unix(0, 0)}},
		Config:      oci.ImageConfig{Config: oci.ContainerConfig{Entrypoint: []string{"/bin/coffer"}, WorkingDir: "/", Env: []string{"PATH=/bin", "HOME=/tmp"}}},
		Compression: oci.Gzip,
	})
	if err != nil {
		return err
	}
	if err := l.Tag(ctx, d, tag); err != nil {
		return err
	}
	fmt.Printf("oci:%s:%s %s\n", out, tag, d.Digest)
	return nil
}
