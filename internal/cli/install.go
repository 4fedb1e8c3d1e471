package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/install"
	"github.com/coffer-project/coffer/internal/run"
)

// maxSettings bounds --settings, like the file that it becomes a part of.
const maxSettings = 60 << 10

// nodeFlags say which node, and which of its containerds.
type nodeFlags struct {
	o       install.Options
	runtime string
	restart string
}

func (n *nodeFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&n.o.Root, "root", "/", "directory with the node's file system")
	f.StringVar(&n.o.Prefix, "prefix", install.DefaultPrefix, "directory of the runtime's files on the node")
	f.StringVar(&n.restart, "containerd-restart", "none", "who restarts containerd: none (you do) or systemd (its systemctl)")
}

func (n *nodeFlags) check() error {
	if n.restart != "none" && n.restart != "systemd" {
		return usagef("--containerd-restart: expected none or systemd, got %q", n.restart)
	}
	return nil
}

// installFlags are the flags of `coffer install`.
type installFlags struct {
	nodeFlags
	snp, tdx, settings string
	dryRun             bool
	agent              nodeAgentFlags
}

func (a *app) installCommand() *cobra.Command {
	var i installFlags
	c := &cobra.Command{
		Use:   "install",
		Short: "Put the runtime for confidential pods on a Kubernetes node",
		Long: `Put shim, guest image and the configuration of each runtime handler below a prefix,
and tell containerd of the handlers: by a drop-in in its conf.d, and by one import in
its main file, only where that imports no such drop-in yet. Nothing else of
containerd's configuration changes; containerd itself reads the result, and when it
sees any other difference, everything is taken back. "coffer uninstall" restores the
node byte for byte.

containerd 1.6 and newer with a configuration of version 2, 3 or 4, k3s and RKE2 are
supported; CRI-O is not. containerd before 2.0 replaces the whole section of its CRI
plugin by a drop-in's: there the drop-in repeats the section, and "coffer install"
has to be run again when the section changes.

Handlers for SEV-SNP and TDX need firmware of the node (OVMF) and are left out
without it. containerd takes the handlers up when it is restarted.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return a.install(c, &i) },
	}
	i.add(c)
	f := c.Flags()
	f.StringVar(&i.o.Shim, "shim", siblingProgram(install.ShimName), "the shim's program")
	f.StringVar(&i.o.Program, "program", ownProgram(), "this program, as it is to be on the node")
	f.StringVar(&i.o.GuestImage, "guest-image", defaultGuestImage(), "directory of the guest image")
	f.StringArrayVar(&i.o.Handlers, "handler", nil, "handler to install (repeatable; default: all that the node has firmware for)")
	f.StringVar(&i.snp, "snp-firmware", "", "path on the node of the OVMF for SEV-SNP guests")
	f.StringVar(&i.tdx, "tdx-firmware", "", "path on the node of the OVMF for TDX guests")
	f.StringVar(&i.settings, "settings", "", "TOML file with further keys for the configuration of each handler")
	f.StringVar(&i.runtime, "runtime", "", "containerd, k3s or rke2 (default: what is found)")
	f.StringVar(&i.o.Config, "containerd-config", "", "containerd's main file on the node (default: the usual one)")
	f.StringVar(&i.o.Version, "containerd-version", "", "containerd's version (default: it is asked)")
	f.StringVar(&i.o.Sandboxer, "sandboxer", install.SandboxerPod, "what makes pods' sandboxes: podsandbox, or, from containerd 2.3 on, shim")
	f.BoolVar(&i.o.Replace, "replace", false, "overwrite files that were changed since they were installed")
	f.BoolVar(&i.dryRun, "dry-run", false, "print what would be written, and write nothing")
	i.agent.add(c)
	return c
}

func ownProgram() string {
	if exe, err := os.Executable(); err == nil {
		return exe
	}
	return "coffer"
}

// options are the flags as the package takes them.
func (i *installFlags) options(a *app) (install.Options, error) {
	o := i.o
	o.Flavour, o.Logger, o.Check = install.Flavour(i.runtime), a.logger(), checkSettings
	o.Restarts = i.restart == "systemd"
	o.Firmware = map[string]string{"snp": i.snp, "tdx": i.tdx}
	if i.settings != "" {
		var err error
		if o.Extra, err = a.readLimited(i.settings, maxSettings); err != nil {
			return o, usagef("--settings: %w", err)
		}
	}
	return o, i.check()
}

func (a *app) install(c *cobra.Command, i *installFlags) error {
	o, err := i.options(a)
	if err != nil {
		return err
	}
	if i.agent.stay || i.agent.label {
		return a.nodeAgent(c, i, o)
	}
	ctx, stop := notifyInterrupt(c.Context())
	defer stop()
	if i.dryRun {
		return a.installDry(ctx, o)
	}
	result, err := installOnce(ctx, o)
	if err != nil {
		return err
	}
	return a.installed(ctx, i.nodeFlags, o, result, "installed")
}

func installOnce(ctx context.Context, o install.Options) (*install.Result, error) {
	p, err := install.Prepare(ctx, o)
	if err != nil {
		return nil, err
	}
	defer p.Close() //nolint:errcheck // a directory
	return p.Apply(ctx, run.Version)
}

// installed restarts containerd where that is asked for, and reports.
func (a *app) installed(ctx context.Context, n nodeFlags, o install.Options, r *install.Result, done string) error {
	type report struct {
		*install.Result
		Restarted []string `json:"restarted,omitempty"`
	}
	out := report{Result: r}
	if r.Restart && n.restart == "systemd" {
		var err error
		if out.Restarted, err = install.Restart(ctx, o, r.Units); err != nil {
			return hint.New(err, "the files are "+done+"; only the restart is missing")
		}
	}
	if a.json() {
		return a.printJSON(out)
	}
	for _, p := range r.Written {
		a.printf("wrote   %s\n", clean(p))
	}
	for _, p := range r.Removed {
		a.printf("removed %s\n", clean(p))
	}
	for _, note := range r.Notes {
		a.printf("note: %s\n", clean(note))
	}
	switch {
	case len(out.Restarted) > 0:
		a.printf("%s; restarted %s\n", done, strings.Join(out.Restarted, ", "))
	case r.Restart:
		a.printf("%s; restart containerd to take it up: systemctl restart %s\n", done, strings.Join(r.Units, " or "))
	default:
		a.printf("%s; containerd need not be restarted\n", done)
	}
	return nil
}

// installDry prints a plan.
func (a *app) installDry(ctx context.Context, o install.Options) error {
	p, err := install.Prepare(ctx, o)
	if err != nil {
		return err
	}
	defer p.Close() //nolint:errcheck // a directory
	if a.json() {
		return a.printJSON(p)
	}
	a.printf("containerd %s (%s), configuration %s of version %d\n", p.Containerd.Version, p.Containerd.Flavour, p.Containerd.Config, p.Containerd.ConfigVersion)
	return errors.Join(a.table(nil, "WHAT\tPATH\tMODE\tBYTES\tSHA256", func(w io.Writer) { planRows(w, p) }), a.planTexts(p))
}

func planRows(w io.Writer, p *install.Plan) {
	for _, d := range p.Directories {
		row(w, "make", d, "0755", "", "")
	}
	for _, f := range p.Files {
		what := "write"
		switch {
		case f.Same:
			what = "keep"
		case f.Target != "":
			what = "link to " + f.Target
		}
		row(w, what, f.Path, f.Mode, f.Size, f.SHA256)
	}
	for _, f := range p.Remove {
		row(w, "remove", f, "", "", "")
	}
	if p.Edit != nil {
		row(w, map[bool]string{true: "create", false: "edit"}[p.Edit.Create], p.Edit.Path, "", "", "")
	}
}

// planTexts prints the configurations of a plan.
func (a *app) planTexts(p *install.Plan) error {
	for _, f := range p.Files {
		if f.Text != "" && !f.Same {
			a.printf("\n--- %s\n%s", f.Path, cleanLines(f.Text))
		}
	}
	if p.Edit != nil {
		a.printf("\n--- %s: imports %q in addition\n", p.Edit.Path, p.Edit.Import)
	}
	for _, note := range p.Notes {
		a.printf("\nnote: %s\n", clean(note))
	}
	return nil
}

func (a *app) uninstallCommand() *cobra.Command {
	var n nodeFlags
	var daemonSet string
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Take the runtime for confidential pods from a Kubernetes node",
		Long: `Remove what "coffer install" has written, and restore containerd's main file: byte
for byte as it was, or, where it was edited since, without our import. It also cleans
up after an installation that ended half-way. Files that were changed since stay, with
a note. While pods of the runtime are running nothing is removed.

With --daemonset delete the DaemonSet that installs the runtime on the nodes, and wait
until its pods have removed it from all of them.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := notifyInterrupt(c.Context())
			defer stop()
			if err := n.check(); err != nil {
				return err
			}
			if daemonSet != "" {
				return a.deleteDaemonSet(ctx, daemonSet)
			}
			n.o.Logger = a.logger()
			r, err := install.Uninstall(ctx, n.o)
			if errors.Is(err, install.ErrNotInstalled) {
				return a.done(&install.Result{}, "%s", clean(fmt.Sprint(err)))
			}
			if err != nil {
				return err
			}
			return a.installed(ctx, n, n.o, r, "removed")
		},
	}
	n.add(c)
	f := c.Flags()
	f.BoolVar(&n.o.Replace, "replace", false, "remove files that were changed since they were installed, too")
	f.BoolVar(&n.o.Force, "force", false, "remove the runtime under running pods")
	f.StringVar(&daemonSet, "daemonset", "", "NAMESPACE/NAME of a DaemonSet to delete instead; from within the cluster")
	return c
}
