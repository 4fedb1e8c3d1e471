package cli

import (
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/guestimage"
	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/tee/measure"
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

func (a *app) guestMeasureCommand() *cobra.Command {
	var (
		g        run.GuestOptions
		register bool
		client   adminFlags
	)
	c := &cobra.Command{
		Use:   "measure",
		Short: "Predict the launch digest of the guest image",
		Long: `Predict the SEV-SNP launch digest of the guest image for a number of virtual
CPUs. The software TEE reports the same digest for what it launches.
With --register the digest becomes a reference value of the trustee.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			launch, _, err := run.GuestLaunch(g)
			if err != nil {
				return err
			}
			result, err := measure.Predict(*launch)
			if err != nil {
				return err
			}
			digest := hex.EncodeToString(result.Digest[:])
			inputs := launch.Inputs()
			if register {
				if err := a.withAdmin(c, client, func(cl *admin.Client) error { return run.RegisterLaunch(c.Context(), cl, *launch) }); err != nil {
					return err
				}
			}
			if a.json() {
				return a.printJSON(struct {
					Measurement string         `json:"measurement"`
					Layout      measure.Layout `json:"layout"`
					Inputs      measure.Inputs `json:"inputs"`
				}{digest, result.Layout, inputs})
			}
			a.printf("%s\n", digest)
			return nil
		},
	}
	addGuestFlags(c, &g)
	c.Flags().BoolVar(&register, "register", false, "register the digest as snp_launch_measurement at the trustee")
	client.add(c)
	return c
}

// addGuestFlags adds what decides the launch measurement.
func addGuestFlags(c *cobra.Command, g *run.GuestOptions) {
	f := c.Flags()
	f.StringVar(&g.Dir, "guest-image", defaultGuestImage(), "directory of the guest image")
	f.StringVar(&g.Firmware, "firmware", "", "firmware to start the guest with (default: the image's; SNP and TDX need an OVMF)")
	f.IntVar(&g.CPUs, "cpus", 1, "virtual CPUs")

	f.StringVar(&g.TEE, "tee", "auto", "auto, soft, snp, tdx or none")
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
