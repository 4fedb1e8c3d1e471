package nvidiaverify

import (
	"slices"
	"strings"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/nvidia"
)

// A machine of eight GPUs in protected PCIe mode.
const (
	machineGPUs     = 8
	machineSwitches = 4
)

// topology checks that eight GPUs and four switches are one machine: every GPU
// is on exactly these switches and every switch on exactly these GPUs, by the
// identifiers in their certificates. Nil for other numbers of devices, about
// which nothing is said.
func topology(l *checks.List, devices []*device) *tee.Result {
	var gpus, switches []string
	for _, d := range devices {
		if d.Arch == nvidia.LS10 {
			switches = append(switches, d.chain.pdi)
		} else {
			gpus = append(gpus, d.chain.pdi)
		}
	}
	if len(gpus) != machineGPUs || len(switches) != machineSwitches {
		return nil
	}
	slices.Sort(gpus)
	slices.Sort(switches)
	simulated := false
	for _, d := range devices {
		simulated = simulated || d.chain.root.development != ""
		want, got := switches, d.report.Switches()
		if d.Arch == nvidia.LS10 {
			want, got = gpus, d.report.GPUs()
			if d.report.PDI() != d.chain.pdi {
				l.Fail(d.fail("nvidia.topology", "evidence: pdi", d.chain.pdi, d.report.PDI(), topologyHelp))
			}
		}
		if !slices.Equal(want, got) {
			l.Fail(d.fail("nvidia.topology", "evidence: pdi", strings.Join(want, ", "), strings.Join(got, ", "), topologyHelp))
		}
	}
	return &tee.Result{
		TEE: tee.NVIDIA, Class: PPCIe, ReportData: slices.Clone(devices[0].report.Nonce[:]), Simulated: simulated,
		Claims: map[string]any{"gpu_count": machineGPUs, "switch_count": machineSwitches, "simulated": simulated},
	}
}

const topologyHelp = "the devices are not linked with each other alone: send the evidence of one machine's eight GPUs and four switches"
