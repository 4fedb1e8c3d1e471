package cli

import (
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/install"
	"github.com/coffer-project/coffer/internal/install/doctor"
)

func (a *app) doctorCommand() *cobra.Command {
	var (
		o        doctor.Options
		snp, tdx string
		pods     bool
	)
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what this machine can do for confidential pods, and what would help",
		Long: `Look at processor, kernel, KVM (by booting a small guest, once), QEMU, firmware,
network devices, control groups, and the installed runtime. Exit status 1 means that
pods of the runtime cannot run here; what is optional does not count.

With --pods say of each pod that runs what a person should know of it: that it is
unsealed, what of it has no effect, what its policy has refused. In Kubernetes the
same is in the pods' events; pods that have ended are there, too, while their events
could not be posted.`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if pods {
				return a.printNotices(stateDirs("/", o.Install.Prefix))
			}
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
	f.BoolVar(&pods, "pods", false, "print what is to be known of the pods that run, and look at nothing else")
	f.StringVar(&snp, "snp-firmware", "", "path of the OVMF for SEV-SNP guests")
	f.StringVar(&tdx, "tdx-firmware", "", "path of the OVMF for TDX guests")
	return c
}

// printNotices prints what shims say of their pods.
func (a *app) printNotices(dirs []string) error {
	type entry struct {
		notice.Notice
		// Ended is when the pod did, of one whose events are not posted yet.
		Ended time.Time `json:"ended,omitzero"`
	}
	all := []entry{} // an empty list in JSON
	var problems []error
	for _, dir := range dirs {
		notices, err := notice.Scan(dir)
		ended, kerr := notice.Kept(dir, time.Now())
		problems = append(problems, err, kerr)
		for _, n := range notices {
			all = append(all, entry{Notice: n})
		}
		for _, e := range ended {
			for _, n := range e.Notices {
				all = append(all, entry{n, e.At.UTC().Truncate(time.Second)})
			}
		}
	}
	return errors.Join(append(problems, a.table(all, "POD\tSINCE\tREASON\tMESSAGE", func(w io.Writer) {
		for _, n := range all {
			pod := n.Pod.ID
			if n.Pod.Kubernetes() {
				pod = n.Pod.Namespace + "/" + n.Pod.Name
			}
			if !n.Ended.IsZero() {
				pod += " (ended)"
			}
			row(w, pod, stamp(n.At), n.Reason, n.Message)
		}
	}))...)
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
