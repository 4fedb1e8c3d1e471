// Package run is `coffer run`: it pins an image, writes the policy and the
// initdata, starts an attested virtual machine for it, and connects the
// caller's terminal with the container. The caller is the owner and the host at
// once, on a machine of their own.
package run

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/cli/ui"
	"github.com/coffer-project/coffer/internal/host/accel"
	"github.com/coffer-project/coffer/internal/host/blobcache"
	"github.com/coffer-project/coffer/internal/host/platform"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/measure/reference"
)

// Version of the programs.
const Version = "0.1.0"

// Exit codes of a run whose container did not run.
const (
	exitFailed      = 125
	exitInterrupted = 130
	// As of any program whose reader has gone.
	exitBrokenPipe = 128 + int(syscall.SIGPIPE)
)

// GuestOptions say which guest is launched.
type GuestOptions struct {
	// Dir of the guest image.
	Dir string
	// Firmware replaces the image's; a path.
	Firmware string
	CPUs     int
	// TEE is auto, soft, soft-tdx, snp, tdx or none.
	TEE string
}

// GuestLaunch reads a guest image and says what would be launched.
func GuestLaunch(o GuestOptions) (*measure.Launch, sandbox.Kind, error) {
	kind, err := sandbox.ParseKind(o.TEE)
	if err != nil {
		return nil, "", err
	}
	if kind, _, err = sandbox.Choose(kind, platform.Inspect()); err != nil && kind == "" {
		// A measurement can be predicted on any host.
		kind = sandbox.Kind(o.TEE)
	}
	image, err := sandbox.LoadImage(o.Dir, kind, o.Firmware)
	if err != nil {
		return nil, "", err
	}
	defer image.Close() //nolint:errcheck // only read
	launch := image.Launch(kind, o.CPUs, false)
	return &launch, kind, nil
}

// Run runs one container and returns its exit code. With an error the code says
// why the container did not run.
func Run(ctx context.Context, o Options) (code int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signals, giveBack := CatchSignals()
	defer giveBack()
	started := untilStarted(signals, cancel)
	// Idempotent, for the paths that fail before the container starts.
	stopEarly := func() {
		if started != nil {
			started()
			started = nil
		}
	}
	defer stopEarly()
	defer func() {
		switch {
		case err == nil:
		case errors.Is(err, errInterrupted), errors.Is(context.Cause(ctx), errInterrupted):
			code, err = exitInterrupted, errInterrupted
		case errors.Is(err, syscall.EPIPE) && errors.Is(err, errOutput):
			code, err = exitBrokenPipe, nil
		default:
			code = exitFailed
		}
	}()
	out := io.Writer(o.Stderr)
	if o.Quiet {
		out = io.Discard
	}
	u := ui.New(out)
	defer u.Close()

	kind, err := sandbox.ParseKind(o.Guest.TEE)
	if err != nil {
		return 0, err
	}
	kind, reason, err := sandbox.Choose(kind, platform.Inspect())
	if err != nil {
		return 0, err
	}
	o.Guest.TEE = string(kind)
	o.announce(ctx, u, kind, reason)

	u.Status("preparing %s", o.ImageName)
	p, err := Prepare(ctx, o)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	config, err := o.sandboxConfig(ctx, p, kind, u)
	if err != nil {
		return 0, err
	}
	if o.BlobCache != "" {
		cache, err := blobcache.Open(o.BlobCache, blobcache.Options{})
		if err != nil {
			return 0, hint.New(err, "name another directory with --blob-cache, or do without: --no-blob-cache")
		}
		defer func() { _ = cache.Close() }()
		config.BlobCache = cache
	}
	disks, err := openDisks(o)
	if err != nil {
		return 0, err
	}
	config.Disks, p.ScratchDisk = disks.disks, disks.scratch
	sb, err := sandbox.Launch(ctx, *config)
	_ = disks.Close() // the machine has descriptors of its own
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, sb.Close()) }()
	if o.ShowAppraisal && p.Trustee != nil {
		since := time.Now()
		defer func() { o.appraisal(p.Trustee, since) }()
	}
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	go watch(watching, sb, u)
	if err := CreateSandbox(ctx, sb, p); err != nil {
		return 0, Explain(err, sb)
	}
	if len(o.Volumes) > 0 {
		defer func() { err = errors.Join(err, writeOut(ctx, sb)) }()
	}
	if err := attachVolumes(ctx, sb, o, disks); err != nil {
		return 0, Explain(err, sb)
	}
	request := o.createRequest(p)
	u.Status("attesting and pulling %s", p.Image.Ref)
	if _, err := sb.Agent().CreateContainer(ctx, request); err != nil {
		return 0, Explain(err, sb)
	}
	stopWatching()
	u.Close()
	stopEarly()
	exit, err := RunContainer(ctx, sb, request.GetContainerId(), Stdio{
		Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, Terminal: o.Flags.Terminal, Attach: o.Flags.Stdin, Signals: signals,
	})
	if exit.OutOfMemory {
		_, _ = fmt.Fprintf(o.Stderr, "coffer: the container was ended for want of memory: give the machine more (--memory, now %d MiB) or raise the policy's limits.memory\n", o.MemoryMiB)
	}
	return exit.Code, err
}

