// Package program is the agent as a program: it puts the parts together, as
// PID 1 of a guest or as a plain process for tests.
package program

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/guest/agent"
	"github.com/coffer-project/coffer/internal/guest/attestation"
	"github.com/coffer-project/coffer/internal/guest/boot"
	"github.com/coffer-project/coffer/internal/guest/container"
	"github.com/coffer-project/coffer/internal/guest/datahub"
	"github.com/coffer-project/coffer/internal/guest/machine"
	"github.com/coffer-project/coffer/internal/guest/network"
	"github.com/coffer-project/coffer/internal/guest/reaper"
	"github.com/coffer-project/coffer/internal/guest/restapi"
	"github.com/coffer-project/coffer/internal/guest/serial"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/registry"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/oci/signature/lookaside"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/azure/azureattest"
	"github.com/coffer-project/coffer/tee/platform"
	"github.com/coffer-project/coffer/tee/softtee/softport"
	"github.com/coffer-project/coffer/tee/tpm/tpmattest"
)

// Version is the agent's, as it names itself.
const Version = "0.1.0-dev"

// HostName is by what name a guest reaches its own host. An unsealed pod may
// pull from there by plain HTTP: the host decides what runs in it anyway.
const HostName = "host.coffer.internal"

// parts are what an agent is put together from.
type parts struct {
	log     *slog.Logger
	cmdline boot.Cmdline
	bootID  [16]byte
	marks   func() []boot.Mark
	reaper  *reaper.Reaper
	places  *places
	disks   agent.Disks
	// dir is a tmpfs; etc is where the agent's resolver files are.
	dir, etc string
	crun     string
	// cgroup has those of the containers.
	cgroup string
	// plain: this is a process of an ordinary machine, whose kernel may not have
	// what a guest's has. keepNetwork leaves its devices as they are.
	plain, keepNetwork bool
	ready              func(ctx context.Context) error
	end                func()
}

