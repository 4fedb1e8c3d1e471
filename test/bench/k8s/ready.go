package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/internal/guestimage/cpio"
	"github.com/coffer-project/coffer/internal/guestimage/manifest"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

//go:embed guest/probe.c
var probeSource []byte

//go:embed guest/clock.c
var clockSource []byte

// mostReady is how many times a boot a pod's sandbox may take until it is ready.
const mostReady = 1.15

// readyRuns is how often each is measured.
const readyRuns = 3

// ready measures the time until CreateSandbox is answered, with the network up,
// on a clock that counts instructions (see countedMachine). It also runs while
// the guest waits for its host, so that what is measured is the most that it took.
func (b *bench) ready(ctx context.Context) error {
	image, err := manifest.Load(b.guest)
	if err != nil {
		return err
	}
	if image.Firmware == nil {
		return errors.New("the guest image has no firmware")
	}
	probe, err := b.withImage(ctx, image)
	if err != nil {
		return err
	}
	clock, err := compile(ctx, clockSource)
	if err != nil {
		return err
	}
	bare, err := archive("init", clock)
	if err != nil {
		return err
	}
	var bases, agents, pods, residents []float64
	for i := range readyRuns {
		progress("counted boots, %d of %d", i+1, readyRuns)
		base, err := b.countedBase(ctx, image, bare)
		if err != nil {
			return err
		}
		r, err := b.countedPod(ctx, image, probe)
		if err != nil {
			return err
		}
		bases, agents, pods = append(bases, base), append(agents, r.agent), append(pods, r.sandbox)
		residents = append(residents, r.resident)
	}
	b.report.Add("ready/boot-c-init", median(bases), "instructions", "")
	b.report.Add("ready/agent", median(agents), "instructions", "")
	b.report.Add("ready/sandbox", median(pods), "instructions", "")
	b.report.AtMost("ready/over-agent", median(pods)/median(agents), "×", mostReady, "boot of the agent")
	b.report.AtMost("ready/over-c-init", median(pods)/median(bases), "×", mostReady, "same kernel, C init")
	b.report.Add("ready/spread", spread(pods), "%", "")
	b.report.AtMost("ready/agent-resident", median(residents), "MiB", mostAgent, "")
	return nil
}

// withImage is the image's initrd with the probe as its init.
func (b *bench) withImage(ctx context.Context, image *manifest.Manifest) ([]byte, error) {
	program, err := compile(ctx, probeSource)
	if err != nil {
		return nil, err
	}
	extra, err := archive("bench-init", program)
	if err != nil {
		return nil, err
	}
	initrd, err := image.Initrd.Read(b.guest)
	if err != nil {
		return nil, err
	}
	return cpio.Join(initrd, extra), nil
}

// countedBase boots a C program and returns the clock of its first statement.
func (b *bench) countedBase(ctx context.Context, image *manifest.Manifest, initrd []byte) (float64, error) {
	m, err := b.countedMachine(ctx, image, initrd, "")
	if err != nil {
		return 0, err
	}
	defer m.stop()
	if err := m.wait(ctx); err != nil {
		return 0, err
	}
	return m.number("tsc=")
}

// readiness are clocks of one pod, in instructions, and the agent's memory.
type readiness struct{ agent, sandbox, resident float64 }

const guestMAC = "52:54:00:12:34:56"

func (b *bench) countedPod(ctx context.Context, image *manifest.Manifest, initrd []byte) (r readiness, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	m, err := b.countedMachine(ctx, image, initrd, "rdinit=/bench-init")
	if err != nil {
		return r, err
	}
	defer m.stop()
	// Nothing is sent before: what arrives during the boot would change it.
	if err := m.waitForPort(ctx); err != nil {
		return r, fmt.Errorf("%w; its console ends with:\n%s", err, m.console())
	}
	session, err := channel.Dial(ctx, m.agent)
	if err != nil {
		return r, err
	}
	control, err := session.Open(ctx, &agentapi.StreamHeader{Kind: agentapi.StreamHeader_CONTROL})
	if err != nil {
		return r, err
	}
	agent := agentapi.NewAgentClient(ttrpc.NewClient(control))
	hello, err := agent.Hello(ctx, &agentapi.HelloRequest{Versions: []uint32{channel.MaxVersion}, Build: "bench"})
	if err != nil {
		return r, err
	}
	for _, p := range hello.GetBootPhases() {
		if p.GetName() == "ready" {
			r.agent = float64(p.GetAtTsc())
		}
	}
	if r.agent == 0 {
		return r, errors.New("the agent does not report when it was ready")
	}
	if _, err := agent.CreateSandbox(ctx, &agentapi.CreateSandboxRequest{
		SandboxId: "bench", PodName: "bench", PodNamespace: "bench", Hostname: "bench",
		Network: &agentapi.Network{
			Interfaces: []*agentapi.Interface{{Mac: guestMAC, Name: "eth0", Addresses: []string{vmm.GuestAddress}, Mtu: 1500}},
			Routes:     []*agentapi.Route{{Gateway: vmm.HostAddress, Interface: "eth0"}},
			Dns:        &agentapi.DNS{Servers: []string{vmm.DNSAddress}},
		},
	}); err != nil {
		return r, err
	}
	if _, err := m.bench.Write([]byte("?")); err != nil {
		return r, err
	}
	if err := m.reported(ctx); err != nil {
		return r, err
	}
	return m.readiness(r)
}

// readiness takes what the probe reported.
func (m *counted) readiness(r readiness) (readiness, error) {
	var err error
	if r.sandbox, err = m.number("tsc="); err != nil {
		return r, err
	}
	r.resident, err = m.number("VmRSS:")
	r.resident /= 1024
	return r, err
}

// number is what follows "name" in what the guest wrote to its debug console.
func (m *counted) number(name string) (float64, error) {
	data, err := os.ReadFile(filepath.Join(m.dir, "debug"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		rest, ok := strings.CutPrefix(line, name)
		if fields := strings.Fields(rest); ok && len(fields) > 0 {
			return strconv.ParseFloat(fields[0], 64)
		}
	}
	return 0, fmt.Errorf("the guest did not report %q; its console ends with:\n%s", name, m.console())
}

// reported waits for the end of the probe's report.
func (m *counted) reported(ctx context.Context) error {
	for {
		data, err := os.ReadFile(filepath.Join(m.dir, "debug"))
		if err != nil {
			return err
		}
		if strings.HasSuffix(string(data), "end\n") {
			return nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("the guest did not report: %w; its console ends with:\n%s", err, m.console())
		}
	}
}
