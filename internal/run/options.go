package run

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/host/accel"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/podpolicy"
	"github.com/coffer-project/coffer/tee/softtee"
)

// Options are one `coffer run`.
type Options struct {
	// ImageName as OpenImage takes it.
	ImageName string
	Image     ImageOptions
	Guest     GuestOptions
	MemoryMiB int
	// Transport is serial (or empty) or vsock.
	Transport string
	// Accel is auto (or empty), kvm or tcg.
	Accel string
	// Flags of the generated policy; Args is the command.
	Flags podpolicy.Flags
	// Policy replaces the generated one; Initdata brings a policy, the
	// trustee and everything else as the owner registered it.
	Policy, Initdata []byte
	// TrusteeURL as the guest reaches it; empty embeds one.
	TrusteeURL string
	TrusteeCA  []byte
	// State is the directory of software TEE and embedded trustee.
	State string
	// BlobCache is the directory of the host's cache of image blobs, shared by
	// all pods; empty for none.
	BlobCache string
	// ImagePolicy and Credentials as in InitdataOptions.
	ImagePolicy, Credentials string
	Unsealed                 bool
	// Services go into generated initdata.
	Services GuestServices
	// Scratch is the size in bytes of a disk for images and for what containers
	// write; 0 keeps them in the machine's memory.
	Scratch int64
	// Volumes are the disks of the policy's block volumes.
	Volumes []Volume
	// Quiet prints nothing but the container's output; ShowAppraisal prints
	// the trustee's verdicts; JSON prints them as JSON.
	Quiet, ShowAppraisal, JSON bool

	Stdin          *os.File
	Stdout, Stderr *os.File
	Logger         *slog.Logger
}

// DefaultState is $XDG_STATE_HOME/coffer or ~/.local/state/coffer.
func DefaultState() string {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "coffer")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = os.TempDir()
	}
	return filepath.Join(home, ".local", "state", "coffer")
}

// DefaultBlobCache is coffer/blobs below the user's cache directory, or empty
// where the user has none.
func DefaultBlobCache() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "coffer", "blobs")
}

// Check reports options that contradict each other.
func (o Options) Check() error {
	var errs []error
	if !slices.Contains([]string{"auto", "soft", "soft-tdx", "snp", "tdx", "none"}, o.Guest.TEE) {
		errs = append(errs, fmt.Errorf("--tee: expected auto, soft, soft-tdx, snp, tdx or none, got %q", o.Guest.TEE))
	}
	if o.Guest.CPUs < 1 || o.Guest.CPUs > 255 {
		errs = append(errs, fmt.Errorf("--cpus: expected 1 to 255, got %d", o.Guest.CPUs))
	}
	if o.MemoryMiB < 128 {
		errs = append(errs, fmt.Errorf("--memory: expected at least 128 MiB, got %d MiB", o.MemoryMiB))
	}
	if _, err := accel.ParseMode(o.Accel); err != nil {
		errs = append(errs, fmt.Errorf("--accel: %w", err))
	}
	if o.Policy != nil && o.Initdata != nil {
		errs = append(errs, errors.New("--policy and --initdata: expected at most one; initdata brings its policy"))
	}
	if o.Unsealed && (o.Policy != nil || o.Initdata != nil) {
		errs = append(errs, errors.New("--unsealed runs without a policy: leave out --policy and --initdata"))
	}
	if (!o.sealed() || o.Initdata != nil) && (len(o.Services.Trustees) > 0 || o.Services.REST != "" || o.Services.EventLog) {
		errs = append(errs, errors.New("--named-trustee, --rest-api and --event-log are for initdata that is written here: leave out --initdata, --unsealed and --tee none"))
	}
	if o.Unsealed && len(o.Flags.Secrets) > 0 {
		errs = append(errs, errors.New("--secret-env: an unsealed pod is given no secret; leave out --unsealed"))
	}
	errs = append(errs, o.checkDisks()...)
	if o.TrusteeURL != "" && !strings.HasPrefix(o.TrusteeURL, "https://") {
		errs = append(errs, fmt.Errorf("--trustee: expected an https:// URL, got %q", o.TrusteeURL))
	}
	return errors.Join(errs...)
}

// sealed tells whether a policy can be in force: without a TEE nothing holds
// the host to initdata.
func (o Options) sealed() bool { return !o.Unsealed && o.Guest.TEE != "none" }

// Prepared is everything that is known before a machine starts.
type Prepared struct {
	Image *Image
	// Policy is the document in force; nil for an unsealed pod.
	Policy []byte
	// Initdata is nil for an unsealed pod.
	Initdata *Initdata
	// Container is the policy's name of the one to run.
	Container string
	// Trustee is the embedded one; nil when another was named, or none.
	Trustee *Trustee
	// SoftTEE is the software TEE; nil for another.
	SoftTEE *softtee.Processor
	// TrusteeURL and TrusteeCA as the guest is told; empty for none.
	TrusteeURL string
	TrusteeCA  []byte
	// ScratchDisk is the serial number of the machine's disk for scratch; empty
	// for none.
	ScratchDisk string

	spool string
}

// Close ends what Prepare started.
func (p *Prepared) Close() error {
	var errs []error
	if p.Image != nil {
		errs = append(errs, p.Image.Close())
	}
	if p.Trustee != nil {
		errs = append(errs, p.Trustee.Close())
	}
	if p.spool != "" {
		errs = append(errs, os.RemoveAll(p.spool))
	}
	return errors.Join(errs...)
}

