package node

import (
	"archive/tar"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// AppImage has the tests' app as its program, and BusyBox. OtherImage has the same
// files and another configuration.
const (
	AppImage   = Registry + "/app:1"
	OtherImage = Registry + "/other:1"
)

// Images is the registry of a node: it lives in the test process, listens at
// [Registry] with TLS, and keeps images in memory over reboots.
type Images struct {
	n      *Node
	server *http.Server

	mu      sync.Mutex
	private map[string]string // repository prefix to "user:password"
	pulls   map[string]int    // repository to requests of blobs
	files   map[string][]byte
}

// ServeImages starts the registry and puts [PauseImage], [AppImage] and [OtherImage] into it.
func (n *Node) ServeImages() (*Images, error) {
	config, err := n.ServerTLS()
	if err != nil {
		return nil, err
	}
	l, err := n.Listen(Registry)
	if err != nil {
		return nil, err
	}
	i := &Images{n: n, private: map[string]string{}, pulls: map[string]int{}, files: map[string][]byte{}}
	i.server = &http.Server{
		Handler:           i.guard(registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))),
		ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
	}
	go func() { _ = i.server.Serve(tls.NewListener(l, config)) }()
	data, err := n.Listen(DataAddress)
	if err != nil {
		return nil, err
	}
	files := &http.Server{Handler: http.HandlerFunc(i.serveFiles), ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)}
	go func() { _ = files.Serve(data) }()
	return i, i.pushOwn()
}

func (i *Images) pushOwn() error {
	app, err := os.ReadFile(filepath.Join(i.n.options.Programs, "bin", "app"))
	if err != nil {
		return err
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("%w (Debian's package busybox-static has it)", err)
	}
	files := []File{{Name: "app", Mode: 0o755, Data: app}}
	if err := i.Push(PauseImage, Image{Files: files, Config: v1.Config{Entrypoint: []string{"/app", "pause"}}}); err != nil {
		return err
	}
	files = append(files, BusyBox(busybox)...)
	if err := i.Push(OtherImage, Image{Files: files, Config: v1.Config{Cmd: []string{"true"}, Env: []string{"PATH=/bin:/", "WHICH=the other"}}}); err != nil {
		return err
	}
	return i.Push(AppImage, Image{Files: files, Config: v1.Config{
		Entrypoint: []string{"/app"}, Cmd: []string{"serve"}, Env: []string{"PATH=/bin:/", "FROM_IMAGE=yes"},
	}})
}

// File is one of an image.
type File struct {
	Name string
	Mode int64
	Data []byte
	// Link makes it a symbolic link; Dir a directory.
	Link string
	Dir  bool
	UID  int
}

// BusyBox is what an image needs for a shell and the usual small programs.
func BusyBox(program []byte) []File {
	files := []File{
		{Name: "bin/busybox", Mode: 0o755, Data: program},
		{Name: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\n")},
		{Name: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nuser:x:1000:\n")},
		{Name: "tmp", Mode: 0o1777, Dir: true}, {Name: "mnt", Mode: 0o755, Dir: true}, {Name: "home", Mode: 0o755, Dir: true, UID: 1000},
	}
	for _, applet := range strings.Fields("sh cat ls echo sleep tar stat id ps kill mount umount df dd head tail grep sed awk cut sort wc env printenv hostname true false touch mkdir rm rmdir mv cp ln chmod chown test date nproc free tr od md5sum sha256sum readlink find ip nc wget ping ping6 nslookup blockdev sysctl seq sync stty dmesg xargs uname tee yes mktemp pwd expr") {
		files = append(files, File{Name: "bin/" + applet, Link: "busybox"})
	}
	return files
}

// Image is what an image is made of, one layer.
type Image struct {
	Files  []File
	Config v1.Config
}

// Build makes an image.
func (i Image) Build() (v1.Image, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range i.Files {
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Size: int64(len(f.Data)), Typeflag: tar.TypeReg, Uid: f.UID, Gid: f.UID}
		switch {
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
		case f.Dir:
			h.Typeflag, h.Name = tar.TypeDir, f.Name+"/"
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.Data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Config = "linux", "amd64", i.Config
	return mutate.ConfigFile(img, c)
}

// Push makes an image and puts it into the registry.
func (i *Images) Push(ref string, image Image) error {
	img, err := image.Build()
	if err != nil {
		return err
	}
	return i.Write(ref, img)
}

// Write puts an image into the registry.
func (i *Images) Write(ref string, img v1.Image) error {
	r, err := name.ParseReference(ref)
	if err != nil {
		return err
	}
	options, err := i.options(r)
	if err != nil {
		return err
	}
	return remote.Write(r, img, options...)
}

func (i *Images) options(r name.Reference) ([]remote.Option, error) {
	transport, err := i.n.Transport()
	if err != nil {
		return nil, err
	}
	options := []remote.Option{remote.WithTransport(transport)}
	if credentials, ok := i.credentials(r.Context().RepositoryStr()); ok {
		user, password, _ := strings.Cut(credentials, ":")
		options = append(options, remote.WithAuth(&authn.Basic{Username: user, Password: password}))
	}
	return options, nil
}

// Transport reaches servers of the node by their numeric address, and trusts its
// authority.
func (n *Node) Transport() (*http.Transport, error) {
	pem, err := os.ReadFile(n.CA())
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &http.Transport{DialContext: n.Dial, TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}, nil
}

// Protect demands a user and a password for the repositories below prefix.
func (i *Images) Protect(prefix, user, password string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.private[prefix] = user + ":" + password
}

func (i *Images) credentials(repository string) (string, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for prefix, c := range i.private {
		if repository == prefix || strings.HasPrefix(repository, prefix+"/") {
			return c, true
		}
	}
	return "", false
}

func (i *Images) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := strings.TrimPrefix(r.URL.Path, "/v2/")
		want, private := i.credentials(path)
		if !private {
			// Of PREFIX/IMAGE/manifests/… the first part is enough.
			first, _, _ := strings.Cut(path, "/")
			want, private = i.credentials(first)
		}
		user, password, _ := r.BasicAuth()
		if private && user+":"+password != want {
			w.Header().Set("WWW-Authenticate", `Basic realm="node"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		if r.Method == http.MethodGet {
			i.count(r.URL.Path)
		}
		next.ServeHTTP(w, r)
	})
}
