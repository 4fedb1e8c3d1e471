// Package agent serves the agent protocol: it takes the host's proposals, has
// the pod policy decide about them, and does what was decided. The host
// selects and never instructs: no text of a proposal reaches the container
// runtime, the image puller or the data hub except through a decision.
//
// An [Agent] outlives its sessions. A host may vanish at any time; calls that
// were under way end, containers go on, and the next session finds them.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coffer-project/coffer/initdata/guestconfig"
	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guest/attestation"
	"github.com/coffer-project/coffer/internal/guest/blobs"
	"github.com/coffer-project/coffer/internal/guest/boot"
	"github.com/coffer-project/coffer/internal/guest/container"
	"github.com/coffer-project/coffer/internal/guest/datahub"
	"github.com/coffer-project/coffer/internal/guest/image"
	"github.com/coffer-project/coffer/internal/guest/kms"
	"github.com/coffer-project/coffer/internal/guest/network"
	"github.com/coffer-project/coffer/internal/guest/volume"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
)

// ProtocolVersion is the only version of the protocol there is.
const ProtocolVersion = 1

// Machine is what the agent does to the machine as a whole.
type Machine interface {
	// Ready waits until everything is there that a pod needs (drivers).
	Ready(ctx context.Context) error
	SetHostname(name string) error
	SetSysctl(name, value string) error
	// ApplyNetwork configures interfaces, routes and neighbours.
	ApplyNetwork(ctx context.Context, c network.Config) error
	// WriteNetworkFiles writes the resolver's files for the agent itself and
	// into dir for the containers.
	WriteNetworkFiles(dir string, f network.Files) error
	// SharedPIDs starts the process that holds the pod's PID namespace and
	// returns the namespace's path.
	SharedPIDs() (string, error)
	// Shutdown begins the machine's end and returns.
	Shutdown()
}

// Places is where a pod's images and volumes are kept.
type Places interface {
	// Open makes the stores of a pod: on the disk with that serial number,
	// encrypted with a key that nobody else has, or in memory if it is empty.
	Open(ctx context.Context, scratchDisk string) (*image.Store, *volume.Manager, error)
}

// BrokerConfig says which key broker to ask.
type BrokerConfig struct {
	URL, RootPEM string
	// InitData is the raw document, nil for an unsealed pod.
	InitData []byte
	Attester tee.Attester
	// Devices make additional evidence.
	Devices []tee.Attester
	// KeyType and PolicySelector are as in guestconfig.Config.
	KeyType        kbs.KeyType
	PolicySelector string
}

// RegistryConfig says how to reach registries.
type RegistryConfig struct {
	// Credentials is a docker auth.json, empty for none.
	Credentials secret.Bytes
	// Image carries extra roots and insecure registries.
	Image guestconfig.Image
	// Unsealed: no owner's policy is in force.
	Unsealed bool
	// AskTrustee sends a body to a plugin of the pod's default trustee, by a URI
	// kbs+plugin:///…, and returns the answer; nil: there is no trustee.
	AskTrustee func(ctx context.Context, uri string, body []byte) (secret.Bytes, error)
}

// Options are what an agent works with. All but Marks are required.
type Options struct {
	Logger      *slog.Logger
	Now         func() time.Time
	Build       string
	BootID      [16]byte
	Marks       func() []boot.Mark
	Attestation *attestation.Source
	Machine     Machine
	Runtime     *container.Crun
	Places      Places
	Disks       Disks
	// PodDir holds the files that all containers share (resolv.conf, …).
	PodDir string
	// NewBroker and NewFetcher open the outside world. The fetcher's second
	// result closes it.
	NewBroker  func(BrokerConfig) (datahub.Broker, error)
	NewFetcher func(RegistryConfig, oci.Reference) (oci.Fetcher, func(), error)
	// Devices finds what is attached to the guest and makes evidence of its own;
	// nil: nothing is.
	Devices func() ([]tee.Attester, error)
	// NewService opens the attestation service that gives tokens of the kind
	// coco_as; Providers are key management services by name. Nil: none.
	NewService func(url string, a tee.Attester) (datahub.Service, error)
	Providers  map[string]kms.Provider
	// NewImagePolicy reads a containers-policy.json with the lookaside
	// configuration (YAML, may be empty) beside it.
	NewImagePolicy func(policy, lookaside []byte, c RegistryConfig) (*signature.Policy, error)
	// ListenREST opens the address of the containers' HTTP interface; nil: there
	// is none. RESTFeatures are its groups where initdata does not say.
	ListenREST   func(ctx context.Context) (net.Listener, error)
	RESTFeatures string
	// Nodes are the device nodes that a privileged container of an unsealed pod has;
	// nil: none, where the machine is not the pod's.
	Nodes func() ([]container.Node, error)
	// SharedMemory is a directory that all containers have at /dev/shm, as those of
	// a pod share the rest of its inter-process communication; empty: each has its
	// own there.
	SharedMemory string
	// RLimits are those of a container for which nobody has said others.
	RLimits map[string]container.RLimit
	// WithoutDeviceRules is for tests on machines that forbid them.
	WithoutDeviceRules bool
}

