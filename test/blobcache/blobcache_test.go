// Package blobcache tests the host's blob cache from end to end without a
// machine: a registry that counts, the guest's image pull, the agent channel and
// the host's store.
package blobcache

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/guest/blobs"
	hostcache "github.com/coffer-project/coffer/internal/host/blobcache"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/blobcache"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/pull"
	"github.com/coffer-project/coffer/oci/registry"
	"github.com/coffer-project/coffer/oci/serve"
	"github.com/coffer-project/coffer/oci/signature"
)

// world is a registry with one image of two layers, one of them large.
type world struct {
	server *httptest.Server
	ref    oci.Reference
	layers []oci.Descriptor
	asked  atomic.Int32 // requests of any kind
	need   string       // credentials that are needed, USER:PASSWORD
}

func newWorld(t testing.TB, sizes ...int64) *world {
	t.Helper()
	if sizes == nil {
		sizes = []int64{100, 6 << 20}
	}
	l, err := layout.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	random := rand.NewChaCha8([32]byte{1})
	var trees []build.Tree
	for _, size := range sizes {
		dir := t.TempDir()
		data, err := io.ReadAll(io.LimitReader(random, size))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("file", size)), data, 0o600); err != nil {
			t.Fatal(err)
		}
		trees = append(trees, build.Tree{Dir: dir})
	}
	d, err := build.Build(t.Context(), l, build.Options{Layers: trees})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{}
	handler := serve.Handler(map[string]serve.Source{"shop/web": l})
	w.server = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.asked.Add(1)
		if user, password, _ := r.BasicAuth(); w.need != "" && user+":"+password != w.need {
			rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(rw, r)
	}))
	w.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	w.server.StartTLS()
	t.Cleanup(w.server.Close)
	u, err := url.Parse(w.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	w.ref = oci.Reference{Registry: u.Host, Repository: "shop/web", Digest: d.Digest}
	raw, err := oci.ReadAll(t.Context(), l, d, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	m, err := oci.ParseManifest(raw, d.MediaType)
	if err != nil {
		t.Fatal(err)
	}
	w.layers = m.Layers
	return w
}

// pod is a guest with its own client, linked to a host's cache. streams is how
// many streams the host opens; serve, when not nil, answers them instead of the
// store.
func (w *world) pod(t testing.TB, store *hostcache.Store, streams int, answer func(net.Conn)) *blobs.Pool {
	t.Helper()
	pool := blobs.New()
	if streams == 0 {
		return pool
	}
	ours, theirs := net.Pipe()
	accepted := make(chan *channel.Session, 1)
	go func() {
		guest, err := channel.Accept(t.Context(), theirs, [16]byte{1})
		if err != nil {
			t.Error(err)
		}
		accepted <- guest
	}()
	host, err := channel.Dial(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	guest := <-accepted
	var wg sync.WaitGroup
	ready := make(chan struct{}, streams)
	wg.Go(func() {
		for {
			conn, err := guest.AcceptStream()
			if err != nil {
				return
			}
			if _, err := channel.ReadHeader(conn); err != nil {
				t.Error(err)
			}
			if err := channel.WriteReply(conn, nil); err != nil {
				t.Error(err)
			}
			wg.Go(func() { _ = pool.Serve(context.Background(), conn) })
			ready <- struct{}{}
		}
	})
	for range streams {
		conn, err := host.Open(t.Context(), &agentapi.StreamHeader{Kind: agentapi.StreamHeader_BLOBS})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if answer != nil {
				answer(conn)
				return
			}
			_ = store.Serve(context.Background(), conn)
		})
		<-ready
	}
	t.Cleanup(func() {
		_ = host.Close()
		_ = guest.Close()
		wg.Wait()
	})
	return pool
}

