package volumes

import (
	"fmt"
	"io"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/agentapi"
)

// Bounds on a pod's hosts file, and on entries as the guest takes them.
const (
	maxHostsFile = 256 << 10
	maxHosts     = 256
	maxHostNames = 16
)

// aliasesMark is the line behind which the kubelet writes a pod's hostAliases
// (kubernetes@v1.35.4 pkg/kubelet/kubelet_pods.go, hostsEntriesFromHostAliases).
const aliasesMark = "# Entries added by HostAliases."

// hosts reads the host aliases in the pod's hosts file.
func (p *podDir) hosts() ([]*agentapi.HostEntry, error) {
	f, err := p.open("etc-hosts", unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	text, err := io.ReadAll(io.LimitReader(f, maxHostsFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxHostsFile {
		return nil, fmt.Errorf("etc-hosts: more than %d bytes", maxHostsFile)
	}
	return parseHosts(string(text))
}

// parseHosts takes the entries behind the kubelet's mark. What is before it, the
// guest writes itself.
func parseHosts(text string) ([]*agentapi.HostEntry, error) {
	var entries []*agentapi.HostEntry
	marked := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		marked = marked || line == aliasesMark
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if !marked || len(fields) < 2 {
			continue
		}
		address, err := netip.ParseAddr(fields[0])
		if err != nil {
			return nil, fmt.Errorf("hostAliases: expected an IP address, got %q", clip(fields[0]))
		}
		for names := fields[1:]; len(names) > 0; {
			n := min(len(names), maxHostNames)
			entries = append(entries, &agentapi.HostEntry{Address: address.String(), Names: names[:n]})
			names = names[n:]
		}
		if len(entries) > maxHosts {
			return nil, fmt.Errorf("hostAliases: more than %d entries of %d names", maxHosts, maxHostNames)
		}
	}
	return entries, nil
}
