package cli

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/podpolicy/kube"
)

// prepareFlags are the flags of `coffer prepare`.
type prepareFlags struct {
	workloadFlags
	runtimeClass string
	out          string
	inPlace      bool
	initdata     run.InitdataOptions
	trusteeCA    string
	services     serviceFlags
	imagePolicy  string
	sigstore     string
	guest        run.GuestOptions
	memory       string
	register     bool
	hostImages   string
	client       adminFlags
}

func (a *app) prepareCommand() *cobra.Command {
	var p prepareFlags
	c := &cobra.Command{
		Use:   "prepare FILE…",
		Short: "Make Kubernetes workloads confidential: policy, initdata, annotation, and what the trustee needs",
		Long: `Write, for every workload in Kubernetes manifests, its pod policy and the initdata
that carries it; put the initdata into the manifests as an annotation, the images
by digest, and the runtime class; and say what the trustee is to be given: the
resources that the pods need, bound to their initdata, and with --guest-image the
guest's reference values. - reads standard input.

The manifests are printed, and the rest goes to standard error; with --out or
--in-place the manifests are files, and the rest is printed. With --register the
bindings and reference values are registered at the trustee; the secrets
themselves are put there by "coffer trustee secret set".`,
		Example: `  coffer prepare web.yaml --runtime-class coffer-qemu-snp --trustee https://trustee.example --trustee-ca ca.pem --out prepared
  helm template shop | coffer prepare - --trustee https://trustee.example | kubectl apply -f -`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, names []string) error { return a.prepare(c, &p, names) },
	}
	p.workloadFlags.add(c)
	f := c.Flags()
	f.StringVar(&p.runtimeClass, "runtime-class", "", "runtimeClassName of the workloads (default: as it is written)")
	f.StringVarP(&p.out, "out", "o", "", "directory for the prepared manifests, under their names")
	f.BoolVar(&p.inPlace, "in-place", false, "write the prepared manifests to the files themselves")
	f.StringVar(&p.initdata.TrusteeURL, "trustee", "", "the trustee's URL as the guests reach it")
	f.StringVar(&p.trusteeCA, "trustee-ca", "", "PEM file with the certificates that vouch for the trustee")
	p.services.add(c)
	f.StringVar(&p.imagePolicy, "image-policy", "", "containers-policy.json file, or kbs:/// URI of one: which signatures the guests demand")
	f.StringVar(&p.initdata.Credentials, "credentials", "", "kbs:/// URI of the docker auth.json that the guests use")
	f.StringVar(&p.sigstore, "sigstore-config", "", "registries.d file, or kbs:/// URI of one: where signatures lie that no registry has")
	f.StringVar(&p.initdata.Proxy.HTTPS, "https-proxy", "", "proxy by which the guests reach registries, URL or HOST:PORT")
	f.StringVar(&p.initdata.Proxy.HTTP, "http-proxy", "", "the same for registries without TLS")
	f.StringVar(&p.initdata.Proxy.NoProxy, "no-proxy", "", "hosts that the guests reach without a proxy, separated by commas")
	f.StringVar(&p.guest.Dir, "guest-image", "", "directory of the guest image whose reference values are wanted")
	f.StringVar(&p.guest.Firmware, "firmware", "", "firmware that guests start with (default: the image's)")
	f.IntVar(&p.guest.CPUs, "cpus", 1, "virtual CPUs of the guests")
	f.StringVar(&p.guest.TEE, "tee", "snp", "of the guests: snp, tdx, soft or soft-tdx")
	f.StringVar(&p.memory, "memory", "512", "the guests' memory in MiB, or with a suffix (2Gi); for tdx and soft-tdx")
	f.StringVar(&p.hostImages, "host-images", "real", "what nodes pull: real, the images themselves, which must not be encrypted then; or push, stubs without content, pushed to the images' repositories")
	f.BoolVar(&p.register, "register", false, "register bindings and reference values at the trustee")
	f.StringVar(&p.client.url, "trustee-admin", "", "the trustee's URL as this program reaches it (default: --trustee; without both, the embedded one)")
	f.StringVar(&p.client.key, "trustee-admin-key", "", "PEM file with the administrator's Ed25519 key")
	f.StringVar(&p.client.tokenFile, "trustee-token-file", "", "file with an OpenID provider's token")
	f.StringVar(&p.client.tenant, "trustee-tenant", "", "the tenant to administer (default: that of the URL)")
	f.StringVar(&p.client.state, "state", run.DefaultState(), "state directory of the embedded trustee")
	return c
}

