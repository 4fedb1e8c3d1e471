package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// maxRedirects is how many redirects one request may take.
const maxRedirects = 5

// ErrRefused is wrapped by errors of requests that were not sent because of
// where they would have gone. They are not tried again.
var ErrRefused = errors.New("refused")

// roots are the certificates of the system and those of the options.
func roots(extra []string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a guest has none of its own
	}
	for i, p := range extra {
		if !pool.AppendCertsFromPEM([]byte(p)) {
			return nil, fmt.Errorf("extra_root_certificates[%d]: expected a certificate in PEM form, found none", i)
		}
	}
	return pool, nil
}

// newTransport makes a transport. One that is wary connects to no address that
// only this machine and its surroundings can reach.
func (c *Client) newTransport(pool *x509.CertPool, wary bool) *http.Transport {
	dial := c.options.DialContext
	if dial == nil {
		dial = (&net.Dialer{Timeout: 30 * time.Second}).DialContext
	}
	if wary {
		direct := dial
		dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := direct(ctx, network, address)
			if err == nil && local(conn.RemoteAddr()) {
				_ = conn.Close() // nothing has been sent
				return nil, fmt.Errorf("%s is the local address %s: a registry must not send its readers there: %w", address, conn.RemoteAddr(), ErrRefused)
			}
			return conn, err
		}
	}
	return &http.Transport{
		Proxy:                  c.options.Proxy,
		DialContext:            dial,
		TLSClientConfig:        &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, Time: c.options.Now},
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        30 * time.Second,
		TLSHandshakeTimeout:    20 * time.Second,
		ResponseHeaderTimeout:  c.options.StallTimeout,
		MaxResponseHeaderBytes: 64 << 10,
		// Layers are compressed already, and digests are of what is sent.
		DisableCompression: true,
		WriteBufferSize:    64 << 10,
		ReadBufferSize:     64 << 10,
	}
}

// Addresses at which clouds tell a machine about itself, beside the link-local
// ones: Azure's WireServer, Alibaba Cloud's and AWS's over IPv6.
var metadata = map[netip.Addr]bool{
	netip.AddrFrom4([4]byte{168, 63, 129, 16}):                                true,
	netip.AddrFrom4([4]byte{100, 100, 100, 200}):                              true,
	netip.AddrFrom16([16]byte{0: 0xfd, 2: 0x0e, 3: 0xc2, 14: 0x02, 15: 0x54}): true,
}

// nat64 is the prefix that stands for IPv4 addresses (RFC 6052, 2.1).
var nat64 = netip.PrefixFrom(netip.AddrFrom16([16]byte{1: 0x64, 2: 0xff, 3: 0x9b}), 96)

// local tells addresses that mean something else for every machine.
func local(a net.Addr) bool {
	if a == nil {
		return false
	}
	if a.Network() == "unix" {
		return true
	}
	ap, err := netip.ParseAddrPort(a.String())
	return err == nil && localIP(ap.Addr())
}

func localIP(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	if nat64.Contains(ip) {
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	return ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() || metadata[ip]
}

// localName tells names and addresses in URLs that need no look-up to be local.
func localName(host string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && localIP(ip)
}

// checkURL says whether a request may go there, whoever named it.
func (e *endpoint) checkURL(u *url.URL, secret bool) error {
	where := u.Scheme + "://" + u.Host
	switch {
	case u.Host == "" || u.User != nil || u.Opaque != "":
		return fmt.Errorf("URL of host %q: expected one with a host and without a user: %w", u.Host, ErrRefused)
	case u.Scheme == "http" && !e.plain:
		return fmt.Errorf("from https://%s to %s: plain HTTP is refused: %w", e.ref.Host(), where, ErrRefused)
	case u.Scheme == "http" && !e.client.mayPlain(u.Host) && u.Host != e.ref.Host():
		return fmt.Errorf("%s: plain HTTP is refused: the host is not listed as insecure: %w", where, ErrRefused)
	case u.Scheme == "http" && secret:
		return fmt.Errorf("%s: credentials are only sent over TLS: %w", where, ErrRefused)
	case u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("%s: expected https, got scheme %q: %w", u.Host, u.Scheme, ErrRefused)
	case !e.sameHost(u) && !e.isLocal() && localName(u.Hostname()):
		return fmt.Errorf("%s: a registry must not send its readers to local addresses: %w", where, ErrRefused)
	}
	return nil
}

// sameHost tells the registry itself from where it points to.
func (e *endpoint) sameHost(u *url.URL) bool {
	return u.Scheme == e.scheme() && hostPort(u.Scheme, u.Host) == hostPort(u.Scheme, e.ref.Host())
}

func hostPort(scheme, host string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return strings.ToLower(host)
	}
	port := "443"
	if scheme == "http" {
		port = "80"
	}
	return strings.ToLower(net.JoinHostPort(strings.Trim(host, "[]"), port))
}

