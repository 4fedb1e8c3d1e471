package run

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/archive"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/registries"
	"github.com/coffer-project/coffer/oci/registry"
	"github.com/coffer-project/coffer/oci/serve"
)

// HostName is the name under which the guest reaches the host's loopback.
const HostName = sandbox.HostName

// localRepository is what an image that no registry has is called in the guest.
const localRepository = "local/image"

// localPort is tried first for serving local images, so that the same image
// gives the same policy again.
const localPort = 47990

// ImageOptions say how the host reaches registries.
type ImageOptions struct {
	// AuthFile is a docker auth.json, empty for none.
	AuthFile string
	// RootPEMs are trusted besides the system's.
	RootPEMs []string
	// HostRootPEMs are the certificates for single registries, host[:port];
	// nothing else is trusted for those.
	HostRootPEMs map[string]string
	// PlainHTTP lists registries (host[:port]) to ask without TLS.
	PlainHTTP []string
	// Registries are mirrors, insecure and blocked registries, and short names;
	// nil for none. The guest is told all but the short names.
	Registries *registries.Config
	// Spool is a directory for archives on their way.
	Spool string
	// ServeRemote has a registry's image copied and served from loopback like
	// a local one: an unsealed guest knows no registry and trusts no roots.
	ServeRemote bool
}

// Image is an image as the owner's program found it: what will be pinned.
type Image struct {
	// Ref is what the guest pulls: repository and digest.
	Ref oci.Reference
	// Config is the platform's configuration.
	Config *oci.ImageConfig
	// LayerKeys are the KBS URIs of the keys that its encrypted layers need.
	LayerKeys []string
	// PlainHTTP lists the registries the guest may ask without TLS.
	PlainHTTP []string
	// RootPEMs are certificates the guest may trust for registries.
	RootPEMs []string

	// manifest is the platform's.
	manifest oci.Digest
	closers  []func() error
}

// Close ends what serves the image.
func (i *Image) Close() error {
	var errs []error
	for _, c := range slices.Backward(i.closers) {
		errs = append(errs, c())
	}
	i.closers = nil
	return errors.Join(errs...)
}

// Source is an image where it lies, to be read.
type Source struct {
	oci.Fetcher
	// Ref names the image; for a local one the repository is made up.
	Ref oci.Reference
	// local is the layout of an image that no registry has.
	local *layout.Layout
	close func() error
}

// Close ends the reading.
func (s *Source) Close() error { return s.close() }

// OpenSource opens the image that name stands for:
//
//	[docker://]REGISTRY/REPOSITORY[:TAG][@DIGEST]   a registry's
//	oci:DIR[:TAG]                                   in an OCI layout directory
//	oci-archive:FILE[:TAG]                          in a tar of such a directory
//	docker-archive:FILE[:REFERENCE]                 in what docker save wrote
//
// A path that begins with "/", "./" or "../" is a layout or a Docker archive by
// what it is.
func OpenSource(ctx context.Context, name string, o ImageOptions) (*Source, error) {
	kind, rest := imageKind(name)
	ref := oci.Reference{Registry: HostName, Repository: localRepository}
	switch kind {
	case "oci":
		dir, tag := cutTag(rest)
		l, err := layout.Open(dir)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		ref.Tag = tag
		return &Source{l, ref, l, l.Close}, nil
	case "oci-archive":
		file, tag := cutTag(rest)
		l, err := layout.Create(filepath.Join(o.Spool, "archive"))
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		if err := archive.LoadOCI(ctx, file, l, o.Spool); err != nil {
			return nil, fmt.Errorf("image %s: %w", name, errors.Join(err, l.Close()))
		}
		ref.Tag = tag
		return &Source{l, ref, l, l.Close}, nil
	case "docker-archive":
		file, tag, _ := strings.Cut(rest, ":")
		l, image, err := loadArchive(ctx, file, tag, o.Spool)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		return &Source{l, ref.WithDigest(image.Manifest.Digest), l, l.Close}, nil
	}
	ref, err := o.Registries.Resolve(rest)
	if err != nil {
		if _, statErr := os.Stat(rest); statErr == nil {
			err = hint.New(err, "for a file or directory, write docker-archive:"+rest+" or oci:"+rest)
		}
		return nil, fmt.Errorf("image %q: %w", name, err)
	}
	client, err := RegistryClient(o)
	if err != nil {
		return nil, err
	}
	repository, err := client.Repository(ref)
	if err != nil {
		client.Close()
		return nil, err
	}
	return &Source{repository, ref, nil, func() error { client.Close(); return nil }}, nil
}

