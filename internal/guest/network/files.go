package network

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Files are the contents of the resolver's files.
type Files struct {
	Hostname                   string
	Servers, Searches, Options []string
	// Addresses are the pod's own; they get the hostname in the hosts file.
	Addresses []netip.Addr
	Hosts     []HostEntry
}

// HostEntry gives names to an address.
type HostEntry struct {
	Address string
	Names   []string
}

// Write writes resolv.conf, hosts and hostname into dir. Files that are there
// are rewritten in place, as containers may have them mounted.
func (f Files) Write(dir string) error {
	for name, content := range map[string]string{
		"resolv.conf": f.resolvConf(), "hosts": f.hosts(), "hostname": f.Hostname + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return fmt.Errorf("network files: %w", err)
		}
	}
	return nil
}

func (f Files) resolvConf() string {
	var b strings.Builder
	for _, s := range f.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(f.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(f.Searches, " "))
	}
	if len(f.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(f.Options, " "))
	}
	return b.String()
}

func (f Files) hosts() string {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, a := range f.Addresses {
		if f.Hostname != "" {
			fmt.Fprintf(&b, "%s\t%s\n", a, f.Hostname)
		}
	}
	for _, h := range f.Hosts {
		fmt.Fprintf(&b, "%s\t%s\n", h.Address, strings.Join(h.Names, " "))
	}
	return b.String()
}