// pull is what the guest's image store does: again, when the cache has lied.
func (w *world) pull(t testing.TB, pool *blobs.Pool) (root string, lies int, err error) {
	t.Helper()
	o := registry.Options{RootPEMs: []string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.server.Certificate().Raw}))}}
	if w.need != "" {
		o.Credentials, err = registry.ParseCredentials(fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, w.ref.Registry, base64.StdEncoding.EncodeToString([]byte(w.need))))
		if err != nil {
			t.Fatal(err)
		}
	}
	client, err := registry.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	repo, err := client.Repository(w.ref)
	if err != nil {
		t.Fatal(err)
	}
	fetcher := blobcache.New(repo, pool, blobcache.Options{Lied: func(oci.Digest, error) { lies++ }})
	for range 2 {
		root = filepath.Join(t.TempDir(), "root")
		_, err = pull.Pull(t.Context(), pull.Options{Ref: w.ref, Fetcher: fetcher, Policy: signature.InsecureAcceptAnything(), Dest: root})
		if !errors.Is(err, blobcache.ErrLied) {
			break
		}
	}
	return root, lies, err
}

func openStore(t testing.TB, dir string) *hostcache.Store {
	t.Helper()
	s, err := hostcache.Open(dir, hostcache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func check(t *testing.T, root string) {
	t.Helper()
	if info, err := os.Stat(filepath.Join(root, fmt.Sprint("file", 6<<20))); err != nil || info.Size() != 6<<20 {
		t.Errorf("the image is not there: %v", err)
	}
}

// TestSecondPodDownloadsNothing: not even a question reaches the registry.
func TestSecondPodDownloadsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "cache")
	store := openStore(t, dir)
	root, lies, err := w.pull(t, w.pod(t, store, 8, nil))
	if err != nil || lies != 0 {
		t.Fatalf("first: %v, %d lies", err, lies)
	}
	check(t, root)
	if n := len(store.List()); n != 4 {
		t.Fatalf("%d blobs in the cache, want manifest, configuration and two layers", n)
	}
	first := w.asked.Load()
	// Another process of the host, later.
	root, lies, err = w.pull(t, w.pod(t, openStore(t, dir), 8, nil))
	if err != nil || lies != 0 {
		t.Fatalf("second: %v, %d lies", err, lies)
	}
	check(t, root)
	if n := w.asked.Load() - first; n != 0 {
		t.Errorf("the second pod sent %d requests to the registry", n)
	}
	// A host that lends no streams changes nothing but the time it takes.
	if root, _, err = w.pull(t, w.pod(t, nil, 0, nil)); err != nil || w.asked.Load() == first {
		t.Errorf("without a cache: %v", err)
	}
	check(t, root)
}

// TestPrivateImagesStayPrivate: what is read with credentials and not encrypted
// is neither given to the cache nor asked of it.
func TestPrivateImagesStayPrivate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.need = "u:p"
	store := openStore(t, filepath.Join(t.TempDir(), "cache"))
	var requests atomic.Int32
	pool := w.pod(t, nil, 4, func(conn net.Conn) {
		for {
			var req agentapi.BlobRequest
			if channel.ReadMessage(conn, &req) != nil {
				return
			}
			requests.Add(1)
			_ = channel.WriteMessage(conn, &agentapi.BlobReply{})
		}
	})
	root, _, err := w.pull(t, pool)
	if err != nil || requests.Load() != 0 || len(store.List()) != 0 {
		t.Errorf("%v, %d requests", err, requests.Load())
	}
	check(t, root)
}

