package faults

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/coffer-project/coffer/internal/host/hosttest"
	"github.com/coffer-project/coffer/oci/serve"
)

// registryAddress is what a pod's registry has: of a block for documentation
// (RFC 5737).
const registryAddress = "198.51.100.1"

// registryName is a name under which an agent for development takes a registry
// without TLS.
const registryName = "host.coffer.internal"

// registry serves the shared image in a pod's network namespace. It can hold
// pulls, and be killed.
type registry struct {
	server *httptest.Server
	port   string

	// login: whoever pulls has to say who it is.
	login atomic.Bool

	mu   sync.Mutex
	hold chan struct{} // closed to let pulls go on; nil: they do
	held chan struct{} // closed when a pull is held
	once *sync.Once
}

func newRegistry(t *testing.T, ns *hosttest.Namespace) *registry {
	r := &registry{}
	handler := serve.Handler(map[string]serve.Source{"test/busybox": shared.image})
	r.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if r.login.Load() {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if strings.Contains(req.URL.Path, "/blobs/") {
			r.wait(req)
		}
		handler.ServeHTTP(w, req)
	}))
	_ = r.server.Listener.Close()
	if err := ns.Do(func() (err error) {
		r.server.Listener, err = net.Listen("tcp", registryAddress+":0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	r.server.Start()
	_, r.port, _ = net.SplitHostPort(r.server.Listener.Addr().String())
	t.Cleanup(r.kill)
	return r
}

func (r *registry) reference(repository string) string {
	return registryName + ":" + r.port + "/" + repository + "@" + shared.digest
}

// holdPulls lets requests for blobs wait from now on. The channel is closed when
// one does.
func (r *registry) holdPulls() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hold, r.held, r.once = make(chan struct{}), make(chan struct{}), &sync.Once{}
	return r.held
}

// letGo ends that.
func (r *registry) letGo() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hold != nil {
		close(r.hold)
		r.hold = nil
	}
}

func (r *registry) wait(req *http.Request) {
	r.mu.Lock()
	hold, held, once := r.hold, r.held, r.once
	r.mu.Unlock()
	if hold == nil {
		return
	}
	once.Do(func() { close(held) })
	select {
	case <-hold:
	case <-req.Context().Done():
	}
}

// kill ends the registry with all its connections.
func (r *registry) kill() {
	_ = r.server.Listener.Close()
	r.server.CloseClientConnections()
	r.letGo()
	r.server.Close()
}
