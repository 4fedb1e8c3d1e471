package cli

import (
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/emmansun/gmsm/sm3"
	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/tee/eventlog"
)

func (a *app) eventlogCommand() *cobra.Command {
	c := &cobra.Command{Use: "eventlog", Short: "Read logs of what a guest measured", Args: args(cobra.NoArgs), RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(a.eventlogInspectCommand())
	return c
}

func (a *app) eventlogInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect FILE",
		Short: "Decode an event log and replay it",
		Long: `Decode an event log and replay it: print the events, and the values that the
registers have after them.

FILE is a CCEL log (/sys/firmware/acpi/tables/data/CCEL), a log of a TPM
(/sys/kernel/security/tpm0/binary_bios_measurements), or a file of runtime events
(AAEL); "-" is standard input. Which it is is found out. Register n+1 of a CCEL
log is RTMR n.

Nothing is verified here: a log is true where its registers are those of a quote.
In the text form an event is marked with "=" where its digest is that of its data,
which then is what was measured.

Exit status 2 means that FILE cannot be read as a log.`,
		Example: `  coffer eventlog inspect /sys/firmware/acpi/tables/data/CCEL
  coffer eventlog inspect measurements.bin --output json`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			raw, err := a.readLimited(args[0], eventlog.MaxLog)
			if err != nil {
				return usageError{err}
			}
			l, err := eventlog.Parse(raw, eventlog.Auto, eventlog.WithHash(eventlog.SM3, sm3.New))
			if err != nil {
				return usagef("%s: %w", args[0], err)
			}
			if a.json() {
				return a.printJSON(l.Inspect())
			}
			return a.printLog(l)
		},
	}
}

func (a *app) printLog(l *eventlog.Log) error {
	in := l.Inspect()
	a.printf("%s log, %s, %s\n\n", in.Kind, count(int64(len(in.Events)), "event"), strings.Join(in.Algorithms, ", "))
	w := tabwriter.NewWriter(a.env.Stdout, 0, 4, 2, ' ', 0)
	row(w, "EVENT", "REG", "TYPE", "DIGEST", "", "WHAT")
	for i := range l.Events {
		e := &l.Events[i]
		mark := ""
		if l.DigestMatchesEvent(e) {
			mark = "="
		}
		row(w, i, e.Register, e.Type, shortDigest(e), mark, what(e))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	a.printRegisters(l)
	for _, odd := range in.Odd {
		a.printf("odd: %s\n", clean(odd))
	}
	return nil
}

// printRegisters prints whole values: they are there to be compared.
func (a *app) printRegisters(l *eventlog.Log) {
	for _, alg := range l.Algorithms {
		values, err := l.Replay(alg)
		if err != nil {
			continue // said as odd
		}
		a.printf("\n%s\n", alg)
		for _, r := range slices.Sorted(maps.Keys(values)) {
			name := fmt.Sprintf("PCR %d", r)
			if l.Kind != eventlog.TCG2 {
				name = fmt.Sprintf("register %d", r)
			}
			_, _ = io.WriteString(a.env.Stdout, fmt.Sprintf("  %-11s %s\n", name, hex.EncodeToString(values[r])))
		}
	}
}

// shortDigest is the beginning of the digest that counts most.
func shortDigest(e *eventlog.Event) string {
	text := hex.EncodeToString(e.Digests[len(e.Digests)-1].Value)
	return text[:min(len(text), 12)]
}

// what is one line about an event.
func what(e *eventlog.Event) string {
	d, err := e.Details()
	text := ""
	switch {
	case err != nil:
		return "(" + err.Error() + ")"
	case d.Variable != nil:
		text = fmt.Sprintf("%s (%s)", d.Variable.Name, count(int64(len(d.Variable.Data)), "byte"))
	case d.DevicePaths != nil:
		text = strings.Join(d.DevicePaths, "/")
	case d.Text != nil:
		text = *d.Text
	}
	if runes := []rune(text); len(runes) > 100 {
		text = string(runes[:100]) + "…"
	}
	return text
}