// Agent is the guest's side of the protocol. It is safe for concurrent use.
type Agent struct {
	o      Options
	log    *slog.Logger
	events *eventLog
	files  *rendezvous
	blobs  *blobs.Pool
	turn   chan struct{} // holds one token: the right to make the sandbox
	ending atomic.Bool   // the host has asked for the end

	mu         sync.Mutex
	sandbox    *sandbox
	containers map[string]*ctr
}

var _ agentapi.AgentService = (*Agent)(nil)

// New returns an agent without a sandbox.
func New(o Options) (*Agent, error) {
	if o.Logger == nil || o.Now == nil || o.Attestation == nil || o.Machine == nil || o.Runtime == nil ||
		o.Places == nil || o.Disks == nil || o.NewBroker == nil || o.NewFetcher == nil || o.PodDir == "" {
		return nil, errors.New("agent: an option is missing")
	}
	a := &Agent{
		o: o, log: o.Logger, events: newEventLog(o.Now), files: newRendezvous(), blobs: blobs.New(),
		turn: make(chan struct{}, 1), containers: map[string]*ctr{},
	}
	a.turn <- struct{}{}
	return a, nil
}

// Hello implements the protocol.
func (a *Agent) Hello(ctx context.Context, req *agentapi.HelloRequest) (*agentapi.HelloResponse, error) {
	version := uint32(0)
	for _, v := range req.GetVersions() {
		if v == ProtocolVersion {
			version = v
		}
	}
	if version == 0 {
		return nil, a.fail(ctx, "Hello", invalid("versions: expected %d among them, got %v; use a guest image of the same release", ProtocolVersion, req.GetVersions()))
	}
	facts, err := a.o.Attestation.Facts(ctx)
	if err != nil {
		return nil, a.fail(ctx, "Hello", err)
	}
	a.log.InfoContext(ctx, "host says hello", "build", clip(req.GetBuild()))
	if a.log.Enabled(ctx, slog.LevelDebug) {
		a.log.DebugContext(ctx, "resident memory", "bytes", resident())
	}
	resp := &agentapi.HelloResponse{
		Version: version, BootId: a.o.BootID[:], Build: a.o.Build, Tee: string(facts.TEE), Simulated: facts.Simulated,
		Sealed: facts.Sealed(), InitdataDigest: facts.InitData,
	}
	if a.o.Marks != nil {
		for _, m := range a.o.Marks() {
			resp.BootPhases = append(resp.BootPhases, &agentapi.BootPhase{Name: m.Name, AtNs: uint64(max(m.At, 0)), AtTsc: m.TSC})
		}
	}
	return resp, nil
}

// Shutdown implements the protocol.
func (a *Agent) Shutdown(ctx context.Context, _ *agentapi.ShutdownRequest) (*agentapi.ShutdownResponse, error) {
	if sb, err := a.theSandbox(); err == nil {
		if err := sb.guard.Ask(podpolicy.AskShutdown, "", ""); err != nil {
			return nil, a.fail(ctx, "Shutdown", err)
		}
	}
	a.log.InfoContext(ctx, "the host asks for the end")
	a.ending.Store(true)
	a.o.Machine.Shutdown()
	return &agentapi.ShutdownResponse{}, nil
}

// theSandbox returns the sandbox, or a refusal while there is none.
func (a *Agent) theSandbox() (*sandbox, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sandbox == nil {
		return nil, noSandbox()
	}
	return a.sandbox, nil
}

// resident is how much memory this program occupies, in bytes; 0 if unknown.
func resident() uint64 {
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, pages uint64
	if _, err := fmt.Sscan(string(raw), &size, &pages); err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}