// isLocal says that the registry itself has a local address. It then may point
// to others.
func (e *endpoint) isLocal() bool { return e.isLocalAddr.Load() || localName(hostOnly(e.ref.Host())) }

func hostOnly(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		return h
	}
	return strings.Trim(hostport, "[]")
}

// send sends one request. Who is not the registry itself is reached without
// trust in its address.
func (e *endpoint) send(req *http.Request) (*http.Response, error) {
	if err := e.checkURL(req.URL, req.Header.Get("Authorization") != ""); err != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, err
	}
	if e.client.options.UserAgent != "" {
		req.Header.Set("User-Agent", e.client.options.UserAgent)
	}
	req.Header.Set("Accept-Encoding", "identity")
	proxied, err := e.client.proxied(req)
	if err != nil {
		return nil, err
	}
	t := e.transport
	switch {
	case e.sameHost(req.URL):
		direct := !proxied
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
			if direct && local(i.Conn.RemoteAddr()) {
				e.isLocalAddr.Store(true)
			}
		}}))
	case e.isLocal() || proxied:
		t = e.client.transportFor(req.URL.Host, false) // a proxy may be near
	default:
		t = e.client.transportFor(req.URL.Host, true)
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, e.client.explainSend(req.URL.Host, err)
	}
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%s: Content-Encoding: expected none, got %.40q: the content would not be what its digest says: %w", req.URL.Host, enc, ErrRefused)
	}
	return resp, nil
}

// proxied says whether a proxy will be asked.
func (c *Client) proxied(req *http.Request) (bool, error) {
	if c.options.Proxy == nil {
		return false, nil
	}
	u, err := c.options.Proxy(req)
	return u != nil, err
}

// explainSend says what stood in the way of an answer.
func (c *Client) explainSend(host string, err error) error {
	op, isOp := errors.AsType[*net.OpError](err)
	dialing := isOp && op.Op == "dial"
	if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() && !dialing {
		return fmt.Errorf("%s: %w for %v: %w", host, errStalled, c.options.StallTimeout, err)
	}
	return c.explainTLS(host, err)
}

// explainTLS says what to do about a certificate.
func (c *Client) explainTLS(host string, err error) error {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired && invalid.Cert != nil {
		const day = "2006-01-02 15:04 MST"
		now := c.options.Now().UTC()
		which, cure := "has expired", "the registry needs a new certificate, unless this machine's clock is wrong"
		if now.Before(invalid.Cert.NotBefore) {
			which, cure = "is not valid yet", "the clock of this machine is probably wrong: a guest has it from its host"
		}
		return fmt.Errorf("%s: the certificate of %.100q %s: it is valid from %s to %s, and the clock says %s; %s: %w", host, invalid.Cert.Subject, which,
			invalid.Cert.NotBefore.UTC().Format(day), invalid.Cert.NotAfter.UTC().Format(day), now.Format(day), cure, errTLS{err})
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		cure := "add the certificate of its authority to extra_root_certificates of cdh.toml's [image] (coffer run --registry-ca)"
		if c.noRoots {
			cure = "this machine has no certificates of public authorities, as guests have none, and no other was configured: " + cure
		}
		return fmt.Errorf("%s: the certificate is of an authority that is not trusted; %s: %w", host, cure, errTLS{err})
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fmt.Errorf("%s: expected TLS, got something else; if it is a registry that speaks plain HTTP, list it as insecure in registry_config (coffer run --plain-http): %w", host, errTLS{err})
	}
	if isTLS(err) {
		return fmt.Errorf("%s: %w", host, errTLS{err})
	}
	return err
}

// errTLS is a failure that the next attempt would meet again.
type errTLS struct{ error }

// Unwrap gives the cause.
func (e errTLS) Unwrap() error { return e.error }

func isTLS(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	_, ok := errors.AsType[tls.AlertError](err)
	return ok || strings.Contains(err.Error(), "tls: protocol version") || strings.Contains(err.Error(), "protocol version not supported")
}