// build makes the agent.
func build(p parts) (*agent.Agent, error) {
	dirs := map[string]string{}
	for _, name := range []string{"runtime", "bundles", "pod"} {
		dirs[name] = filepath.Join(p.dir, name)
		if err := os.MkdirAll(dirs[name], 0o711); err != nil {
			return nil, err
		}
	}
	// Containers may write the files they share; that is not to fill more.
	if err := unix.Mount("tmpfs", dirs["pod"], "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0711,size=4m"); err != nil {
		return nil, fmt.Errorf("mount the pod's files: %w", err)
	}
	// Of the size that Kubernetes' runtimes give a pod.
	shm := filepath.Join(dirs["pod"], "shm")
	if err := os.Mkdir(shm, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("shm", shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,size=64m"); err != nil {
		return nil, fmt.Errorf("mount the pod's shared memory: %w", err)
	}
	crun, err := container.NewCrun(container.Options{
		Path: p.crun, StateDir: dirs["runtime"], BundleDir: dirs["bundles"],
		CgroupRoot: "/sys/fs/cgroup", CgroupParent: p.cgroup, Reaper: p.reaper, WithoutMissing: p.plain,
	})
	if err != nil {
		return nil, err
	}
	var nodes func() ([]container.Node, error)
	var limits map[string]container.RLimit
	if !p.plain {
		// As systemd gives them to a container runtime (systemd-system.conf(5),
		// DefaultLimitNOFILE); the kernel's own hard limit is 4,096.
		limits = map[string]container.RLimit{"RLIMIT_NOFILE": {Soft: 1024, Hard: 512 << 10}}
		nodes = func() ([]container.Node, error) { return machine.Nodes("/dev") }
	}
	return agent.New(agent.Options{
		Logger: p.log, Now: time.Now, Build: Version, BootID: p.bootID, Marks: p.marks,
		Attestation: newAttestation(p.cmdline),
		Machine: machine.New(machine.Options{
			Ready: p.ready, End: p.end, Etc: p.etc, ProcSys: "/proc/sys", Reaper: p.reaper, Network: &network.Manager{Keep: p.keepNetwork},
		}),
		Runtime: crun, Places: p.places, Disks: p.disks, PodDir: dirs["pod"], SharedMemory: shm, WithoutDeviceRules: p.plain, Nodes: nodes, RLimits: limits,
		NewBroker: func(c agent.BrokerConfig) (datahub.Broker, error) {
			return newBroker(c, p.log)
		},
		Devices:    func() ([]tee.Attester, error) { return devices(nvidiaProgram, runThrough(p.reaper)) },
		NewFetcher: newFetcher,
		NewService: newService, Providers: providers(),
		NewImagePolicy: newImagePolicy, ListenREST: restapi.Listen, RESTFeatures: p.cmdline.RESTAPI,
	})
}

// quotePort is where a TDX host offers its quote generation service on vsock
// (Intel SGXDataCenterAttestationPrimitives, QuoteGeneration: qgs.conf, port).
const quotePort = 4050

// thisMachine is where an environment is looked for, once its drivers are loaded.
func thisMachine() platform.Machine {
	m := platform.ThisMachine()
	if _, err := os.Stat("/dev/vsock"); err == nil {
		m.QuoteService = func(context.Context) (net.Conn, error) {
			// The kernel gives a host that does not answer two seconds.
			return vsock.Dial(vsock.Host, quotePort, nil)
		}
	}
	return m
}

// attester returns that of the first candidate which shows itself.
func attester(ctx context.Context, candidates ...platform.Candidate) (tee.Attester, error) {
	found, err := platform.Detect(ctx, candidates)
	if err != nil {
		return nil, err
	}
	return found.Attester(ctx)
}

// In these environments the agent names the initdata.
var (
	_ attestation.Binder = (*tpmattest.Attester)(nil)
	_ attestation.Binder = (*azureattest.Attester)(nil)
)

// newAttestation looks for environments on this machine, and for the software
// TEE at its port.
func newAttestation(cmdline boot.Cmdline) *attestation.Source {
	finder := serial.System()
	open := func(ctx context.Context) (io.ReadWriteCloser, error) {
		port, err := finder.Open(ctx, softport.PortName)
		if err != nil {
			return nil, err
		}
		return &wholePort{port.Conn(), port}, nil
	}
	return attestation.New(attestation.Options{
		Cmdline:  cmdline,
		Hardware: func(ctx context.Context) (tee.Attester, error) { return attester(ctx, thisMachine().Hardware()...) },
		TPM:      func(ctx context.Context) (tee.Attester, error) { return attester(ctx, thisMachine().BareTPM()) },
		HasSoft:  func() bool { return finder.Has(softport.PortName) },
		Soft:     func() tee.Attester { return softport.New(open) },
		SoftTDX:  func() tee.Attester { return softport.NewTDX(open) },
	})
}

// wholePort closes the port with its connection.
type wholePort struct {
	*serial.Conn
	port *serial.Port
}

func (w *wholePort) Close() error { return errors.Join(w.Conn.Close(), w.port.Close()) }

func newBroker(c agent.BrokerConfig, log *slog.Logger) (datahub.Broker, error) {
	return kbs.NewClient(kbs.ClientOptions{
		URL: c.URL, RootPEM: []byte(c.RootPEM), Attester: c.Attester, Devices: c.Devices, InitData: c.InitData,
		UserAgent: "coffer-agent/" + Version, Logger: log, Rand: rand.Reader, KeyType: c.KeyType, PolicySelector: c.PolicySelector,
	})
}

// newService opens an attestation service, which is known by its URL only: what it
// signs is for others to check.
func newService(url string, a tee.Attester) (datahub.Service, error) {
	return kbs.NewService(kbs.ServiceOptions{URL: url, Attester: a, UserAgent: "coffer-agent/" + Version})
}

// newImagePolicy reads an image policy, with signatures of simple signing where
// the lookaside configuration and registries have them. Keyless ones are
// verified here or by the pod's trustee.
func newImagePolicy(policy, sigstore []byte, c agent.RegistryConfig) (*signature.Policy, error) {
	client, err := newRegistry(c, oci.Reference{})
	if err != nil {
		return nil, err
	}
	places, err := lookaside.ParseConfig(sigstore)
	if err != nil {
		return nil, err
	}
	store, err := lookaside.New(lookaside.Options{Config: places, Client: client.HTTP(), Registry: client})
	if err != nil {
		return nil, err
	}
	return signature.ParsePolicy(policy, append(keylessOption(c), signature.WithLookaside(store))...)
}

func newFetcher(c agent.RegistryConfig, ref oci.Reference) (oci.Fetcher, func(), error) {
	client, err := newRegistry(c, ref)
	if err != nil {
		return nil, nil, err
	}
	repository, err := client.Repository(ref)
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	return repository, client.Close, nil
}

// newRegistry opens registries as initdata says. ref is what is to be read.
func newRegistry(c agent.RegistryConfig, ref oci.Reference) (*registry.Client, error) {
	proxy, err := c.Image.Proxy.Func()
	if err != nil {
		return nil, fmt.Errorf("image_pull_proxy: %w", err)
	}
	o := registry.Options{RootPEMs: c.Image.ExtraRoots, HostRootPEMs: c.Image.HostRoots, Registries: c.Image.Registries, Proxy: proxy, UserAgent: "coffer-agent/" + Version}
	if c.Credentials.Len() > 0 {
		credentials, err := registry.ParseCredentials(c.Credentials.Expose())
		if err != nil {
			return nil, fmt.Errorf("registry credentials: %w", err)
		}
		o.Credentials = credentials
	}
	if host, _, err := net.SplitHostPort(ref.Registry); err == nil && host == HostName && c.Unsealed {
		o.PlainHTTP = append(o.PlainHTTP, ref.Registry)
	}
	return registry.New(o)
}
