// Package volumes brings the volumes of a Kubernetes pod into its guest, with
// which the host shares no file system.
//
// A [Manager] belongs to a pod. For each container, Prepare looks at the mounts
// and devices of its OCI specification and finds by their paths below the
// kubelet's directory what they are: files that Kubernetes writes (configMap,
// secret, projected, downwardAPI) are read as one version and sent with PutFiles,
// and sent again when the kubelet replaces them; an emptyDir is a volume of the
// guest's own; the device of a claim is attached to the machine; a host path is
// copied once, or refused. What comes out is a [Proposal]: mounts by volume name
// and sub path, as the guest and its pod policy know them. Exited takes a
// container's last words back to the kubelet, and Release ends what a container
// used.
//
//	place.go      what a path below a pod's directory is
//	plan.go       what a mount becomes
//	subpath.go    which part of a volume the kubelet has mounted for a subPath
//	snapshot.go   reading files: one version, bounded
//	worker.go     one goroutine for a volume: sends, and sends again
//	block.go      devices of claims
//
// The guest rules over what it takes: with a pod policy a proposal that differs is
// refused there. The guest is not trusted either: what it says is bounded.
package volumes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// Host is the machine that a pod runs in.
type Host interface {
	Agent() agentapi.AgentService
	Open(ctx context.Context, header *agentapi.StreamHeader) (net.Conn, error)
	// AttachDisk gives the machine a disk while it runs; the image's file may be
	// closed afterwards.
	AttachDisk(ctx context.Context, d vmm.Disk) error
	DetachDisk(ctx context.Context, serial string) error
}

// HostPath is what is done with host paths.
type HostPath string

// A host path is copied into the guest once, or refused.
const (
	CopyHostPath   HostPath = "copy"
	RefuseHostPath HostPath = "refuse"
)

// DefaultKubeletRoot is where the kubelet keeps its pods unless it is told
// otherwise (--root-dir).
const DefaultKubeletRoot = "/var/lib/kubelet"

// AnnotationVolumes is a pod's annotation that names the volumes of its claims:
// KEY=VOLUME, separated by commas, with the name of a PersistentVolume or the
// devicePath in the container as KEY. A sealed pod whose policy has the device
// under the same path needs none.
const AnnotationVolumes = "coffer-project.io/volumes"

// Options describe a pod.
type Options struct {
	// KubeletRoot; empty is [DefaultKubeletRoot].
	KubeletRoot string
	// PodUID; empty where there is no kubelet.
	PodUID string
	// HostPath; empty refuses.
	HostPath HostPath
	// Sealed tells that the pod has a policy. Initdata (gzip of the TOML) is where
	// the names of its block volumes are looked up.
	Sealed   bool
	Initdata []byte
	// Annotations of the pod.
	Annotations map[string]string
	Logger      *slog.Logger
	// Warn takes what the pod's owner should know, a sentence each. It must not
	// wait, and may be nil.
	Warn func(string)
}

// Container is what a container's OCI specification says of its volumes.
type Container struct {
	// ID of the container, Name in the pod.
	ID, Name string
	Mounts   []specs.Mount
	// Devices and DeviceRules are linux.devices and linux.resources.devices.
	Devices     []specs.LinuxDevice
	DeviceRules []specs.LinuxDeviceCgroup
	// Privileged: devices of the node are left out instead of refused.
	Privileged bool
}

// Proposal is the part of CreateContainerRequest that is about volumes.
type Proposal struct {
	Mounts  []*agentapi.Mount
	Volumes []*agentapi.Volume
	Devices []*agentapi.Device
	// TerminationPath is the path in the container of its last words; empty
	// without.
	TerminationPath string
	// Hosts are the pod's hostAliases, as the kubelet's hosts file has them; nil
	// where the container has no such file.
	Hosts []*agentapi.HostEntry
}

// Manager keeps a pod's volumes. It is safe for concurrent use.
type Manager struct {
	o    Options
	pace pace
	ctx  context.Context // of the workers; ends with Close
	end  context.CancelFunc
	pod  *podDir

	mu      sync.Mutex
	closed  bool
	watcher *watcher
	volumes map[string]*volume
	uses    map[string]*use
}

// volume is one of the pod's. It stays known when nobody uses it, since versions
// only grow, and the guest keeps what it has.
type volume struct {
	name string
	// source tells volumes of the same name apart: a directory or a device.
	source string
	spec   *agentapi.Volume
	// watch is the directory whose link is watched; empty for none.
	watch string
	// work brings it into the guest; nil for nothing to do.
	work func(ctx context.Context, h Host) error
	// lasting work goes on when who has asked for it gives up, and stays done: a
	// guest that is stopped while it makes a new volume leaves a disk that is
	// neither blank nor a volume.
	lasting bool

	users  map[string]bool
	worker *worker // nil before the first
}

// use is what a container has.
type use struct {
	volumes     []*volume
	messageFile string // below the pod's directory
}

// New makes the manager of a pod. Nothing is looked at yet.
func New(o Options) *Manager {
	if o.KubeletRoot == "" {
		o.KubeletRoot = DefaultKubeletRoot
	}
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	m := &Manager{o: o, pace: defaultPace(), pod: newPodDir(o.KubeletRoot, o.PodUID), volumes: map[string]*volume{}, uses: map[string]*use{}}
	m.ctx, m.end = context.WithCancel(context.Background())
	return m
}

