package registry_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/build"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/pull"
	"github.com/coffer-project/coffer/oci/registries"
	"github.com/coffer-project/coffer/oci/registry"
	"github.com/coffer-project/coffer/oci/serve"
	"github.com/coffer-project/coffer/oci/signature"
)

// place is a registry that counts and can misbehave.
type place struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string
	// spoil, when not nil, handles a request instead.
	spoil atomic.Pointer[http.HandlerFunc]
}

func newPlace(t *testing.T, h http.Handler) *place {
	t.Helper()
	p := &place{}
	p.Server = newServer(t, func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.asked = append(p.asked, r.Method+" "+r.URL.Path)
		p.mu.Unlock()
		if s := p.spoil.Load(); s != nil {
			(*s)(w, r)
			return
		}
		h.ServeHTTP(w, r)
	})
	return p
}

func (p *place) count() int { p.mu.Lock(); defer p.mu.Unlock(); return len(p.asked) }

// image builds one in a layout.
func image(t *testing.T, text string) (*layout.Layout, oci.Descriptor) {
	t.Helper()
	l, err := layout.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	dir := t.TempDir()
	writeFile(t, dir+"/file", text)
	d, err := build.Build(t.Context(), l, build.Options{Layers: []build.Tree{{Dir: dir}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(t.Context(), d, "v1"); err != nil {
		t.Fatal(err)
	}
	return l, d
}

// mirrored opens ORIGIN/shop/web with mirrors.
func mirrored(t *testing.T, origin *place, extra string, mirrors ...*place) *registry.Repository {
	t.Helper()
	text := fmt.Sprintf("[[registry]]\nlocation = %q\n%s", host(origin.Server)+"/shop", extra)
	o := registry.Options{}
	for _, m := range mirrors {
		text += fmt.Sprintf("[[registry.mirror]]\nlocation = %q\n", host(m.Server)+"/copies/deep")
		o.RootPEMs = append(o.RootPEMs, rootPEM(m.Server))
	}
	var err error
	if o.Registries, err = registries.Parse([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return open(t, origin.Server, o)
}

func TestMirrorsAreTriedInOrder(t *testing.T) {
	t.Parallel()
	l, d := image(t, "hello")
	mirror := serve.Handler(map[string]serve.Source{"copies/deep/web": l})
	first, second, origin := newPlace(t, http.NotFoundHandler()), newPlace(t, mirror), newPlace(t, serve.Handler(map[string]serve.Source{"shop/web": l}))
	repo := mirrored(t, origin, "", first, second)
	if got, err := repo.Resolve(t.Context(), oci.Reference{Tag: "v1"}); err != nil || got.Digest != d.Digest {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := fetch(t, repo, d); err != nil {
		t.Error(err)
	}
	if first.count() == 0 || second.count() == 0 || origin.count() != 0 {
		t.Errorf("asked %v, %v, %v", first.asked, second.asked, origin.asked)
	}
	// Without the mirrors, from the origin.
	for _, m := range []*place{first, second} {
		m.CloseClientConnections()
		m.Close()
	}
	if got, err := repo.Resolve(t.Context(), oci.Reference{Tag: "v1"}); err != nil || got.Digest != d.Digest || origin.count() == 0 {
		t.Errorf("%v, %v", got, err)
	}
	// What nobody has is not found; the message says who was asked.
	_, err := repo.Resolve(t.Context(), oci.Reference{Tag: "v2"})
	if !errors.Is(err, oci.ErrNotFound) || !strings.Contains(err.Error(), "mirror "+host(first.Server)) || !strings.Contains(err.Error(), "registry "+host(origin.Server)) {
		t.Errorf("want ErrNotFound, got %v", err)
	}
}

func TestMirrorByDigestOnly(t *testing.T) {
	t.Parallel()
	l, d := image(t, "hello")
	m, origin := newPlace(t, serve.Handler(map[string]serve.Source{"copies/deep/web": l})), newPlace(t, serve.Handler(map[string]serve.Source{"shop/web": l}))
	repo := mirrored(t, origin, "mirror-by-digest-only = true\n", m)
	if _, err := repo.Resolve(t.Context(), oci.Reference{Tag: "v1"}); err != nil || m.count() != 0 {
		t.Errorf("a tag was asked of the mirror: %v, %v", m.asked, err)
	}
	before := origin.count()
	if _, err := repo.Resolve(t.Context(), oci.Reference{Tag: "v1", Digest: d.Digest}); err != nil || m.count() == 0 || origin.count() != before {
		t.Errorf("a digest was not asked of the mirror: %v, %v", m.asked, err)
	}
}

// TestMirrorThatLies: other manifests, other layers, other sizes: the content
// comes from elsewhere, and the mirror is not asked again.
func TestMirrorThatLies(t *testing.T) {
	t.Parallel()
	l, d := image(t, "hello")
	good, bad := blobOf(content), bytes.Repeat([]byte("x"), len(content))
	if err := l.Push(t.Context(), good, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	lie := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			w.Header().Set("Content-Type", oci.MediaTypeManifest)
			_, _ = w.Write(bytes.Repeat([]byte("x"), int(d.Size)))
			return
		}
		_, _ = w.Write(bad)
	})
	m, origin := newPlace(t, lie), newPlace(t, serve.Handler(map[string]serve.Source{"shop/web": l}))
	if _, err := fetch(t, mirrored(t, origin, "", m), d); err != nil || m.count() != 1 {
		t.Errorf("manifest: %v", err)
	}
	repo := mirrored(t, origin, "", m)
	_, err := fetch(t, repo, good)
	if !errors.Is(err, oci.ErrLied) || !strings.Contains(err.Error(), "mirror "+host(m.Server)) {
		t.Errorf("blob: want ErrLied, got %v", err)
	}
	before := m.count()
	if got, err := fetch(t, repo, good); err != nil || !bytes.Equal(got, content) || m.count() != before {
		t.Errorf("again: %v, asked %d times more", err, m.count()-before)
	}
}

// TestMirrorBreaksOff: the origin goes on where the mirror ended, and where it
// stood still.
func TestMirrorBreaksOff(t *testing.T) {
	t.Parallel()
	l, _ := image(t, "hello")
	if err := l.Push(t.Context(), blobOf(content), bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]func(r *http.Request){"ends": func(*http.Request) { panic(http.ErrAbortHandler) }, "stalls": func(r *http.Request) { <-r.Context().Done() }} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var gone atomic.Bool
			m := newPlace(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if gone.Swap(true) {
					panic(http.ErrAbortHandler)
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(content)))
				_, _ = w.Write(content[:len(content)/2])
				w.(http.Flusher).Flush()
				end(r)
			}))
			origin := newPlace(t, serve.Handler(map[string]serve.Source{"shop/web": l}))
			text := fmt.Sprintf("[[registry]]\nlocation = %q\n[[registry.mirror]]\nlocation = %q\n", host(origin.Server), host(m.Server))
			conf, err := registries.Parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			repo := open(t, origin.Server, registry.Options{Registries: conf, RootPEMs: []string{rootPEM(m.Server)}, StallTimeout: time.Second})
			if got, err := fetch(t, repo, blobOf(content)); err != nil || !bytes.Equal(got, content) || origin.count() == 0 {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
}

// TestPolicySeesUsersReference: the mirror changes where bytes come from, not
// which image is judged. Upstream judges the mirror's name.
func TestPolicySeesUsersReference(t *testing.T) {
	t.Parallel()
	l, d := image(t, "hello")
	m, origin := newPlace(t, serve.Handler(map[string]serve.Source{"copies/deep/web": l})), newPlace(t, http.NotFoundHandler())
	policy := func(accepted, rejected *place) *signature.Policy {
		p, err := signature.ParsePolicy(fmt.Appendf(nil, `{"default":[{"type":"reject"}],"transports":{"docker":{%q:[{"type":"insecureAcceptAnything"}],%q:[{"type":"reject"}]}}}`,
			host(accepted.Server), host(rejected.Server)))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	run := func(p *signature.Policy) error {
		ref := mustRef(t, host(origin.Server)+"/shop/web@"+string(d.Digest))
		img, err := pull.Pull(t.Context(), pull.Options{Ref: ref, Fetcher: mirrored(t, origin, "", m), Policy: p, Dest: t.TempDir() + "/root"})
		if err == nil && img.Ref != ref {
			t.Errorf("the image is called %s", img.Ref)
		}
		return err
	}
	if err := run(policy(origin, m)); err != nil {
		t.Errorf("the user's reference is accepted: %v", err)
	}
	if m.count() == 0 {
		t.Error("the mirror was not asked")
	}
	if err := run(policy(m, origin)); err == nil || !strings.Contains(err.Error(), host(origin.Server)) {
		t.Errorf("only the mirror's name is accepted: %v", err)
	}
}

// TestBlockedAndInsecure: what the configuration says of a registry is in force.
func TestBlockedAndInsecure(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(newRegistry())
	t.Cleanup(s.Close)
	for text, want := range map[string]string{"insecure = true": "", "": "list it as insecure", "blocked = true": "blocked by prefix"} {
		conf, err := registries.Parse(fmt.Appendf(nil, "[[registry]]\nlocation = %q\n%s\n", host(s), text))
		if err != nil {
			t.Fatal(err)
		}
		c, err := registry.New(registry.Options{Registries: conf})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		repo, err := c.Repository(mustRef(t, host(s)+"/a/b"))
		if err == nil {
			_, err = oci.PushBytes(t.Context(), repo, "x/y", []byte("x"))
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: want %q, got %v", text, want, err)
		}
	}
}

func TestReferrers(t *testing.T) {
	t.Parallel()
	subject := oci.FromBytes([]byte("subject"))
	entry := func(name, artifactType string) string {
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":7,"artifactType":%q}`, oci.MediaTypeManifest, oci.FromBytes([]byte(name)), artifactType)
	}
	index := func(entries ...string) string {
		return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, oci.MediaTypeIndex, strings.Join(entries, ","))
	}
	var loops atomic.Int32
	s := newServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", oci.MediaTypeIndex)
		switch r.URL.Path {
		case "/v2/shop/web/referrers/" + string(subject):
			if r.URL.Query().Get("page") == "" {
				w.Header().Set("Link", `</v2/shop/web/referrers/`+string(subject)+`?page=2>; rel="next"`)
				_, _ = io.WriteString(w, index(entry("a", "x/sig"), entry("b", "x/sbom")))
				return
			}
			_, _ = io.WriteString(w, index(entry("c", "x/sig")))
		case "/v2/shop/web/referrers/" + string(oci.FromBytes([]byte("loop"))):
			loops.Add(1)
			w.Header().Set("Link", `<?x>; rel="next"`)
			_, _ = io.WriteString(w, index())
		case "/v2/shop/web/referrers/" + string(oci.FromBytes([]byte("away"))):
			w.Header().Set("Link", `<https://elsewhere.example/x>; rel="next"`)
			_, _ = io.WriteString(w, index())
		case "/v2/shop/web/referrers/" + string(oci.FromBytes([]byte("page"))):
			w.Header().Set("Content-Type", "text/html")
		default:
			http.NotFound(w, r)
		}
	})
	repo := open(t, s, registry.Options{})
	for artifactType, want := range map[string]string{"": "a b c", "x/sig": "a c", "x/other": ""} {
		got, err := repo.Referrers(t.Context(), subject, artifactType)
		var names []string
		for _, d := range got {
			for _, n := range []string{"a", "b", "c"} {
				if d.Digest == oci.FromBytes([]byte(n)) {
					names = append(names, n)
				}
			}
		}
		if err != nil || strings.Join(names, " ") != want {
			t.Errorf("%q: %v, %v, want %s", artifactType, names, err, want)
		}
	}
	for name, notFound := range map[string]bool{"none": true, "page": true, "loop": false, "away": false} {
		if _, err := repo.Referrers(t.Context(), oci.FromBytes([]byte(name)), ""); err == nil || errors.Is(err, oci.ErrNotFound) != notFound {
			t.Errorf("%s: %v", name, err)
		}
	}
	if loops.Load() != 8 {
		t.Errorf("%d pages", loops.Load())
	}
	if _, err := repo.Referrers(t.Context(), "../x", ""); err == nil {
		t.Error("a bad digest was asked for")
	}
}
