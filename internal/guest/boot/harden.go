package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// settings are kernel parameters (Linux, Documentation/admin-guide/sysctl) that
// a guest starts with. A distribution sets them from user space; here is none.
func settings() [][2]string {
	return [][2]string{
		// The console is the host's, and a break on it is a magic SysRq key:
		// it prints the kernel's state there, or kills.
		{"kernel/sysrq", "0"},
		{"kernel/dmesg_restrict", "1"},
		{"kernel/kptr_restrict", "2"},
		// Containers of different users share volumes.
		{"fs/protected_symlinks", "1"},
		{"fs/protected_hardlinks", "1"},
		// As containerd 2 sets them for a pod (its configuration,
		// enable_unprivileged_ports and enable_unprivileged_icmp): whatever user it
		// has, a container may listen on any port, and ping.
		{"net/ipv4/ip_unprivileged_port_start", "0"},
		{"net/ipv4/ping_group_range", "0 2147483647"},
	}
}

// harden sets them below root, /proc/sys. A kernel without one of them is
// one without what it limits.
func harden(root string) error {
	for _, s := range settings() {
		f, err := os.OpenFile(filepath.Join(root, s[0]), os.O_WRONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			_, err = f.WriteString(s[1])
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			return fmt.Errorf("kernel parameter %s: %w", s[0], err)
		}
	}
	return nil
}