// Prepare pins the image, writes policy and initdata, and registers with an
// embedded trustee what the pod may have.
func Prepare(ctx context.Context, o Options) (_ *Prepared, err error) {
	p := &Prepared{TrusteeURL: o.TrusteeURL, TrusteeCA: o.TrusteeCA}
	defer func() {
		if err != nil {
			_ = p.Close()
		}
	}()
	if p.spool, err = os.MkdirTemp("", "coffer-run-"); err != nil {
		return nil, err
	}
	o.Image.Spool, o.Image.ServeRemote = p.spool, !o.sealed()
	if p.Image, err = OpenImage(ctx, o.ImageName, o.Image); err != nil {
		return nil, err
	}
	if sandbox.Kind(o.Guest.TEE).Software() {
		if p.SoftTEE, err = SoftTEE(o.State); err != nil {
			return nil, err
		}
	}
	if o.TrusteeURL == "" && o.Guest.TEE != "none" && o.Initdata == nil {
		if p.Trustee, err = StartTrustee(ctx, TrusteeOptions{State: o.State, SoftTEE: p.SoftTEE, Logger: o.Logger}); err != nil {
			return nil, err
		}
		p.TrusteeURL, p.TrusteeCA = p.Trustee.GuestURL, p.Trustee.RootPEM
	}
	if !o.sealed() {
		return p, nil
	}
	return p, p.seal(ctx, o)
}

// seal writes policy and initdata, and binds the pod's resources to them.
func (p *Prepared) seal(ctx context.Context, o Options) error {
	if o.Initdata != nil {
		return p.openSeal(o)
	}
	policy, err := p.policy(o)
	if err != nil {
		return err
	}
	if p.Policy, err = policy.Canonical(); err != nil {
		return err
	}
	if p.Container, err = p.container(policy); err != nil {
		return err
	}
	if err := matchVolumes(policy, o.Volumes); err != nil {
		return err
	}
	options := InitdataOptions{
		Policy: p.Policy, TrusteeURL: p.TrusteeURL, TrusteeCA: p.TrusteeCA, ImagePolicy: o.ImagePolicy,
		Credentials: o.Credentials, RegistryRoots: p.Image.RootPEMs, PlainHTTP: p.Image.PlainHTTP,
		Registries: o.Image.Registries, HostRoots: o.Image.HostRootPEMs, GuestServices: o.Services,
	}
	if p.Initdata, err = NewInitdata(options); err != nil {
		return err
	}
	if p.Trustee == nil {
		return nil
	}
	resources, err := Resources(policy, options, p.Image.LayerKeys)
	if err != nil {
		return err
	}
	// What other trustees have, they give out by rules of their own.
	own := slices.DeleteFunc(resources, func(r kbs.ResourceURI) bool { return r.Trustee() != "" })
	return Bind(ctx, p.Trustee.Admin, p.Initdata, own, "coffer run "+o.ImageName)
}

// Bind registers initdata for resources.
func Bind(ctx context.Context, c *admin.Client, id *Initdata, resources []kbs.ResourceURI, description string) error {
	for _, uri := range resources {
		binding := admin.Binding{Resource: strings.Join(uri.Segments(), "/"), InitData: hex.EncodeToString(id.Digest), Description: description}
		if err := c.Bind(ctx, binding); err != nil {
			return fmt.Errorf("bind %s to the pod: %w", uri, err)
		}
	}
	return nil
}

// openSeal takes initdata as its owner made it.
func (p *Prepared) openSeal(o Options) error {
	doc, err := initdata.Parse(o.Initdata)
	if err != nil {
		return fmt.Errorf("--initdata: %w", err)
	}
	p.Policy = []byte(doc.Data[initdata.KeyPodPolicy])
	policy, err := podpolicy.Parse(p.Policy)
	if err != nil {
		return fmt.Errorf("--initdata: entry %s: %w", initdata.KeyPodPolicy, err)
	}
	if p.Container, err = p.container(policy); err != nil {
		return err
	}
	if err := matchVolumes(policy, o.Volumes); err != nil {
		return err
	}
	p.Initdata, err = OpenInitdata(o.Initdata)
	return err
}

// policy is the owner's, or written from the image and the flags.
func (p *Prepared) policy(o Options) (*podpolicy.Policy, error) {
	if o.Policy != nil {
		policy, err := podpolicy.Parse(o.Policy)
		if err != nil {
			return nil, fmt.Errorf("--policy: %w", err)
		}
		return policy, nil
	}
	flags := o.Flags
	flags.Signals = []string{"SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"}
	config := p.Image.Config.Config
	return podpolicy.FromImage(podpolicy.Source{
		Name: p.Image.Ref.Repository, Digest: p.Image.Ref.Digest.String(), From: []string{p.Image.Ref.Name()}, Config: imageConfig(config),
	}, flags)
}

// imageConfig is the image's configuration in the policy's terms.
func imageConfig(c oci.ContainerConfig) podpolicy.ImageConfig {
	return podpolicy.ImageConfig{Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, User: c.User, WorkingDir: c.WorkingDir, StopSignal: c.StopSignal}
}

// container finds the policy's container for the image.
func (p *Prepared) container(policy *podpolicy.Policy) (string, error) {
	var names []string
	for _, c := range policy.Containers {
		if c.Image.Digest == p.Image.Ref.Digest.String() && slices.Contains(c.Image.From, p.Image.Ref.Name()) {
			return c.Name, nil
		}
		names = append(names, fmt.Sprintf("%s (%s@%s)", c.Name, strings.Join(c.Image.From, " or "), c.Image.Digest))
	}
	return "", hint.New(
		fmt.Errorf("the policy has no container with the image %s; it has %s", p.Image.Ref, strings.Join(names, ", ")),
		"a policy names images by digest and by the repository as the guest reaches it; --print-policy shows one for this image")
}