// check reads and judges the flags before anything is asked of anybody.
func (p *prepareFlags) check(a *app, c *cobra.Command, names []string) (err error) {
	switch {
	case p.out != "" && p.inPlace:
		return usagef("--out and --in-place: expected at most one")
	case p.inPlace && (slices.Contains(names, "-") || p.workload != ""):
		return usageError{hint.New(errors.New("--in-place: expected files, all of whose workloads are prepared"), "use --out DIR with - and --workload")}
	case p.initdata.TrusteeURL != "" && !strings.HasPrefix(p.initdata.TrusteeURL, "https://"):
		return usagef("--trustee: expected an https:// URL, got %q", p.initdata.TrusteeURL)
	case p.trusteeCA != "" && p.initdata.TrusteeURL == "":
		return usagef("--trustee-ca: expected --trustee with it")
	case !slices.Contains([]string{"snp", "tdx", "soft", "soft-tdx"}, p.guest.TEE):
		return usagef("--tee: expected snp, tdx, soft or soft-tdx, got %q", p.guest.TEE)
	case p.hostImages != "real" && p.hostImages != "push":
		return usagef("--host-images: expected real or push, got %q", p.hostImages)
	case p.guest.CPUs < 1 || p.guest.CPUs > 255:
		return usagef("--cpus: expected 1 to 255, got %d", p.guest.CPUs)
	}
	for _, name := range []string{"trustee-admin", "trustee-admin-key", "trustee-token-file", "trustee-tenant", "state"} {
		if c.Flags().Changed(name) && !p.register {
			return usageError{hint.New(fmt.Errorf("--%s: nothing is registered", name), "give --register, too")}
		}
	}
	if p.trusteeCA != "" {
		if p.initdata.TrusteeCA, err = readSmall(p.trusteeCA, maxPEM); err != nil {
			return usagef("--trustee-ca: %w", err)
		}
	}
	if p.initdata.ImagePolicy, err = a.fileOrURI("--image-policy", p.imagePolicy); err != nil {
		return err
	}
	if p.initdata.SigstoreConfig, err = a.fileOrURI("--sigstore-config", p.sigstore); err != nil {
		return err
	}
	p.initdata.GuestServices, err = p.services.read()
	return err
}

const maxPEM = 1 << 20

// fileOrURI is what a flag names: a KBS URI as it is, or a file's contents.
func (a *app) fileOrURI(flag, name string) (string, error) {
	if name == "" || strings.HasPrefix(name, "kbs://") {
		return name, nil
	}
	data, err := a.readLimited(name, 1<<20)
	if err != nil {
		return "", usagef("%s: %w", flag, err)
	}
	return string(data), nil
}

func (a *app) prepare(c *cobra.Command, p *prepareFlags, names []string) error {
	ctx, stop := notifyInterrupt(c.Context())
	defer stop()
	if err := p.check(a, c, names); err != nil {
		return err
	}
	g, err := p.generate(ctx, a, names)
	if err != nil {
		return err
	}
	defer g.Close()
	stubs, err := p.stubs(ctx, g)
	if err != nil {
		return err
	}
	plan, err := p.plan(g, stubs)
	if err != nil {
		return err
	}
	files, err := g.input.Rewrite(plan.changes)
	if err != nil {
		return err
	}
	if p.register {
		if err := p.registerPlan(ctx, a, c, plan); err != nil {
			return err
		}
	}
	if err := p.write(files, plan); err != nil {
		return err
	}
	return a.printPlan(files, plan, p.out != "" || p.inPlace)
}

// guestRegistry is how the guests reach registries. The roots that this machine
// trusts are theirs where none are named: a guest has no roots of its own.
func (p *prepareFlags) guestRegistry() error {
	p.initdata.PlainHTTP, p.initdata.RegistryRoots, p.initdata.Registries = p.registry.PlainHTTP, p.registry.RootPEMs, p.registry.Registries
	p.initdata.HostRoots = p.registry.HostRootPEMs
	if len(p.initdata.RegistryRoots) > 0 || len(p.initdata.HostRoots) > 0 || len(p.initdata.PlainHTTP) > 0 {
		return nil
	}
	var err error
	p.initdata.RegistryRoots, err = run.SystemRoots()
	return err
}

// stubs pushes what nodes pull, by references of the manifests.
func (p *prepareFlags) stubs(ctx context.Context, g *generated) (map[string]*run.Stub, error) {
	if p.hostImages != "push" {
		return nil, nil
	}
	stubs := map[string]*run.Stub{}
	for i := range g.Workloads {
		for _, reference := range slices.Sorted(maps.Keys(g.Workloads[i].Images)) {
			if stubs[reference] != nil {
				continue
			}
			img := g.Workloads[i].Images[reference]
			var err error
			if stubs[reference], err = g.images.PushStub(ctx, reference, img, run.StubUsers(g.Workloads, img)); err != nil {
				return nil, err
			}
		}
	}
	for i := range g.Workloads {
		run.WithStubs(&g.Workloads[i], stubs)
	}
	return stubs, nil
}

