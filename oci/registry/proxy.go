package registry

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// maxNoProxy bounds the exceptions of a proxy.
const maxNoProxy = 256

// Proxy is how registries are reached, and nobody else: a trustee is not asked
// through it. The zero value is none.
type Proxy struct {
	// HTTPS and HTTP are the proxies for either kind of URL: URLs of scheme
	// http or https, or HOST:PORT. Empty means none.
	HTTPS, HTTP string
	// NoProxy lists what is reached directly, separated by commas: HOST (and
	// all below it), .DOMAIN or *.DOMAIN (only what is below it), an address,
	// a range in CIDR notation, each but the last with an optional :PORT, or *
	// for everything.
	NoProxy string
}

// Func is the proxy in the form of net/http, nil for none.
func (p Proxy) Func() (func(*http.Request) (*url.URL, error), error) {
	secure, errSecure := proxyURL("https_proxy", p.HTTPS)
	plain, errPlain := proxyURL("http_proxy", p.HTTP)
	except, errExcept := parseNoProxy(p.NoProxy)
	if err := errors.Join(errSecure, errPlain, errExcept); err != nil {
		return nil, err
	}
	if secure == nil && plain == nil {
		return nil, nil
	}
	return func(req *http.Request) (*url.URL, error) {
		u := plain
		if req.URL.Scheme == "https" {
			u = secure
		}
		if u == nil || except.match(hostPort(req.URL.Scheme, req.URL.Host)) {
			return nil, nil
		}
		return u, nil
	}, nil
}

func proxyURL(name, s string) (*url.URL, error) {
	if s == "" {
		return nil, nil
	}
	text := s
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("%s: expected http://HOST:PORT or https://HOST:PORT, got %s", name, safeURL(u))
	case u.User != nil:
		return nil, fmt.Errorf("%s: expected no user and password: everybody reads this configuration", name)
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		return nil, fmt.Errorf("%s: expected nothing behind HOST:PORT", name)
	}
	return u, nil
}

// safeURL shows no user and no password.
func safeURL(u *url.URL) string {
	if u == nil {
		return "no URL"
	}
	return fmt.Sprintf("scheme %.20q and host %.100q", u.Scheme, u.Host)
}

// noProxy are the exceptions of a proxy.
type noProxy struct {
	all    bool
	ranges []netip.Prefix
	hosts  []noProxyHost
}

// noProxyHost is a name or an address, and a port if not all are meant.
type noProxyHost struct {
	host, port string
	below      bool // only names below host
}

func parseNoProxy(s string) (noProxy, error) {
	var out noProxy
	fields := strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' })
	if len(fields) > maxNoProxy {
		return out, fmt.Errorf("no_proxy: expected at most %d entries, got %d", maxNoProxy, len(fields))
	}
	for _, f := range fields {
		f = strings.ToLower(f)
		if f == "*" {
			out.all = true
			continue
		}
		if strings.Contains(f, "/") {
			p, err := netip.ParsePrefix(f)
			if err != nil {
				return out, fmt.Errorf("no_proxy: %.60q: expected a range such as 10.0.0.0/8", f)
			}
			out.ranges = append(out.ranges, p.Masked())
			continue
		}
		h := noProxyHost{host: f}
		if host, port, ok := cutPort(f); ok {
			h.host, h.port = host, port
		}
		h.host = strings.Trim(h.host, "[]")
		h.host = strings.TrimPrefix(h.host, "*")
		if rest, ok := strings.CutPrefix(h.host, "."); ok {
			h.host, h.below = rest, true
		}
		if h.host == "" || strings.ContainsAny(h.host, "*@") {
			return out, fmt.Errorf("no_proxy: %.60q: expected HOST, .DOMAIN, an address or a range", f)
		}
		out.hosts = append(out.hosts, h)
	}
	return out, nil
}

// cutPort splits HOST:PORT; an IPv6 address without brackets has no port.
func cutPort(s string) (host, port string, ok bool) {
	if strings.Count(s, ":") > 1 && !strings.HasPrefix(s, "[") {
		return "", "", false
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 || i < strings.LastIndexByte(s, ']') {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

// match says whether HOST:PORT is reached without the proxy. This machine
// always is.
func (n noProxy) match(hostport string) bool {
	host, port, _ := cutPort(hostport)
	host = strings.TrimSuffix(strings.Trim(host, "[]"), ".")
	ip, err := netip.ParseAddr(host)
	isIP := err == nil
	if n.all || host == "localhost" || isIP && ip.Unmap().IsLoopback() {
		return true
	}
	for _, p := range n.ranges {
		if isIP && p.Contains(ip.Unmap()) {
			return true
		}
	}
	for _, h := range n.hosts {
		if h.port != "" && h.port != port {
			continue
		}
		if host == h.host && !h.below || !isIP && strings.HasSuffix(host, "."+h.host) {
			return true
		}
	}
	return false
}