// announce says in plain words what protects the pod.
func (o Options) announce(ctx context.Context, u *ui.UI, kind sandbox.Kind, reason string) {
	switch kind {
	case sandbox.Soft, sandbox.SoftTDX:
		o.Logger.InfoContext(ctx, "software TEE", "reason", reason)
		u.Text("coffer: software TEE: nothing is confidential (--debug says why no hardware TEE is used)\n")
	case sandbox.None:
		u.Text("coffer: no TEE: nothing is attested, no policy is in force, no secret is given\n")
	}
	if o.Unsealed {
		u.Text("coffer: unsealed: no policy is in force; the host decides what runs, and no secret is given\n")
	}
}

// sandboxConfig says what is launched; an embedded trustee is told what its
// measurement will be.
func (o Options) sandboxConfig(ctx context.Context, p *Prepared, kind sandbox.Kind, u *ui.UI) (*sandbox.Config, error) {
	config := &sandbox.Config{
		Image: o.Guest.Dir, TEE: kind, VCPUs: o.Guest.CPUs, MemoryMiB: o.MemoryMiB, Firmware: o.Guest.Firmware, Logger: o.Logger,
		Transport: sandbox.Transport(o.Transport), Accelerator: accel.Mode(o.Accel),
		Progress: func(s sandbox.Stage) { u.Status("%s", s) },
	}
	if p.Initdata != nil {
		config.InitDataDigest = p.Initdata.Digest
	}
	config.Processor = p.SoftTEE
	if p.Trustee == nil || kind == sandbox.TDX || kind == sandbox.None {
		return config, nil
	}
	launch, _, err := GuestLaunch(o.Guest)
	if err != nil {
		return nil, err
	}
	if kind == sandbox.SoftTDX {
		return config, RegisterTDXLaunch(ctx, p.Trustee.Admin, sandbox.TDXLaunch(*launch, o.MemoryMiB))
	}
	return config, RegisterLaunch(ctx, p.Trustee.Admin, *launch)
}

// RegisterLaunch predicts the measurement of an SEV-SNP launch and registers it.
func RegisterLaunch(ctx context.Context, c *admin.Client, launch measure.Launch) error {
	digest, err := measure.SNP(launch)
	if err != nil {
		return err
	}
	inputs := launch.Inputs()
	raw, err := json.Marshal(inputs)
	if err != nil {
		return err
	}
	return RegisterMeasurement(ctx, c, measurementName, hex.EncodeToString(digest[:]), raw, fmt.Sprintf("guest image, %d vcpus", inputs.VCPUs))
}

// RegisterTDXLaunch predicts a TD's measurements and registers all but RTMR0,
// under the names that the built-in policy reads.
func RegisterTDXLaunch(ctx context.Context, c *admin.Client, launch measure.TDXLaunch) error {
	p, err := reference.TDX(launch)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(p.Inputs)
	if err != nil {
		return err
	}
	for _, r := range p.References {
		if r.Name == unregistered {
			continue
		}
		for _, v := range r.Values {
			if err := RegisterMeasurement(ctx, c, r.Name, v.Value, raw, "guest image, "+v.Description); err != nil {
				return err
			}
		}
	}
	return nil
}

