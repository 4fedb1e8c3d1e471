// Package listener accepts connections: it learns a client's address from a
// trusted load balancer's PROXY protocol header, and serves a TLS certificate
// from files that may change while the server runs.
//
// X-Forwarded-For is never read: any client can send it.
package listener

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
)

// DefaultHeaderTimeout is how long a load balancer may take to send its PROXY
// header.
const DefaultHeaderTimeout = 5 * time.Second

// Proxy says whom to believe in who a client is.
type Proxy struct {
	// Trusted are the networks of load balancers that send the PROXY protocol,
	// version 1 or 2. Bytes from any other address are taken as they are, so
	// that a header from there is no valid TLS and fails.
	Trusted []netip.Prefix
	// Required refuses connections of a trusted address without a header. Off,
	// their health checks may come without.
	Required bool
	// HeaderTimeout bounds the wait for a header. Default: 5 s.
	HeaderTimeout time.Duration
}

// ParsePrefixes reads networks ("10.0.0.0/8") and single addresses.
func ParsePrefixes(list []string) ([]netip.Prefix, error) {
	out := make([]netip.Prefix, 0, len(list))
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, aerr := netip.ParseAddr(s)
			if aerr != nil || a.Zone() != "" {
				return nil, fmt.Errorf("expected a network such as 10.0.0.0/8 or an address, got %.80q", s)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		if p.Addr().Is4In6() {
			return nil, fmt.Errorf("expected IPv4 networks to be written as such, got %.80q", s)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("expected a network without host bits, got %.80q; did you mean %s?", s, p.Masked())
		}
		out = append(out, p)
	}
	return out, nil
}

// Listener wraps inner. Connections report the client's address as their
// RemoteAddr; finding it can wait for the header, so it is not asked for while
// accepting.
func (p Proxy) Listener(inner net.Listener) net.Listener {
	if len(p.Trusted) == 0 {
		return inner
	}
	timeout := p.HeaderTimeout
	if timeout <= 0 {
		timeout = DefaultHeaderTimeout
	}
	return &proxyproto.Listener{
		Listener:          inner,
		ReadHeaderTimeout: timeout,
		ConnPolicy: func(o proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) {
			switch a := addrOf(o.Upstream); {
			case !p.trusts(a):
				return proxyproto.SKIP, nil
			case p.Required:
				return proxyproto.REQUIRE, nil
			default:
				return proxyproto.USE, nil
			}
		},
	}
}

func (p Proxy) trusts(a netip.Addr) bool {
	for _, t := range p.Trusted {
		if t.Contains(a) {
			return true
		}
	}
	return false
}

// addrOf is the IP address of a network address, invalid where it has none.
func addrOf(a net.Addr) netip.Addr {
	if a == nil {
		return netip.Addr{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// ClientAddr is the address that a request came from: the connection's, which
// the PROXY header of a trusted load balancer has set. It is invalid where
// there is none, as with a Unix socket.
func ClientAddr(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// ClientText is [ClientAddr] as text for a record, empty where there is none.
func ClientText(r *http.Request) string {
	if a := ClientAddr(r); a.IsValid() {
		return a.String()
	}
	return ""
}