// plan is what has been prepared, and what the trustee needs.
func (p *prepareFlags) plan(g *generated, stubs map[string]*run.Stub) (*plan, error) {
	if err := p.guestRegistry(); err != nil {
		return nil, err
	}
	out := &plan{Workloads: []plannedWorkload{}, Commands: []string{}, References: []run.ReferenceValue{}, Notes: append([]kube.Problem{}, g.Notes...)}
	for i := range g.Workloads {
		w, err := run.PrepareWorkload(&g.Workloads[i], p.initdata)
		if err != nil {
			return nil, err
		}
		change := w.Change(p.runtimeClass)
		for reference := range change.Images {
			if stub := stubs[reference]; stub != nil {
				change.Images[reference] = stub.Reference
			}
		}
		out.changes = append(out.changes, change)
		out.prepared = append(out.prepared, w)
		digest, err := w.Policy.Digest()
		if err != nil {
			return nil, err
		}
		planned := plannedWorkload{
			Workload: w.Workload.String(), Policy: "sha256:" + hex.EncodeToString(digest[:]), Initdata: w.Initdata.Algorithm + ":" + w.DigestHex(),
			Document: string(w.Initdata.Raw), Images: []string{}, Resources: []string{},
		}
		planned.File, planned.Line = w.Workload.File()
		for _, reference := range w.SortedImages() {
			planned.Images = append(planned.Images, run.Pinned(reference, w.Images[reference].Digest))
		}
		for _, r := range w.Resources {
			planned.Resources = append(planned.Resources, r.String())
		}
		out.Workloads = append(out.Workloads, planned)
	}
	if p.guest.Dir != "" {
		var err error
		if out.References, err = p.references(g.Workloads); err != nil {
			return nil, err
		}
	}
	out.commands(p)
	return out, nil
}

// references are the measurements of the guests: of the size that the flags name,
// or that a workload's annotations ask for.
func (p *prepareFlags) references(workloads []kube.Generated) ([]run.ReferenceValue, error) {
	memory, err := memoryMiB(p.memory)
	if err != nil {
		return nil, err
	}
	type size struct{ cpus, memory int }
	seen := map[size]bool{}
	list := []run.ReferenceValue{}
	for i := range workloads {
		s := size{cmp.Or(workloads[i].VCPUs, p.guest.CPUs), cmp.Or(workloads[i].MemoryMiB, memory)}
		if seen[s] {
			continue
		}
		seen[s] = true
		guest := p.guest
		guest.CPUs = s.cpus
		values, err := run.ReferenceValues(guest, s.memory)
		if err != nil {
			return nil, err
		}
		for _, v := range values {
			// Not every size makes a measurement of its own.
			if !slices.ContainsFunc(list, func(o run.ReferenceValue) bool { return o.Name == v.Name && o.Value == v.Value }) {
				list = append(list, v)
			}
		}
	}
	return list, nil
}

// registerPlan registers what goes to the default trustee.
func (p *prepareFlags) registerPlan(ctx context.Context, a *app, c *cobra.Command, plan *plan) error {
	client := p.client
	if client.url == "" {
		client.url = p.initdata.TrusteeURL
	}
	if client.url != "" {
		client.ca = p.trusteeCA
		if client.key == "" && client.tokenFile == "" {
			return usagef("--register: expected --trustee-admin-key or --trustee-token-file")
		}
	}
	// The flags have other names here, and have been looked at.
	connection := &cobra.Command{Use: c.Use}
	connection.SetContext(ctx)
	return a.withAdmin(connection, client, func(cl *admin.Client) error {
		for _, w := range plan.prepared {
			own := slices.DeleteFunc(slices.Clone(w.Resources), func(r kbs.ResourceURI) bool { return r.Trustee() != "" })
			if err := run.Bind(connection.Context(), cl, w.Initdata, own, w.Workload.String()); err != nil {
				return err
			}
		}
		for _, v := range plan.References {
			if err := run.RegisterMeasurement(connection.Context(), cl, v.Name, v.Value, nil, v.Description); err != nil {
				return err
			}
		}
		plan.Registered = true
		return nil
	})
}

func (p *prepareFlags) write(files []kube.File, plan *plan) error {
	seen := map[string]bool{}
	for _, f := range files {
		path := f.Name
		switch {
		case p.out != "":
			if path == "stdin" {
				path = "stdin.yaml"
			}
			path = filepath.Join(p.out, filepath.Base(path))
			if err := os.MkdirAll(p.out, 0o755); err != nil {
				return usagef("--out: %w", err)
			}
			if seen[path] {
				return usagef("--out: two files are called %s", filepath.Base(path))
			}
			seen[path] = true
		case !p.inPlace:
			continue
		}
		mode := os.FileMode(0o644)
		if info, err := os.Stat(path); err == nil {
			mode = info.Mode().Perm()
		}
		if err := writeFile(path, true, func(w io.Writer) error { _, err := w.Write(f.Data); return err }); err != nil {
			return err
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
		plan.Files = append(plan.Files, plannedFile{Name: path})
	}
	return nil
}