// CreateSandbox hands initdata and the network to the guest, and says which disk
// is for scratch.
func CreateSandbox(ctx context.Context, sb *sandbox.Sandbox, p *Prepared) error {
	req := &agentapi.CreateSandboxRequest{SandboxId: sb.ID(), Network: sb.Network(), ScratchDisk: p.ScratchDisk}
	if p.Initdata != nil {
		gz, err := initdata.Compress(p.Initdata.Raw)
		if err != nil {
			return err
		}
		req.Initdata = gz
	} else if p.TrusteeURL != "" {
		req.UnsealedTrustee = &agentapi.UnsealedTrustee{Url: p.TrusteeURL, CaPem: string(p.TrusteeCA)}
	}
	_, err := sb.Agent().CreateSandbox(ctx, req)
	return err
}

// createRequest selects the container; a sealed pod takes everything else from
// its policy, an unsealed one from here.
func (o Options) createRequest(p *Prepared) *agentapi.CreateContainerRequest {
	req := &agentapi.CreateContainerRequest{
		ContainerId: "main", Name: p.Container, Image: p.Image.Ref.String(), Terminal: o.Flags.Terminal, Stdin: o.Flags.Stdin,
	}
	if p.Initdata != nil {
		return req
	}
	req.Name = "main"
	config := p.Image.Config.Config
	args := append([]string(nil), config.Entrypoint...)
	if o.Flags.Args != nil {
		args = append(args, *o.Flags.Args...)
	} else {
		args = append(args, config.Cmd...)
	}
	req.Args = &agentapi.StringList{Values: args}
	req.Env = &agentapi.StringList{Values: mergeEnv(config.Env, o.Flags.Env)}
	if o.Flags.User != nil {
		req.User = &agentapi.User{Uid: o.Flags.User.UID, Gid: o.Flags.User.GID, Groups: o.Flags.User.Groups}
	}
	if o.Flags.Cwd != "" {
		req.Cwd = &o.Flags.Cwd
	}
	return req
}

// mergeEnv is an image's environment with variables of the caller's, which win.
func mergeEnv(image []string, flags map[string]string) []string {
	var env []string
	for _, kv := range image {
		name, _, _ := strings.Cut(kv, "=")
		if _, replaced := flags[name]; !replaced {
			env = append(env, kv)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(flags)) {
		env = append(env, name+"="+flags[name])
	}
	return env
}

// watch shows the pull's progress.
func watch(ctx context.Context, sb *sandbox.Sandbox, u *ui.UI) {
	for event, err := range sb.Events(ctx) {
		if err != nil {
			return
		}
		if lie := event.GetBlobCache(); lie != nil {
			u.Text("coffer: the guest found the blob cache wrong about %.80q, and pulls from the registry\n", lie.GetDigest())
		}
		if pull := event.GetPull(); pull != nil && pull.GetTotalBytes() > 0 {
			u.Status("pulling %.1f of %.1f MB", float64(pull.GetDoneBytes())/1e6, float64(pull.GetTotalBytes())/1e6)
		}
	}
}

// appraisal prints what the trustee decided since a time: about this run.
func (o Options) appraisal(t *Trustee, since time.Time) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	verdicts, err := t.Admin.Verdicts(ctx, admin.VerdictQuery{Limit: 100})
	if err != nil {
		_, _ = fmt.Fprintf(o.Stderr, "coffer: appraisal: %v\n", err)
		return
	}
	// The state may keep times by the second.
	verdicts = slices.DeleteFunc(verdicts, func(v admin.Verdict) bool { return v.At.Before(since.Truncate(time.Second)) })
	if o.JSON {
		_ = json.NewEncoder(o.Stderr).Encode(verdicts)
		return
	}
	_, _ = io.WriteString(o.Stderr, FormatVerdicts(verdicts))
}

// FormatVerdicts writes verdicts for a person, oldest first.
func FormatVerdicts(verdicts []admin.Verdict) string {
	var b strings.Builder
	for i := len(verdicts) - 1; i >= 0; i-- {
		v := verdicts[i]
		outcome := "granted"
		if !v.Granted {
			outcome = "refused"
		}
		what := v.Kind
		if v.Resource != "" {
			what += " " + v.Resource
		}
		fmt.Fprintf(&b, "%s: %s", outcome, what)
		var notes []string
		if v.EARStatus != "" {
			notes = append(notes, v.EARStatus)
		}
		if v.Simulated {
			notes = append(notes, "simulated")
		}
		if len(notes) > 0 {
			fmt.Fprintf(&b, " (%s)", strings.Join(notes, ", "))
		}
		if v.Reason != nil {
			fmt.Fprintf(&b, ": %s", v.Reason)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
