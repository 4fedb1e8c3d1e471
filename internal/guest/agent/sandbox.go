package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/initdata/guestconfig"
	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/guest/attestation"
	"github.com/coffer-project/coffer/internal/guest/datahub"
	"github.com/coffer-project/coffer/internal/guest/image"
	"github.com/coffer-project/coffer/internal/guest/measurement"
	"github.com/coffer-project/coffer/internal/guest/network"
	"github.com/coffer-project/coffer/internal/guest/volume"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
)

// sandbox is the pod, once it exists. It is not changed, but for the network.
type sandbox struct {
	request [sha256.Size]byte
	// proven: the evidence names the initdata in force. Then the guest
	// attests before the first container.
	proven bool
	guard  *podpolicy.Guard
	hub    *datahub.Hub
	// attester and additional make the pod's evidence.
	attester   tee.Attester
	additional []tee.Attester
	trustee    string
	guest      guestconfig.Config
	// auth are an unsealed pod's credentials for registries.
	auth    secret.Bytes
	config  *podpolicy.SandboxConfig
	images  *image.Store
	volumes *volume.Manager
	// scratch is the serial number of the disk that the pod keeps for itself, or
	// empty.
	scratch string
	// devices are the nodes of raw block volumes, under the agent's lock.
	devices map[string]string
	// recorder measures what happens at run time; nil: nothing is measured.
	recorder *measurement.Recorder
	// restPort is that of the containers' HTTP interface; 0: there is none.
	restPort uint32
	// pidNamespace is the shared one's path, or empty.
	pidNamespace string

	once      chan struct{} // holds one token: the right to set the fields below
	attested  bool
	signature *signature.Policy
	registry  *RegistryConfig
}

// CreateSandbox implements the protocol.
func (a *Agent) CreateSandbox(ctx context.Context, req *agentapi.CreateSandboxRequest) (*agentapi.CreateSandboxResponse, error) {
	resp, err := a.createSandbox(ctx, req)
	return resp, a.fail(ctx, "CreateSandbox", err)
}