// loadArchive turns an archive into a layout below spool and picks its image:
// the one with the tag, or the only one.
func loadArchive(ctx context.Context, file, tag, spool string) (_ *layout.Layout, _ archive.Image, err error) {
	var none archive.Image
	l, err := layout.Create(filepath.Join(spool, "archive"))
	if err != nil {
		return nil, none, err
	}
	defer func() {
		if err != nil {
			_ = l.Close()
		}
	}()
	images, err := archive.Load(ctx, file, l, spool)
	if err != nil {
		return nil, none, err
	}
	if tag == "" && len(images) == 1 {
		return l, images[0], nil
	}
	var have []string
	for _, image := range images {
		for _, t := range image.Tags {
			have = append(have, t.String())
			if want, err := oci.ParseReference(tag); err == nil && want == t || t.Tag == tag {
				return l, image, nil
			}
		}
	}
	return nil, none, fmt.Errorf("expected docker-archive:FILE:REFERENCE with one of %s", strings.Join(have, ", "))
}

// RegistryClient is a client of registries as the options say.
func RegistryClient(o ImageOptions) (*registry.Client, error) {
	options := registry.Options{RootPEMs: o.RootPEMs, HostRootPEMs: o.HostRootPEMs, PlainHTTP: o.PlainHTTP, Registries: o.Registries}
	if o.AuthFile != "" {
		data, err := os.ReadFile(o.AuthFile)
		if err != nil {
			return nil, fmt.Errorf("--authfile: %w", err)
		}
		if options.Credentials, err = registry.ParseCredentials(data); err != nil {
			return nil, fmt.Errorf("--authfile %s: %w", o.AuthFile, err)
		}
	}
	return registry.New(options)
}

// OpenImage finds the image that name stands for and pins it. An image that no
// registry has is served to the guest from loopback until Close.
func OpenImage(ctx context.Context, name string, o ImageOptions) (_ *Image, err error) {
	src, err := OpenSource(ctx, name, o)
	if err != nil {
		return nil, err
	}
	img := &Image{closers: []func() error{src.Close}}
	defer func() {
		if err != nil {
			_ = img.Close()
		}
	}()
	if err := img.resolve(ctx, src, src.Ref); err != nil {
		if errors.Is(err, oci.ErrNotFound) {
			err = hint.New(err, "is the reference right, and does the registry want --authfile?")
		}
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	if src.local == nil && o.ServeRemote {
		if src.local, err = layout.Create(filepath.Join(o.Spool, "copy")); err != nil {
			return nil, err
		}
		img.closers = append(img.closers, src.local.Close)
		// Of an image for many platforms, the guest's only.
		img.Ref = img.Ref.WithDigest(img.manifest)
		if _, err := build.Copy(ctx, src, img.Ref, src.local); err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		img.Ref.Repository = localRepository
	}
	if src.local != nil {
		return img, img.serve(ctx, src.local)
	}
	// The guest has no roots of its own: those it may trust for this registry
	// are part of what is measured.
	_, pinned := o.HostRootPEMs[img.Ref.Registry]
	if img.RootPEMs = o.RootPEMs; len(img.RootPEMs) == 0 && !pinned && !isLoopback(img.Ref.Registry) {
		if img.RootPEMs, err = SystemRoots(); err != nil {
			return nil, err
		}
	}
	if guest, ok := guestRegistry(img.Ref.Registry); ok {
		img.Ref.Registry = guest
	}
	for _, plain := range o.PlainHTTP {
		if guest, ok := guestRegistry(plain); ok {
			plain = guest
		}
		img.PlainHTTP = append(img.PlainHTTP, plain)
	}
	return img, nil
}

func imageKind(name string) (kind, rest string) {
	for _, k := range []string{"oci", "oci-archive", "docker-archive"} {
		if rest, ok := strings.CutPrefix(name, k+":"); ok {
			return k, rest
		}
	}
	if rest, ok := strings.CutPrefix(name, "docker://"); ok {
		return "docker", rest
	}
	if strings.HasPrefix(name, "/") || strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../") {
		path, _ := cutTag(name)
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			return "oci", name
		}
		return "docker-archive", name
	}
	return "docker", name
}

