package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/cli/imagetool"
	"github.com/coffer-project/coffer/internal/cli/ui"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/secret"
)

// sourceHelp says what SOURCE and IMAGE may be.
const sourceHelp = `a registry's reference, oci:DIR[:TAG], oci-archive:FILE[:TAG] or
docker-archive:FILE[:REFERENCE]`

// imageFlags are what all commands on images have.
type imageFlags struct {
	registry run.ImageOptions
	rootCA   []string
	platform string
}

func (f *imageFlags) add(c *cobra.Command, platform string) {
	flags := c.Flags()
	flags.StringVar(&f.registry.AuthFile, "authfile", "", "docker auth.json with the registry's credentials")
	flags.StringArrayVar(&f.rootCA, "registry-ca", nil, "PEM file with certificates to trust for registries (repeatable)")
	flags.StringArrayVar(&f.registry.PlainHTTP, "plain-http", nil, "registry host[:port] to use without TLS (repeatable)")
	flags.StringVar(&f.platform, "platform", "", "OS/ARCHITECTURE[/VARIANT] of an image for several ("+platform+")")
}

// imageWork is a command on images while it works.
type imageWork struct {
	ctx  context.Context
	ui   *ui.UI
	o    run.ImageOptions
	tool imagetool.Options
}

// withImages prepares what a command on images needs, and cleans up behind it.
func (a *app) withImages(c *cobra.Command, f *imageFlags, work func(*imageWork) error) (err error) {
	ctx, stop := notifyInterrupt(c.Context())
	defer stop()
	c.SetContext(ctx)
	w := &imageWork{ctx: ctx, o: f.registry}
	if w.o.RootPEMs, err = readFiles("--registry-ca", f.rootCA); err != nil {
		return err
	}
	if w.tool.Platform, err = parsePlatform(f.platform); err != nil {
		return err
	}
	if w.o.Spool, err = os.MkdirTemp("", "coffer-image-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(w.o.Spool)) }()
	w.ui = ui.New(a.env.Stderr)
	defer w.ui.Close()
	w.tool.Spool, w.tool.Status = w.o.Spool, w.ui.Status
	return work(w)
}

// parsePlatform reads --platform; nil if there is none.
func parsePlatform(s string) (*oci.Platform, error) {
	if s == "" {
		return nil, nil //nolint:nilnil // none is asked for
	}
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return nil, usagef("--platform: expected OS/ARCHITECTURE[/VARIANT], such as linux/arm64, got %q", s)
	}
	p := &oci.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

// openSource opens an image to read.
func (w *imageWork) openSource(name string) (*run.Source, error) {
	src, err := run.OpenSource(w.ctx, name, w.o)
	if errors.Is(err, os.ErrNotExist) {
		err = hint.New(err, "images are "+strings.ReplaceAll(sourceHelp, "\n", " "))
	}
	return src, err
}

// transfer opens both ends and has f write one image.
func (w *imageWork) transfer(source, destination string, f func(*run.Source, *imagetool.Destination) (*imagetool.Result, error)) (_ *imagetool.Result, err error) {
	src, err := w.openSource(source)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst, err := imagetool.OpenDestination(destination, w.o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	return f(src, dst)
}

// isLocal says whether an image has no registry's name.
func isLocal(ref oci.Reference) bool { return ref.Registry == run.HostName }

// keyFiles are the keys of --key-file. It implements crypt.KeySource.
type keyFiles map[string]secret.Bytes

// Key implements crypt.KeySource.
func (k keyFiles) Key(_ context.Context, kid string) (secret.Bytes, error) {
	uri, err := kbs.ParseResourceURI(kid)
	if err != nil {
		return secret.Bytes{}, err
	}
	if key, ok := k[uri.String()]; ok {
		return key, nil
	}
	have := "none"
	if len(k) > 0 {
		have = strings.Join(slices.Sorted(maps.Keys(k)), ", ")
	}
	return secret.Bytes{}, hint.New(fmt.Errorf("is not among those of --key-file (%s)", have), "add --key-file "+uri.String()+"=FILE")
}
