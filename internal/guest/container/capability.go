package container

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// capabilityNames are those of Linux 6.12 in the order of their numbers
// (include/uapi/linux/capability.h).
func capabilityNames() []string {
	return strings.Fields(`CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
		NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE
		SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM
		BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE`)
}

// capabilities checks names and gives them in one order.
func capabilities(names []string) ([]string, error) {
	known := capabilityNames()
	for _, n := range names {
		if name, ok := strings.CutPrefix(n, "CAP_"); !ok || !slices.Contains(known, name) {
			return nil, fmt.Errorf("capability %q: not known; names are written CAP_NET_BIND_SERVICE", n)
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(names))), nil
}

// dropCapabilities takes from a process those that this one does not have to
// give.
func dropCapabilities(p *specs.Process) error {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	var mask uint64
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(line, "CapPrm:"); ok {
			if mask, err = strconv.ParseUint(strings.TrimSpace(value), 16, 64); err != nil {
				return fmt.Errorf("own capabilities: %w", err)
			}
		}
	}
	known := capabilityNames()
	have := func(list []string) []string {
		return slices.DeleteFunc(slices.Clone(list), func(s string) bool {
			return mask>>slices.Index(known, strings.TrimPrefix(s, "CAP_"))&1 == 0
		})
	}
	c := p.Capabilities
	c.Bounding, c.Permitted, c.Effective = have(c.Bounding), have(c.Permitted), have(c.Effective)
	return nil
}
