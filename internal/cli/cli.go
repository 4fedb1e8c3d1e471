// Package cli is the command line of coffer. Each command parses its flags,
// builds a configuration and calls the package that does the work; results go
// to standard output, everything else to standard error.
package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/cli/hint"
	"github.com/coffer-project/coffer/internal/run"
)

// Exit codes, beside those of the container in `coffer run`.
const (
	ExitOK       = 0
	ExitFailed   = 1   // what was asked for did not come out true
	ExitUsage    = 2   // wrong usage, or input that cannot be read
	ExitRunError = 125 // coffer run: the container did not run
)

// Env is what a command may touch of its process.
type Env struct {
	Args           []string
	Stdin          *os.File
	Stdout, Stderr *os.File
}

// exitCode ends the program with a code and no message of its own.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usageError marks an error as the caller's.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// codedError carries the exit code of its command.
type codedError struct {
	error
	code int
}

func (e codedError) Unwrap() error { return e.error }

// app is what the commands share.
type app struct {
	env    Env
	output string
	debug  bool
}

func (a *app) json() bool { return a.output == "json" }

// logger logs to standard error: warnings, or everything with --debug.
func (a *app) logger() *slog.Logger {
	level := slog.LevelWarn
	if a.debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.env.Stderr, &slog.HandlerOptions{Level: level}))
}

// printJSON writes v to standard output. Control characters that encoding/json
// lets through, such as those of C1, are escaped: somebody else's text must not
// steer a terminal.
func (a *app) printJSON(v any) error {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := a.env.Stdout.Write(escapeControls(text.Bytes()))
	return err
}

func (a *app) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(a.env.Stdout, format, args...)
}

// Main runs one command line and returns the exit code.
func Main(ctx context.Context, env Env) int {
	a := &app{env: env}
	root := a.rootCommand()
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	err := root.ExecuteContext(ctx)
	return a.report(env.Stderr, err)
}

func (a *app) report(w io.Writer, err error) int {
	if err == nil {
		return ExitOK
	}
	if code, ok := errors.AsType[exitCode](err); ok {
		return int(code)
	}
	_, _ = fmt.Fprintf(w, "coffer: %s\n", cleanLines(strings.TrimSpace(err.Error())))
	for _, h := range hint.Of(err) {
		_, _ = fmt.Fprintf(w, "hint: %s\n", h)
	}
	if coded, ok := errors.AsType[codedError](err); ok {
		return coded.code
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return ExitUsage
	}
	return ExitFailed
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "coffer",
		Version:       run.Version,
		Short:         "Run containers in attested virtual machines on hosts you do not trust",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          args(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "text" && a.output != "json" {
				return usagef("--output: expected text or json, got %q", a.output)
			}
			return nil
		},
	}
	root.PersistentFlags().StringVar(&a.output, "output", "text", "how results are printed: text or json")
	root.PersistentFlags().BoolVar(&a.debug, "debug", false, "log what is done, to standard error")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{hint.New(err, "see `"+cmd.CommandPath()+" --help`")}
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		a.runCommand(),
		a.demoCommand(),
		a.guestCommand(),
		a.imageCommand(),
		a.keyproviderCommand(),
		a.cacheCommand(),
		a.policyCommand(),
		a.prepareCommand(),
		a.initdataCommand(),
		a.evidenceCommand(),
		a.eventlogCommand(),
		a.measureCommand(),
		a.explainCommand(),
		a.collateralCommand(),
		a.secretCommand(),
		a.trusteeCommand(),
		a.installCommand(),
		a.uninstallCommand(),
		a.doctorCommand(),
	)
	return root
}

// args wraps a cobra check, so that a wrong number of arguments is wrong usage.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{hint.New(err, "usage: "+cmd.UseLine())}
		}
		return nil
	}
}

// notifyInterrupt ends ctx when the program is asked to end.
func notifyInterrupt(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
}
