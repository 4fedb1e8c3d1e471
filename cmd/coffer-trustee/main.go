// Command coffer-trustee is the relying party of confidential pods: key
// broker, attestation service and reference values. docs/trustee.md is its
// manual.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/trustee"
	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/internal/trustee/verifiers"
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

// command builds the command tree.
func command(stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:           "coffer-trustee",
		Short:         "Key broker and attestation service of confidential pods",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       version(),
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	var file string
	serve := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Serve until interrupted",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(file)
			if err != nil {
				return err
			}
			log, err := logger(stderr, c.Log)
			if err != nil {
				return err
			}
			t, err := trustee.New(cmd.Context(), trustee.Options{Config: c, Logger: log, Build: "coffer-trustee " + version()})
			if err != nil {
				return err
			}
			return t.Run(cmd.Context())
		},
	}
	check := &cobra.Command{
		Use:   "check-config --config FILE",
		Short: "Report every problem of a configuration, and what it relaxes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := config.Load(file)
			if err != nil {
				return err
			}
			if _, err := verifiers.New(c.TEE, nil); err != nil {
				return fmt.Errorf("configuration %s: %w", file, err)
			}
			for _, w := range c.Warnings() {
				if _, err := fmt.Fprintln(stderr, "warning:", w); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(stdout, "%s: ok\n", file)
			return err
		},
	}
	for _, c := range []*cobra.Command{serve, check} {
		c.Flags().StringVar(&file, "config", "", "configuration file (TOML)")
		if err := c.MarkFlagRequired("config"); err != nil {
			panic(err) //nolint:forbidigo // the flag is defined one line above
		}
		root.AddCommand(c)
	}
	return root
}

func logger(w io.Writer, c config.Log) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return nil, fmt.Errorf("log.level: %w", err)
	}
	o := &slog.HandlerOptions{Level: level}
	switch c.Format {
	case "json":
		return slog.New(slog.NewJSONHandler(w, o)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, o)), nil
	}
	return nil, errors.New("log.format: expected text or json")
}

// version is the module's version, or the revision the program was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "devel"
	}
	return info.Main.Version
}
