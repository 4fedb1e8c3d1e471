package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// entropyLimit is how long the kernel's random number generator may take to
// be ready. With random.trust_cpu=on it is ready before user space runs.
const entropyLimit = 30 * time.Second

// initialHostname is what the machine is called until a pod names it.
const initialHostname = "coffer"

// Guest is what the phases of [GuestPhases] find out.
type Guest struct {
	Cmdline Cmdline
	// BootID is new at each boot.
	BootID [16]byte
}

// GuestPhases returns the boot of a guest whose PID 1 is this process. The
// phases fill g.
func GuestPhases(g *Guest) []Phase {
	return []Phase{
		{"root", moveRoot},
		{"mounts", mountAll},
		{"cmdline", func(context.Context) error {
			raw, err := os.ReadFile("/proc/cmdline")
			if err != nil {
				return err
			}
			g.Cmdline, err = ParseCmdline(string(raw))
			return err
		}},
		{"cgroups", func(context.Context) error { return delegateCgroups("/sys/fs/cgroup") }},
		{"entropy", func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, entropyLimit)
			defer cancel()
			return readRandom(ctx, g.BootID[:])
		}},
		{"hostname", func(context.Context) error { return unix.Sethostname([]byte(initialHostname)) }},
	}
}

// DriverPhases do what every pod needs and nothing before a pod does: they load
// what the kernel does not have built in (network, file systems), and set
// parameters, of which one waits for the kernel to come to rest.
func DriverPhases() []Phase {
	return []Phase{
		{"modules", func(ctx context.Context) error { return loadModules(ctx, ModuleList) }},
		{"harden", func(context.Context) error { return harden("/proc/sys") }},
	}
}

// TEEPhases loads drivers of hardware TEEs, and of transports that are hardware.
func TEEPhases() []Phase {
	return []Phase{
		{"tee-modules", loadTEEModules},
		{"configfs", mountWhereKnown("configfs", "/sys/kernel/config")},
		{"securityfs", mountWhereKnown("securityfs", "/sys/kernel/security")},
	}
}

// mountWhereKnown mounts a file system where the kernel has it: TEE drivers offer
// their reports in configfs, and a TPM's event log is in securityfs. A guest
// without them has no such TEE, which the choice of an attester reports in its
// own words.
func mountWhereKnown(fstype, dir string) func(context.Context) error {
	return func(context.Context) error {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err := unix.Mount(fstype, dir, fstype, noExec, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", fstype, dir, err)
		}
		return nil
	}
}

// readRandom fills b from the kernel's generator and waits until that has
// been seeded. Virtio-rng is of no use here: its bytes come from the host.
func readRandom(ctx context.Context, b []byte) error {
	n, err := unix.Getrandom(b, unix.GRND_NONBLOCK)
	if err == nil && n == len(b) {
		return nil
	}
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("getrandom: %w", err)
	}
	done := make(chan error, 1)
	buf := make([]byte, len(b))
	go func() {
		for {
			_, err := unix.Getrandom(buf, 0)
			if !errors.Is(err, unix.EINTR) {
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		copy(b, buf)
		return err
	case <-ctx.Done():
		return errors.New("the kernel's random number generator is not seeded: " +
			"the processor needs RDRAND or RDSEED, and the kernel command line random.trust_cpu=on")
	}
}
