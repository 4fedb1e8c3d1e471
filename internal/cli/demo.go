package cli

import (
	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/demo"
	"github.com/coffer-project/coffer/internal/run"
)

func (a *app) demoCommand() *cobra.Command {
	var o demo.Options
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show an encrypted, signed image in an attested VM, and the host's attacks refused",
		Long: `Start a trustee and a registry on loopback, protect an image, run it in an
attested virtual machine, and try what an untrusted host would try. With --output
json the report goes to standard output and the account to standard error.
Exit status 0 means that every act did what it should.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := notifyInterrupt(c.Context())
			defer stop()
			o.Out, o.Logger = a.env.Stdout, a.logger()
			if a.json() {
				o.Out = a.env.Stderr
			}
			report, err := demo.Run(ctx, o)
			if a.json() {
				if err := report.WriteJSON(a.env.Stdout); err != nil {
					return err
				}
			}
			if err != nil {
				return err
			}
			if !report.OK() {
				return exitCode(ExitFailed)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.Guest.Dir, "guest-image", defaultGuestImage(), "directory of the guest image")
	f.IntVar(&o.Guest.CPUs, "cpus", 2, "virtual CPUs of each machine")
	f.StringVar(&o.State, "state", run.DefaultState(), "state directory of the software TEE")
	return c
}
