package cli

import (
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/guestimage"
	"github.com/coffer-project/coffer/internal/host/sandbox"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/measure/reference"
)

func (a *app) guestCommand() *cobra.Command {
	c := &cobra.Command{Use: "guest", Short: "Build and measure the guest image", Args: args(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(a.guestBuildCommand(), a.guestMeasureCommand())
	return c
}

func (a *app) guestBuildCommand() *cobra.Command {
	var (
		o          guestimage.Options
		lock       string
		updateLock bool
	)
	c := &cobra.Command{
		Use:   "build",
		Short: "Build kernel, initrd and manifest: the same bytes on every machine",
		Long: `Build the guest image: Debian's cloud kernel, one deterministic initrd with the
agent as its init, and a manifest with digests, sizes and package versions.
The packages are downloaded and unpacked, never installed.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			o.Logger = slog.New(slog.NewTextHandler(a.env.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
			if lock != "" {
				data, err := os.ReadFile(lock)
				if err != nil && (!updateLock || !os.IsNotExist(err)) {
					return usagef("--lock: %w", err)
				}
				o.Lock = data
			}
			if updateLock && lock == "" {
				return usagef("--update-lock needs --lock FILE, the file to write")
			}
			o.UpdateLock = updateLock
			result, err := guestimage.Build(c.Context(), o)
			if err != nil {
				return err
			}
			if updateLock {
				if err := os.WriteFile(lock, result.Lock, 0o644); err != nil {
					return err
				}
			}
			if a.json() {
				return a.printJSON(result.Manifest)
			}
			m := result.Manifest
			state := "built"
			if result.UpToDate {
				state = "up to date"
			}
			a.printf("%s: %s\n", o.OutDir, state)
			a.printf("  kernel %10d bytes  sha256:%s  %s %s\n", m.Kernel.Size, m.Kernel.SHA256, m.Kernel.Package, m.Kernel.PackageVersion)
			a.printf("  initrd %10d bytes  sha256:%s\n", m.Initrd.Size, m.Initrd.SHA256)
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&o.OutDir, "out", "o", "build/guest", "directory of the image")
	f.StringVar(&o.CacheDir, "cache", defaultCache("packages"), "directory of downloaded packages")
	f.StringVar(&o.Agent, "agent", siblingProgram("coffer-agent"), "static agent binary that becomes /init")
	f.StringVar(&o.AgentVersion, "agent-version", run.Version, "version to write to the manifest")
	f.StringVar(&lock, "lock", "", "lock file to use instead of the built-in one")
	f.BoolVar(&o.Locked, "locked", false, "fail when the archive no longer has a locked package, instead of taking the newest")
	f.BoolVar(&updateLock, "update-lock", false, "take the newest packages and write the lock file")
	f.BoolVar(&o.Force, "force", false, "build even if the image is up to date")
	return c
}

// guestMeasure are the flags of `coffer guest measure`.
type guestMeasure struct {
	guest    run.GuestOptions
	memory   string
	profile  string
	register bool
	client   adminFlags
}

func (a *app) guestMeasureCommand() *cobra.Command {
	var g guestMeasure
	c := &cobra.Command{
		Use:   "measure",
		Short: "Predict the measurements of the guest image",
		Long: `Predict the SEV-SNP launch digest of the guest image for a number of virtual
CPUs. The software TEE reports the same digest for what it launches.

With --tee soft-tdx or tdx predict MRTD and the RTMRs instead, a line each; RTMR0
is that of the software TEE only, and holds for --cpus and --memory. Firmware with
TDX metadata needs --firmware-profile; "coffer measure tdx" knows more of it.

With --register the digest becomes a reference value of the trustee; so do MRTD,
RTMR1 and RTMR2.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			launch, kind, err := run.GuestLaunch(g.guest)
			if err != nil {
				return err
			}
			if kind == sandbox.TDX || kind == sandbox.SoftTDX {
				return g.tdx(a, c, *launch)
			}
			return g.snp(a, c, *launch)
		},
	}
	addGuestFlags(c, &g.guest)
	f := c.Flags()
	f.StringVar(&g.memory, "memory", "512", "the machine's memory in MiB, or with a suffix (2Gi); for soft-tdx and tdx")
	f.StringVar(&g.profile, "firmware-profile", "", "generation of firmware with TDX metadata, see `coffer measure tdx`")
	f.BoolVar(&g.register, "register", false, "register the measurements at the trustee")
	g.client.add(c)
	return c
}

func (g *guestMeasure) snp(a *app, c *cobra.Command, launch measure.Launch) error {
	result, err := measure.Predict(launch)
	if err != nil {
		return err
	}
	if g.register {
		if err := a.withAdmin(c, g.client, func(cl *admin.Client) error { return run.RegisterLaunch(c.Context(), cl, launch) }); err != nil {
			return err
		}
	}
	digest := hex.EncodeToString(result.Digest[:])
	if a.json() {
		return a.printJSON(struct {
			Measurement string         `json:"measurement"`
			Layout      measure.Layout `json:"layout"`
			Inputs      measure.Inputs `json:"inputs"`
		}{digest, result.Layout, launch.Inputs()})
	}
	a.printf("%s\n", digest)
	return nil
}

func (g *guestMeasure) tdx(a *app, c *cobra.Command, launch measure.Launch) error {
	memory, err := memoryMiB(g.memory)
	if err != nil {
		return err
	}
	l := sandbox.TDXLaunch(launch, memory)
	l.Profile = measure.TDXProfile(g.profile)
	p, err := reference.TDX(l)
	if err != nil {
		return err
	}
	if g.register {
		if err := a.withAdmin(c, g.client, func(cl *admin.Client) error { return run.RegisterTDXLaunch(c.Context(), cl, l) }); err != nil {
			return err
		}
	}
	if a.json() {
		return a.printJSON(p)
	}
	for _, r := range p.References {
		for _, v := range r.Values {
			a.printf("%-6s %s\n", r.Name, v.Value)
		}
	}
	for _, u := range p.Unknown {
		a.logger().Warn("a register was not predicted", "register", u.Name, "reason", u.Reason)
	}
	return nil
}

// addGuestFlags adds what decides the launch measurement.
func addGuestFlags(c *cobra.Command, g *run.GuestOptions) {
	f := c.Flags()
	f.StringVar(&g.Dir, "guest-image", defaultGuestImage(), "directory of the guest image")
	f.StringVar(&g.Firmware, "firmware", "", "firmware to start the guest with (default: the image's; SNP and TDX need an OVMF)")
	f.IntVar(&g.CPUs, "cpus", 1, "virtual CPUs")

	f.StringVar(&g.TEE, "tee", "auto", "auto, soft, soft-tdx, snp, tdx or none")
}

// defaultGuestImage is build/guest beside the program's bin directory, or in
// the working directory.
func defaultGuestImage() string {
	if exe, err := os.Executable(); err == nil {
		if dir := filepath.Join(filepath.Dir(filepath.Dir(exe)), "build", "guest"); isDir(dir) {
			return dir
		}
	}
	return filepath.Join("build", "guest")
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// siblingProgram is a program installed beside this one.
func siblingProgram(name string) string {
	if exe, err := os.Executable(); err == nil {
		return filepath.Join(filepath.Dir(exe), name)
	}
	return name
}

func defaultCache(name string) string {
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "coffer", name)
	}
	return filepath.Join(os.TempDir(), "coffer-"+name)
}