func (a *Agent) createSandbox(ctx context.Context, req *agentapi.CreateSandboxRequest) (*agentapi.CreateSandboxResponse, error) {
	hash, err := requestHash(req)
	if err != nil {
		return nil, err
	}
	select {
	case <-a.turn:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { a.turn <- struct{}{} }()
	a.mu.Lock()
	old := a.sandbox
	a.mu.Unlock()
	if old != nil {
		if old.request == hash {
			return &agentapi.CreateSandboxResponse{Sealed: old.guard.Sealed()}, nil
		}
		return nil, &podpolicy.Refusal{Rule: podpolicy.RuleSandboxOnce, Path: "sandbox_id", Expected: "the sandbox that exists, proposed as before",
			Got: "another proposal", Help: "a pod VM holds one sandbox for its life; start another VM"}
	}
	facts, err := a.o.Attestation.Facts(ctx)
	if err != nil {
		return nil, err
	}
	// Nothing of the initdata is looked at before it is the one launched with.
	raw, digest, err := checkInitdata(facts, req.GetInitdata())
	if err != nil {
		return nil, err
	}
	if facts, err = a.bind(ctx, facts, digest); err != nil {
		return nil, err
	}
	sb := &sandbox{request: hash, proven: facts.Sealed(), once: make(chan struct{}, 1), devices: map[string]string{}}
	sb.once <- struct{}{}
	broker := BrokerConfig{}
	if raw != nil {
		if err := sb.readInitdata(raw, &broker); err != nil {
			return nil, err
		}
		if !sb.proven {
			a.log.WarnContext(ctx, "initdata is in force but nothing proves it: this guest has no TEE")
		}
	} else {
		sb.guard = podpolicy.NewUnsealedGuard()
		sb.guest.URL, sb.guest.RootPEM = req.GetUnsealedTrustee().GetUrl(), req.GetUnsealedTrustee().GetCaPem()
		if err := sb.takeRegistries(req.GetUnsealedRegistries()); err != nil {
			return nil, err
		}
	}
	if err := a.openHub(sb, broker); err != nil {
		return nil, err
	}
	if sb.config, err = sb.guard.Sandbox(sandboxProposal(req)); err != nil {
		return nil, err
	}
	if err := a.setUpMachine(ctx, sb); err != nil {
		return nil, err
	}
	rest, err := a.openREST(ctx, sb, facts)
	if err != nil {
		return nil, err
	}
	// The last that can fail, since it is done once: another try with another disk
	// must find nothing of this one.
	sb.scratch = req.GetScratchDisk()
	if sb.images, sb.volumes, err = a.o.Places.Open(ctx, sb.scratch); err != nil {
		rest.close()
		return nil, fmt.Errorf("scratch: %w", err)
	}
	sb.restPort = rest.port()
	rest.serve(ctx, a.log)
	a.mu.Lock()
	a.sandbox = sb
	a.mu.Unlock()
	a.log.InfoContext(ctx, "sandbox created", "sealed", sb.guard.Sealed(), "proven", sb.proven, "trustee", sb.trustee)
	return &agentapi.CreateSandboxResponse{Sealed: sb.guard.Sealed()}, nil
}

// takeRegistries is told how an unsealed pod reaches registries: the host could
// give it any image anyway.
func (sb *sandbox) takeRegistries(r *agentapi.UnsealedRegistries) error {
	if pem := r.GetCaPem(); pem != "" {
		sb.guest.Image.ExtraRoots = []string{pem}
	}
	if conf := r.GetRegistriesConf(); conf != "" {
		parsed, err := guestconfig.ParseRegistries([]byte(conf))
		if err != nil {
			return unready("unsealed_registries.registries_conf: %v", err)
		}
		sb.guest.Image.Registries = parsed
	}
	sb.auth = secret.New(r.GetAuthJson())
	return nil
}

// checkInitdata holds what the host sent against what the machine was launched
// with, and returns the raw document: nil for an unsealed pod. The digest is nil
// where there is no evidence that could name it.
func checkInitdata(facts attestation.Facts, gz []byte) (raw, digest []byte, err error) {
	refuse := func(expected, got, help string) error {
		return &podpolicy.Refusal{Rule: RuleInitdata, Path: "initdata", Expected: expected, Got: got, Help: help}
	}
	field := hex.EncodeToString(facts.InitData)
	if len(gz) == 0 {
		if facts.Sealed() {
			return nil, nil, refuse("initdata with digest "+field, "none (no digest)", "send the initdata that the machine was launched with")
		}
		return nil, nil, nil
	}
	raw, err = initdata.Decompress(gz, initdata.MaxBytes)
	if err != nil {
		return nil, nil, &podpolicy.Refusal{Rule: RuleInitdataContent, Path: "initdata", Expected: "one gzip member", Got: clip(err.Error())}
	}
	alg, digest, err := initdata.Digest(raw)
	if err != nil {
		// A document that was tampered with until it is not one any more: say
		// what its digest would have to be, too.
		sum := sha256.Sum256(raw)
		return nil, nil, refuse("initdata with digest "+field, fmt.Sprintf("a document that is not valid (%s; its sha256 is %x)", clip(err.Error()), sum), "send the initdata that the machine was launched with")
	}
	if facts.TEE == "" {
		return raw, nil, nil // development without a TEE: there is nothing to compare
	}
	got := fmt.Sprintf("%s %x", alg, digest)
	switch {
	case facts.Measured && len(digest) != sha256.Size:
		return nil, nil, refuse("initdata whose algorithm is "+initdata.SHA256, got, "this environment's evidence names initdata by a register of a TPM, which takes no other digest; write `algorithm = \"sha256\"`")
	case facts.Measured && !facts.Sealed():
		// The agent is the one who names it.
	case !facts.Sealed():
		return nil, nil, refuse("no initdata: the launch evidence has the digest "+field, got, "launch the machine with the digest of this initdata (SNP: HOST_DATA)")
	case facts.Measured && !facts.Names(digest):
		return nil, nil, refuse("register 8 with zeros, or with this initdata; it holds "+field, got, "other initdata, or something else, was measured into the TPM; start the machine again")
	case !facts.Names(digest):
		return nil, nil, refuse("initdata with digest "+field, got, "the initdata was changed after the launch, or belongs to another machine")
	}
	return raw, digest, nil
}

// bind has the evidence name what is in force, where it is for the guest to do so.
func (a *Agent) bind(ctx context.Context, facts attestation.Facts, digest []byte) (attestation.Facts, error) {
	if digest == nil {
		return facts, a.o.Attestation.BindNothing(ctx)
	}
	facts, err := a.o.Attestation.Bind(ctx, digest)
	if err == nil && !facts.Names(digest) {
		err = fmt.Errorf("the %s evidence names %x after initdata with digest %x was bound to it", facts.TEE, facts.InitData, digest)
	}
	return facts, err
}

// readInitdata takes the policy and the guest's configuration from a document
// that belongs to this machine. It must be complete: an owner who wrote
// initdata without a pod policy would otherwise get none enforced.
func (sb *sandbox) readInitdata(raw []byte, broker *BrokerConfig) error {
	bad := func(path, expected string, err error) error {
		return &podpolicy.Refusal{Rule: RuleInitdataContent, Path: "initdata." + path, Expected: expected, Got: clip(err.Error())}
	}
	doc, err := initdata.Parse(raw)
	if err != nil {
		return bad("", "a valid document", err)
	}
	if err := knownEntries(doc); err != nil {
		return err
	}
	guard, err := guardFor(doc)
	if err != nil {
		return err
	}
	config, err := guestconfig.FromDocument(doc)
	if err != nil {
		return bad("", "valid aa.toml and cdh.toml", err)
	}
	sb.guard = guard
	sb.guest = *config
	broker.InitData = raw
	return nil
}

// setUpMachine makes the machine the pod's.
func (a *Agent) setUpMachine(ctx context.Context, sb *sandbox) error {
	m, c := a.o.Machine, sb.config
	if err := m.Ready(ctx); err != nil {
		return err
	}
	if c.Hostname != "" {
		if err := m.SetHostname(c.Hostname); err != nil {
			return fmt.Errorf("hostname %q: %w", c.Hostname, err)
		}
	}
	for name, value := range c.Sysctls {
		if err := m.SetSysctl(name, value); err != nil {
			return fmt.Errorf("sysctl %s: %w", name, err)
		}
	}
	if err := a.applyNetwork(ctx, c.Hostname, c.Network); err != nil {
		return err
	}
	if c.SharePID {
		var err error
		if sb.pidNamespace, err = m.SharedPIDs(); err != nil {
			return fmt.Errorf("shared PID namespace: %w", err)
		}
	}
	return nil
}

func (a *Agent) applyNetwork(ctx context.Context, hostname string, c podpolicy.NetworkConfig) error {
	config, err := network.FromPolicy(c)
	if err != nil {
		return err
	}
	if err := a.o.Machine.ApplyNetwork(ctx, config); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	files := network.Files{Hostname: hostname, Servers: c.DNS.Servers, Searches: c.DNS.Searches, Options: c.DNS.Options}
	for _, i := range config.Interfaces {
		for _, p := range i.Addresses {
			if !slices.Contains(files.Addresses, p.Addr()) {
				files.Addresses = append(files.Addresses, netip.Addr(p.Addr()))
			}
		}
	}
	for _, h := range c.Hosts {
		files.Hosts = append(files.Hosts, network.HostEntry(h))
	}
	return a.o.Machine.WriteNetworkFiles(a.o.PodDir, files)
}

// UpdateNetwork implements the protocol.
func (a *Agent) UpdateNetwork(ctx context.Context, req *agentapi.UpdateNetworkRequest) (*agentapi.UpdateNetworkResponse, error) {
	sb, err := a.theSandbox()
	if err == nil {
		var config *podpolicy.NetworkConfig
		if config, err = sb.guard.UpdateNetwork(networkProposal(req.GetNetwork())); err == nil {
			err = a.applyNetwork(ctx, sb.config.Hostname, *config)
		}
	}
	if err != nil {
		return nil, a.fail(ctx, "UpdateNetwork", err)
	}
	return &agentapi.UpdateNetworkResponse{}, nil
}

// attest proves to the trustee what this guest is, once, before the pod's
// first container. A pod that is not sealed by evidence need not.
func (a *Agent) attest(ctx context.Context, sb *sandbox) error {
	if !sb.proven {
		return nil
	}
	return sb.under(ctx, func() error {
		if sb.attested {
			return nil
		}
		err := sb.hub.Attest(ctx)
		if errors.Is(err, datahub.ErrNoBroker) {
			return &podpolicy.Refusal{Rule: RuleInitdataContent, Path: "initdata.aa.toml", Expected: "token_configs.kbs.url, the trustee to attest to", Got: "nothing",
				Help: "a sealed pod attests before its first container"}
		}
		if err == nil || refusalOf(err) != nil {
			a.events.add(&agentapi.Event{Body: &agentapi.Event_Attested{Attested: &agentapi.Attested{Granted: err == nil, Trustee: sb.trustee}}})
		}
		if err != nil {
			return fmt.Errorf("attestation to %s: %w", sb.trustee, err)
		}
		sb.attested = true
		return nil
	})
}

// under runs f alone.
func (sb *sandbox) under(ctx context.Context, f func() error) error {
	select {
	case <-sb.once:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { sb.once <- struct{}{} }()
	return f()
}

// requestHash tells a repeated request from another one.
func requestHash(m proto.Message) ([sha256.Size]byte, error) {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return sha256.Sum256(raw), err
}
