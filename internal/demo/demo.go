package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/coffer-project/coffer/internal/cli/ui"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/tee/softtee"
)

// Options configure a demo.
type Options struct {
	// Guest image directory and CPUs.
	Guest run.GuestOptions
	// State holds the software TEE; everything else is temporary.
	State string
	// Out is where the account goes.
	Out    io.Writer
	Logger *slog.Logger
}

// Names of the demo's resources at the trustee.
const (
	imageKey      = "kbs:///demo/image/app"
	unsignedKey   = "kbs:///demo/image/unsigned"
	credentials   = "kbs:///demo/registry/auth"
	password      = "kbs:///demo/database/password"
	memoryMiB     = 512
	appName       = "app"
	quietName     = "quiet"
	swappedName   = "swapped"
	corruptName   = "corrupt"
	unsignedName  = "unsigned"
	repository    = "demo/app"
	unsignedRepo  = "demo/unsigned"
	passwordValue = "correct horse battery staple"
)

// world is what the acts share.
type world struct {
	o    Options
	u    *ui.UI
	dir  string
	kind sandbox.Kind

	processor *softtee.Processor
	trustee   *run.Trustee
	registry  *registryServer

	marker   string
	app      oci.Reference // as the guest names it, with its digest
	next     oci.Reference // signed too, and not pulled before the registry lies
	other    oci.Reference // signed too, and what the registry gives for next
	unsigned oci.Reference
	layer    oci.Digest // a layer of next

	options  run.InitdataOptions
	initdata *run.Initdata

	pod      *sandbox.Sandbox // the pod of act run, which later acts attack
	reports  capture          // what its security processor said
	tampered capture          // … and that of the tampered machine
}

// Run plays all acts. It returns the report as far as it came; an error means
// that the demo could not go on, not that an act failed.
func Run(ctx context.Context, o Options) (_ Report, err error) {
	var report Report
	u := ui.New(o.Out)
	defer u.Close()
	w := &world{o: o, u: u, kind: sandbox.Soft}
	if w.dir, err = os.MkdirTemp("", "coffer-demo-"); err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, w.close()) }()

	u.Text("Coffer demo: an encrypted, signed image in an attested virtual machine, and what its host may try.\n")
	u.Text("The software TEE stands in for hardware: everything is real but the protection, and every verdict says \"simulated\".\n\n")
	acts := []struct {
		name, expected string
		run            func(context.Context) (string, error)
		// vital acts are needed by all that follow.
		vital bool
	}{
		{"start", "trustee and registry answer on loopback", w.start, true},
		{"protect", "the registry holds ciphertext: the marker does not occur in it", w.protect, true},
		{"run", "the container runs in the attested VM and exits 0", w.run, true},
		{"tamper-launch", "another command line, another initrd: the trustee refuses, nothing runs", w.tamperLaunch, false},
		{"tamper-initdata", "edited policy: the guest refuses; with HOST_DATA changed too: the trustee refuses", w.tamperInitdata, false},
		{"tamper-image", "another image under the tag, a corrupted layer, an unsigned image: the guest refuses each", w.tamperImage, false},
		{"control-plane", "start, exec and logs that the policy does not allow: refused, nothing ran", w.controlPlane, false},
		{"replay", "old evidence, and another VM's, with a new key: the trustee refuses", w.replay, false},
	}
	for _, a := range acts {
		failed := report.act(u, a.name, a.expected, func() (string, error) { return a.run(ctx) })
		if ctx.Err() != nil {
			return report, context.Cause(ctx)
		}
		if failed != nil && a.vital {
			return report, fmt.Errorf("act %s failed, and the others need it: %w", a.name, failed)
		}
	}
	return report, nil
}

func (w *world) close() error {
	var errs []error
	if w.pod != nil {
		errs = append(errs, w.pod.Close())
	}
	if w.registry != nil {
		w.registry.Close()
	}
	if w.trustee != nil {
		errs = append(errs, w.trustee.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(w.dir))...)
}

// start starts trustee and registry.
func (w *world) start(ctx context.Context) (string, error) {
	var err error
	if w.processor, err = run.SoftTEE(w.o.State); err != nil {
		return "", err
	}
	state := filepath.Join(w.dir, "state")
	if w.trustee, err = run.StartTrustee(ctx, run.TrusteeOptions{State: state, SoftTEE: w.processor, Logger: w.o.Logger}); err != nil {
		return "", err
	}
	if w.registry, err = startRegistry(ctx, filepath.Join(w.dir, "registry"), run.HostName); err != nil {
		return "", err
	}
	var got bytes.Buffer
	fmt.Fprintf(&got, "trustee   %s (own CA, SQLite state)\n", w.trustee.URL)
	fmt.Fprintf(&got, "registry  https://127.0.0.1:%d (docker-registry, password)\n", w.registry.Port)
	fmt.Fprintf(&got, "relaxed for this demo: the development root sha256:%s is configured, and the resource policy tolerates simulated evidence (allow_simulated)", w.processor.Fingerprint())
	return got.String(), nil
}

// launch starts a virtual machine for the pod.
func (w *world) launch(ctx context.Context, digest []byte, override sandbox.Override, tap *capture) (*sandbox.Sandbox, error) {
	config := sandbox.Config{
		Image: w.o.Guest.Dir, TEE: w.kind, Processor: w.processor, VCPUs: w.o.Guest.CPUs, MemoryMiB: memoryMiB,
		InitDataDigest: digest, Override: override, Logger: w.o.Logger,
		Progress: func(s sandbox.Stage) { w.u.Status("%s", s) },
	}
	if tap != nil {
		config.TEEPort = tap.wrap
	}
	return sandbox.Launch(ctx, config)
}
