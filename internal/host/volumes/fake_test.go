package volumes

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// fakeGuest is a guest that keeps what comes, by the protocol's rules: a version
// takes effect as a whole, and only a newer one.
type fakeGuest struct {
	agentapi.AgentService // what is not implemented is not called

	mu        sync.Mutex
	versions  map[string]uint64
	volumes   map[string][]contents // every version that took effect
	refuse    []error               // answers to the next PutFiles, one each
	announced map[string]chan net.Conn
	puts      chan string // told of every PutFiles, if not nil
	disks     map[string]vmm.Disk
	attached  []string      // VOLUME=SERIAL
	noDisk    error         // answer to AttachVolume
	opening   chan struct{} // AttachVolume waits until it is closed, if not nil
	detached  []string
	message   []byte
	kept      error // the answer of a guest that may not tell
}

// contents is a set of files: name to mode and content.
type contents map[string]string

func newGuest() *fakeGuest {
	return &fakeGuest{versions: map[string]uint64{}, volumes: map[string][]contents{}, announced: map[string]chan net.Conn{}, disks: map[string]vmm.Disk{}}
}

func (g *fakeGuest) Agent() agentapi.AgentService { return g }

func (g *fakeGuest) meet(volume string, version uint64) chan net.Conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	key := fmt.Sprint(volume, version)
	if g.announced[key] == nil {
		g.announced[key] = make(chan net.Conn)
	}
	return g.announced[key]
}

func (g *fakeGuest) Open(ctx context.Context, h *agentapi.StreamHeader) (net.Conn, error) {
	if h.GetKind() != agentapi.StreamHeader_FILES {
		return nil, fmt.Errorf("stream of kind %s", h.GetKind())
	}
	ours, theirs := net.Pipe()
	select {
	case g.meet(h.GetVolume(), h.GetVersion()) <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (g *fakeGuest) PutFiles(ctx context.Context, req *agentapi.PutFilesRequest) (*agentapi.PutFilesResponse, error) {
	if g.puts != nil {
		g.puts <- req.GetVolume()
	}
	g.mu.Lock()
	last := g.versions[req.GetVolume()]
	var refusal error
	if len(g.refuse) > 0 {
		refusal, g.refuse = g.refuse[0], g.refuse[1:]
	}
	g.mu.Unlock()
	if req.GetVersion() <= last {
		return nil, status.Errorf(codes.PermissionDenied, "version %d after %d", req.GetVersion(), last)
	}
	if refusal != nil {
		return nil, refusal
	}
	var conn net.Conn
	select {
	case conn = <-g.meet(req.GetVolume(), req.GetVersion()):
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	defer conn.Close()
	files := contents{}
	for tr := tar.NewReader(conn); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			return nil, err
		}
		owner := ""
		if h.Uid != 0 || h.Gid != 0 {
			owner = fmt.Sprintf(" %d:%d", h.Uid, h.Gid)
		}
		files[h.Name] = fmt.Sprintf("%04o%s %s", h.Mode, owner, body)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.versions[req.GetVolume()] = req.GetVersion()
	g.volumes[req.GetVolume()] = append(g.volumes[req.GetVolume()], files)
	return &agentapi.PutFilesResponse{}, nil
}

// seen is every set of files that a volume has had.
func (g *fakeGuest) seen(volume string) []contents {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]contents(nil), g.volumes[volume]...)
}

func (g *fakeGuest) latest(volume string) contents {
	all := g.seen(volume)
	if len(all) == 0 {
		return nil
	}
	return all[len(all)-1]
}

func (g *fakeGuest) AttachDisk(_ context.Context, d vmm.Disk) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, twice := g.disks[d.Serial]; twice {
		return fmt.Errorf("disk %s is attached", d.Serial)
	}
	g.disks[d.Serial] = d
	return nil
}

func (g *fakeGuest) DetachDisk(_ context.Context, serial string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.disks, serial)
	g.detached = append(g.detached, serial)
	return nil
}

func (g *fakeGuest) AttachVolume(ctx context.Context, req *agentapi.AttachVolumeRequest) (*agentapi.AttachVolumeResponse, error) {
	if g.opening != nil {
		select {
		case <-g.opening:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.noDisk != nil {
		return nil, g.noDisk
	}
	g.attached = append(g.attached, req.GetVolume()+"="+req.GetDisk())
	return &agentapi.AttachVolumeResponse{}, nil
}

func (g *fakeGuest) TerminationMessage(context.Context, *agentapi.TerminationMessageRequest) (*agentapi.TerminationMessageResponse, error) {
	return &agentapi.TerminationMessageResponse{Message: g.message}, g.kept
}

// warnings collects them.
type warnings struct {
	mu   sync.Mutex
	all  []string
	told chan string // if not nil
}

func (w *warnings) add(s string) {
	w.mu.Lock()
	w.all = append(w.all, s)
	w.mu.Unlock()
	if w.told != nil {
		w.told <- s
	}
}

func (w *warnings) has(t *testing.T, want string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !strings.Contains(strings.Join(w.all, "\n"), want) {
		t.Errorf("warnings: expected %q, got %q", want, w.all)
	}
}

// bind is a mount as containerd makes it of the kubelet's.
func bind(source, destination string, options ...string) specs.Mount {
	return specs.Mount{Type: "bind", Source: source, Destination: destination, Options: append([]string{"rbind", "rprivate"}, options...)}
}