// cutTag splits DIR[:TAG].
func cutTag(s string) (dir, tag string) {
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		return s[:i], s[i+1:]
	}
	return s, ""
}

// serve offers a layout to the guest on loopback.
func (i *Image) serve(ctx context.Context, l *layout.Layout) error {
	var listen net.ListenConfig
	listener, err := listen.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(localPort)))
	if err != nil {
		if listener, err = listen.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
			return fmt.Errorf("serve the image to the guest: %w", err)
		}
	}
	server := &http.Server{Handler: serve.Handler(map[string]serve.Source{localRepository: l}), ReadHeaderTimeout: 30 * time.Second}
	go func() { _ = server.Serve(listener) }()
	i.closers = append(i.closers, server.Close)
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		return err
	}
	i.Ref.Registry = net.JoinHostPort(HostName, port)
	i.PlainHTTP = []string{i.Ref.Registry}
	return nil
}

// guestRegistry is the name by which the guest reaches a registry on the host's
// loopback.
func guestRegistry(hostPort string) (string, bool) {
	if !isLoopback(hostPort) {
		return "", false
	}
	_, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		port = ""
	}
	if port == "" {
		return HostName, true
	}
	return net.JoinHostPort(HostName, port), true
}

func isLoopback(hostPort string) bool {
	host, _, err := net.SplitHostPort(hostPort)
	if err != nil {
		host = hostPort
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// rootBundles are where distributions keep the certificates of public
// authorities in one file: Debian, Fedora, openSUSE.
var rootBundles = []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"}

// SystemRoots are the public authorities this machine trusts, in PEM. Those it
// has stay readable in initdata.
func SystemRoots() ([]string, error) {
	for _, path := range rootBundles {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return []string{string(data)}, err
	}
	return nil, hint.New(errors.New("this machine has no bundle of public certificate authorities for the guest to trust"),
		"name the registry's authority with --registry-ca, or install ca-certificates")
}

// resolve pins the reference and reads the platform's manifest and
// configuration.
func (i *Image) resolve(ctx context.Context, f oci.Fetcher, ref oci.Reference) error {
	top, err := f.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	i.Ref = ref.WithDigest(top.Digest)
	platform := oci.GuestPlatform()
	chosen, manifest, err := build.Inspect(ctx, f, i.Ref, platform)
	if err != nil {
		return err
	}
	i.manifest = chosen.Digest
	if i.Config, err = build.Config(ctx, f, manifest); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if err := i.Config.CheckImage(platform, len(manifest.Layers)); err != nil {
		return err
	}
	i.LayerKeys, err = layerKeys(manifest)
	return err
}

// layerKeys lists the key-encryption keys that the layers name.
func layerKeys(m *oci.Manifest) ([]string, error) {
	var kids []string
	for n, l := range m.Layers {
		format, err := oci.ParseLayerMediaType(l.MediaType)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", n, err)
		}
		if !format.Encrypted {
			continue
		}
		for packed := range strings.SplitSeq(l.Annotations[crypt.AnnotationKeys], ",") {
			raw, err := base64.StdEncoding.DecodeString(packed)
			if err != nil {
				return nil, fmt.Errorf("layer %d: annotation %s: %w", n, crypt.AnnotationKeys, err)
			}
			packet, err := crypt.ParsePacket(raw)
			if err != nil {
				return nil, fmt.Errorf("layer %d: annotation %s: %w", n, crypt.AnnotationKeys, err)
			}
			if !slices.Contains(kids, packet.KID) {
				kids = append(kids, packet.KID)
			}
		}
	}
	return kids, nil
}