// Prepare brings what a container needs into the guest, and says how it is called
// there. It is to be called before CreateContainer; with an error, nothing of
// the container stays. It ends when ctx does, and may last: disks are opened by
// keys that a trustee is asked for.
func (m *Manager) Prepare(ctx context.Context, h Host, c Container) (*Proposal, error) {
	p := &planner{m: m, c: c, proposal: &Proposal{}, use: &use{}}
	if err := p.plan(); err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	workers, err := m.take(h, c.ID, p)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	for _, w := range workers {
		if err := w.do(ctx); err != nil {
			m.Release(c.ID)
			if w.lasting && ctx.Err() != nil {
				err = fmt.Errorf("the guest is still opening the disk, which goes on; create the container again: %w", err)
			}
			return nil, fmt.Errorf("container %s: volume %s: %w", c.Name, w.name, err)
		}
	}
	return p.proposal, nil
}

// named is a volume's worker.
type named struct {
	*worker
	name    string
	lasting bool
}

// take notes what a container uses, and starts the workers for it.
func (m *Manager) take(h Host, id string, p *planner) (workers []named, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return nil, errors.New("the pod's volumes are closed")
	case m.uses[id] != nil:
		return nil, fmt.Errorf("container id %s: has its volumes already", id)
	}
	m.uses[id] = p.use
	defer func() {
		if err != nil {
			m.release(id)
		}
	}()
	for i, planned := range p.use.volumes {
		v := m.volumes[planned.name]
		if v == nil {
			v = planned
			m.volumes[v.name] = v
		}
		if v.source != planned.source {
			return nil, fmt.Errorf("volume %s: two volumes have this name: %s and %s", v.name, v.source, planned.source)
		}
		p.use.volumes[i] = v
		if err := m.begin(h, v); err != nil {
			return nil, fmt.Errorf("volume %s: %w", v.name, err)
		}
		v.users[id] = true
		if v.work != nil {
			workers = append(workers, named{v.worker, v.name, v.lasting})
		}
	}
	return workers, nil
}

// begin has a volume's worker run. The caller holds mu.
func (m *Manager) begin(h Host, v *volume) error {
	if v.work == nil || len(v.users) > 0 || v.lasting && v.worker != nil {
		return nil
	}
	pace := m.pace
	if v.lasting {
		pace.attempt = 0
	}
	w := &worker{
		pace: pace, work: func(ctx context.Context) error { return v.work(ctx, h) },
		final: final, failed: func(err error, next time.Duration) { m.failed(v.name, err, next) },
	}
	w.start(m.ctx, v.worker)
	v.worker = w
	if v.watch == "" {
		return nil
	}
	// The watch comes before the files are read: no change is missed.
	err := m.watch(v.watch, w.changed)
	if err != nil {
		w.stop()
	}
	return err
}

func (m *Manager) watch(dir string, changed func()) error {
	if m.watcher == nil {
		w, err := newWatcher()
		if err != nil {
			return err
		}
		m.watcher = w
	}
	return m.watcher.add(dir, changed)
}

// failed tells the owner that the guest has no longer what Kubernetes has.
func (m *Manager) failed(name string, err error, next time.Duration) {
	if err == nil {
		m.o.Logger.Info("a volume is up to date again", "volume", name)
		return
	}
	m.o.Logger.Warn("a volume could not be brought up to date", "volume", name, "error", err, "next", next)
	switch next {
	case 0:
		m.o.Warn(fmt.Sprintf("volume %s: the containers keep the files that they have: %v", name, err))
	case m.pace.retry:
		m.o.Warn(fmt.Sprintf("volume %s: the containers do not have its latest files yet, and it is tried again: %v", name, err))
	}
}

// Release ends what a container used, when it has been deleted or could not be
// created. The files of a volume are no longer kept up to date once its last
// container is released. Disks stay attached: the guest keeps a volume open while
// the pod lives, and a container that is restarted finds it there.
func (m *Manager) Release(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.release(id)
}

func (m *Manager) release(id string) {
	use := m.uses[id]
	if use == nil {
		return
	}
	delete(m.uses, id)
	for _, v := range use.volumes {
		if !v.users[id] {
			continue
		}
		delete(v.users, id)
		if len(v.users) > 0 || v.worker == nil || v.lasting {
			continue
		}
		if v.watch != "" && m.watcher != nil {
			m.watcher.remove(v.watch)
		}
		v.worker.stop()
	}
}

// Close ends all work for the pod and waits for it. Calls to the guest that are
// under way are given up. It may be called again.
func (m *Manager) Close() error {
	m.mu.Lock()
	m.closed = true
	watcher := m.watcher
	m.watcher = nil
	volumes := slices.Collect(maps.Values(m.volumes))
	m.mu.Unlock()
	m.end()
	var err error
	if watcher != nil {
		err = watcher.close()
	}
	for _, v := range volumes {
		if v.worker != nil {
			<-v.worker.done
		}
	}
	return err
}