// TestLyingHosts: whatever the host's cache does, the pod gets its image, from
// the registry, and the lie is told once.
func TestLyingHosts(t *testing.T) {
	t.Parallel()
	// each answers GET requests one by one; PUTs are not wanted.
	each := func(get func(conn net.Conn, w *world, req *agentapi.BlobRequest) bool) func(*world) func(net.Conn) {
		return func(w *world) func(net.Conn) {
			return func(conn net.Conn) {
				defer func() { _ = conn.Close() }()
				for {
					var req agentapi.BlobRequest
					if channel.ReadMessage(conn, &req) != nil {
						return
					}
					if req.GetOperation() == agentapi.BlobRequest_GET {
						if !get(conn, w, &req) {
							return
						}
						continue
					}
					if channel.WriteMessage(conn, &agentapi.BlobReply{}) != nil {
						return
					}
				}
			}
		}
	}
	large := func(w *world, req *agentapi.BlobRequest) bool { return req.GetDigest() == string(w.layers[1].Digest) }
	found := func(conn net.Conn, size uint64) {
		_ = channel.WriteMessage(conn, &agentapi.BlobReply{Found: true, Size: size})
	}
	nothing := func(conn net.Conn) bool { return channel.WriteMessage(conn, &agentapi.BlobReply{}) == nil }
	for name, tc := range map[string]struct {
		serve func(*world) func(net.Conn)
		lies  int
	}{
		"has nothing":     {each(func(c net.Conn, _ *world, _ *agentapi.BlobRequest) bool { return nothing(c) }), 0},
		"dies at once":    {func(*world) func(net.Conn) { return func(c net.Conn) { _ = c.Close() } }, 0},
		"dies when asked": {each(func(net.Conn, *world, *agentapi.BlobRequest) bool { return false }), 0},
		"other manifest": {each(func(c net.Conn, _ *world, _ *agentapi.BlobRequest) bool {
			found(c, 2)
			_, err := io.WriteString(c, "{}")
			return err == nil
		}), 1},
		"other layer": {each(func(c net.Conn, w *world, req *agentapi.BlobRequest) bool {
			if !large(w, req) {
				return nothing(c)
			}
			found(c, req.GetSize())
			_, err := c.Write(bytes.Repeat([]byte("x"), int(req.GetSize())))
			return err == nil
		}), 1},
		"truncated layer": {each(func(c net.Conn, w *world, req *agentapi.BlobRequest) bool {
			if !large(w, req) {
				return nothing(c)
			}
			found(c, req.GetSize())
			_, _ = c.Write(make([]byte, 1<<20))
			return false
		}), 1},
		"other size": {each(func(c net.Conn, w *world, req *agentapi.BlobRequest) bool {
			if !large(w, req) {
				return nothing(c)
			}
			found(c, req.GetSize()+1)
			return true
		}), 1},
		"manifest beyond all bounds": {each(func(c net.Conn, _ *world, _ *agentapi.BlobRequest) bool { found(c, 1<<40); return true }), 1},
		"too much": {each(func(c net.Conn, _ *world, _ *agentapi.BlobRequest) bool {
			_ = nothing(c)
			_, _ = io.WriteString(c, "and more that nobody asked for")
			return true
		}), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			root, lies, err := w.pull(t, w.pod(t, nil, 8, tc.serve(w)))
			if err != nil {
				t.Fatal(err)
			}
			check(t, root)
			if lies != tc.lies {
				t.Errorf("%d lies were told of, want %d", lies, tc.lies)
			}
			if w.asked.Load() == 0 {
				t.Error("the registry was not asked")
			}
		})
	}
}

// TestSpoiltStore: a disk that changes a blob costs a second try, and the store
// has a good one afterwards.
func TestSpoiltStore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "cache")
	store := openStore(t, dir)
	if _, _, err := w.pull(t, w.pod(t, store, 8, nil)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, strings.Replace(string(w.layers[1].Digest), ":", "/", 1))
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	root, lies, err := w.pull(t, w.pod(t, store, 8, nil))
	if err != nil || lies != 1 {
		t.Errorf("%v, %d lies", err, lies)
	}
	check(t, root)
	// The next pod fills the gap.
	if _, lies, err := w.pull(t, w.pod(t, store, 8, nil)); err != nil || lies != 0 || len(store.List()) != 4 {
		t.Errorf("%v, %d lies, %d blobs", err, lies, len(store.List()))
	}
}

// BenchmarkPull pulls 64 MiB: from the registry, into the cache besides, and
// from it.
func BenchmarkPull(b *testing.B) {
	for _, name := range []string{"registry", "cold", "warm"} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, 32<<20, 32<<20)
			store := openStore(b, filepath.Join(b.TempDir(), "cache"))
			streams := 8
			if name == "registry" {
				streams = 0
			}
			pool := w.pod(b, store, streams, nil)
			if name == "warm" {
				if _, _, err := w.pull(b, pool); err != nil {
					b.Fatal(err)
				}
			}
			b.SetBytes(64 << 20)
			for b.Loop() {
				if name == "cold" {
					if _, err := store.Prune(0); err != nil {
						b.Fatal(err)
					}
				}
				if _, lies, err := w.pull(b, pool); err != nil || lies > 0 {
					b.Fatal(err, lies)
				}
			}
		})
	}
}
