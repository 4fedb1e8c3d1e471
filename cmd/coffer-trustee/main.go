// Command coffer-trustee is the relying party of confidential pods: key
// broker, attestation service and reference values. docs/trustee.md is its
// manual.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/trustee"
	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/internal/trustee/logging"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(os.Stdout, os.Stderr).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "coffer-trustee:", err)
		os.Exit(1)
	}
}

// app is what the commands share.
type app struct {
	stdout, stderr io.Writer
	file           string
}

// command builds the command tree.
func command(stdout, stderr io.Writer) *cobra.Command {
	a := &app{stdout: stdout, stderr: stderr}
	root := &cobra.Command{
		Use:           "coffer-trustee",
		Short:         "Key broker and attestation service of confidential pods",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version(),
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	for _, c := range []*cobra.Command{a.serve(), a.check(), a.backup(), a.restore(), a.rewrap(), a.newDataKey()} {
		c.Flags().StringVar(&a.file, "config", "", "configuration file (TOML)")
		if err := c.MarkFlagRequired("config"); err != nil {
			panic(err) //nolint:forbidigo // the flag is defined one line above
		}
		root.AddCommand(c)
	}
	return root
}

// options are those of the configuration file.
func (a *app) options() (trustee.Options, error) {
	c, err := config.Load(a.file)
	if err != nil {
		return trustee.Options{}, err
	}
	log, err := logging.New(a.stderr, c.Log.Level, c.Log.Format)
	if err != nil {
		return trustee.Options{}, err
	}
	return trustee.Options{Config: c, Logger: log, Build: "coffer-trustee " + version()}, nil
}

func (a *app) serve() *cobra.Command {
	return &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Serve until interrupted; requests under way may finish",
		Long: `Serve until SIGINT or SIGTERM; requests under way may finish (limits.drain).
SIGHUP reads the certificate files again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := a.options()
			if err != nil {
				return err
			}
			reload := make(chan os.Signal, 1)
			signal.Notify(reload, syscall.SIGHUP)
			defer signal.Stop(reload)
			o.Reload = reload
			tune()
			t, err := trustee.New(cmd.Context(), o)
			if err != nil {
				return err
			}
			return t.Run(cmd.Context())
		},
	}
}

// gcPercent lets the heap grow to four times what is live, some 10 MiB, before
// it is collected: of a handshake's CPU time a fifth went into collecting, and
// memory stays far below what a trustee may take.
const gcPercent = 300

// tune leaves what the environment says about the garbage collector alone.
func tune() {
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

func (a *app) check() *cobra.Command {
	return &cobra.Command{
		Use:   "check-config --config FILE",
		Short: "Report every problem of a configuration and of what it names, and what it relaxes",
		Long: `Report every problem of a configuration and of what it names: files are read,
keys and certificates parsed, the key-encryption key and the database opened
for reading. Nothing is created or changed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := a.options()
			if err != nil {
				return err
			}
			if err := trustee.Check(cmd.Context(), o); err != nil {
				return fmt.Errorf("configuration %s: %w", a.file, err)
			}
			for _, w := range o.Config.Warnings() {
				if _, err := fmt.Fprintln(a.stderr, "warning:", w); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(a.stdout, "%s: ok\n", a.file)
			return err
		},
	}
}

// version is the module's version, or the revision the program was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "devel"
	}
	return info.Main.Version
}
