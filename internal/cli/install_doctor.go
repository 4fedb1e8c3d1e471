package cli

import (
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/install"
	"github.com/coffer-project/coffer/internal/install/doctor"
)

func (a *app) doctorCommand() *cobra.Command {
	var (
		o        doctor.Options
		snp, tdx string
	)
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what this machine can do for confidential pods, and what would help",
		Long: `Look at processor, kernel, KVM (by booting a small guest, once), QEMU, firmware,
network devices, control groups, and the installed runtime. Exit status 1 means that
pods of the runtime cannot run here; what is optional does not count.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			o.Logger = a.logger()
			o.Install.Firmware = map[string]string{"snp": snp, "tdx": tdx}
			report := doctor.Inspect(c.Context(), o)
			if err := a.printDoctor(report); err != nil {
				return err
			}
			if !report.Ready() {
				return exitCode(ExitFailed)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.Install.Prefix, "prefix", install.DefaultPrefix, "directory of the runtime's files")
	f.StringVar(&o.QEMU, "qemu", "", "the emulator's name or path (default: the usual one)")
	f.StringVar(&o.GuestImage, "guest-image", "", "guest image whose kernel KVM is tried with (default: the installed one)")
	f.StringVar(&o.CacheDir, "cache", "/run/coffer/accel", "directory that keeps what was found out about KVM")
	f.StringVar(&snp, "snp-firmware", "", "path of the OVMF for SEV-SNP guests")
	f.StringVar(&tdx, "tdx-firmware", "", "path of the OVMF for TDX guests")
	return c
}

func (a *app) printDoctor(r *doctor.Report) error {
	if a.json() {
		return a.printJSON(struct {
			*doctor.Report
			Labels map[string]string `json:"labels"`
		}{r, r.Labels()})
	}
	err := a.table(nil, "CHECK\tSTATE\tFOUND", func(w io.Writer) {
		for _, c := range r.Checks {
			row(w, c.Name, c.Level, c.Detail)
		}
	})
	for _, c := range r.Checks {
		if c.Help != "" {
			a.printf("%s: %s\n", clean(c.Name), clean(c.Help))
		}
	}
	labels := slices.Sorted(maps.Keys(r.Labels()))
	if len(labels) == 0 {
		labels = []string{"none"}
	}
	a.printf("labels for the node: %s\n", strings.Join(labels, ", "))
	return err
}
