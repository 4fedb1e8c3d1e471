package install

import (
	"context"
	"fmt"
	"strings"
)

// Restart has systemd restart those of the services that run. It is the node's
// systemctl that does it, in a root of the node where o.Root is one.
func Restart(ctx context.Context, o Options, units []string) ([]string, error) {
	o, err := o.prepare()
	if err != nil {
		return nil, err
	}
	n, err := o.open()
	if err != nil {
		return nil, err
	}
	defer n.Close() //nolint:errcheck // a directory
	systemctl := n.firstProgram("/usr/bin/systemctl", "/bin/systemctl")
	if systemctl == "" {
		return nil, fmt.Errorf("restart of containerd: this node has no systemctl (restart %s by its own means)", strings.Join(units, " or "))
	}
	var restarted []string
	for _, unit := range units {
		if _, err := o.Exec(ctx, systemctl, "is-active", "--quiet", unit); err != nil {
			continue // is not there, or does not run
		}
		if _, err := o.Exec(ctx, systemctl, "restart", unit); err != nil {
			return restarted, fmt.Errorf("restart of containerd: %w", err)
		}
		restarted = append(restarted, unit)
	}
	if len(restarted) == 0 {
		return nil, fmt.Errorf("restart of containerd: none of %s is an active service of systemd (restart it by its own means)", strings.Join(units, ", "))
	}
	record, err := n.load()
	if err != nil || record == nil || !record.Restart {
		return restarted, err
	}
	record.Restart = false
	return restarted, n.store(record)
}
