package demo

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// registryServer is Debian's docker-registry on loopback with a password, behind a
// TLS front that the attacker of the demo holds: it can be told to lie.
type registryServer struct {
	// Port is the TLS front's, on 127.0.0.1.
	Port int
	// RootPEM is the certificate authority of the front.
	RootPEM []byte
	// User and Password are the only account.
	User, Password string

	front   *http.Server
	process *exec.Cmd
	exited  chan struct{}

	mu     sync.Mutex
	faults faults
}

// faults are the lies the front can tell.
type faults struct {
	// swap serves the manifest of the value where the key's is asked for.
	swap map[string]string
	// corrupt flips one byte of these blobs.
	corrupt map[string]bool
}

// setFaults replaces the lies told from now on.
func (r *registryServer) setFaults(f faults) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = f
}

const registryConfig = `version: 0.1
log: {level: info, formatter: json, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %[1]s/data}
  delete: {enabled: true}
http: {addr: "127.0.0.1:0", secret: %[2]s}
auth: {htpasswd: {realm: coffer-demo, path: %[1]s/htpasswd}}
`

// startRegistry starts the registry with its files below dir. serverNames are
// the names the TLS certificate is for, beside 127.0.0.1.
func startRegistry(ctx context.Context, dir string, serverNames ...string) (*registryServer, error) {
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		return nil, fmt.Errorf("docker-registry is not installed (Debian's package docker-registry; `make deps` installs it): %w", err)
	}
	r := &registryServer{User: "demo", Password: rand.Text(), exited: make(chan struct{})}
	hash, err := bcrypt.GenerateFromPassword([]byte(r.Password), bcrypt.MinCost)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o700); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "config.yml")
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "htpasswd"), fmt.Appendf(nil, "%s:%s\n", r.User, hash), 0o600),
		os.WriteFile(config, fmt.Appendf(nil, registryConfig, dir, rand.Text()), 0o600),
	); err != nil {
		return nil, err
	}
	r.process = exec.CommandContext(context.WithoutCancel(ctx), program, "serve", config)
	r.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	logs, err := r.process.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := r.process.Start(); err != nil {
		return nil, fmt.Errorf("docker-registry: %w", err)
	}
	backend := make(chan string, 1)
	go func() {
		defer close(r.exited)
		watchRegistry(logs, backend)
		_ = r.process.Wait()
	}()
	select {
	case addr, ok := <-backend:
		if !ok {
			return nil, errors.New("docker-registry ended before it listened")
		}
		if err := r.serve(addr, append(serverNames, "localhost")); err != nil {
			r.Close()
			return nil, err
		}
		return r, nil
	case <-ctx.Done():
		r.Close()
		return nil, ctx.Err()
	}
}

// watchRegistry sends the address that the registry's log names, and reads the
// log to its end. It closes addr when the log ends before it was named.
func watchRegistry(logs io.Reader, addr chan<- string) {
	defer close(addr)
	sent := false
	for lines := bufio.NewScanner(logs); lines.Scan(); {
		var entry struct {
			Msg string `json:"msg"`
		}
		if json.Unmarshal(lines.Bytes(), &entry) != nil || sent {
			continue
		}
		if a, ok := strings.CutPrefix(entry.Msg, "listening on "); ok {
			addr <- a
			sent = true
		}
	}
}

// Close stops the front and the registry.
func (r *registryServer) Close() {
	if r.front != nil {
		_ = r.front.Close()
	}
	if r.process != nil && r.process.Process != nil {
		_ = r.process.Process.Kill()
		<-r.exited
	}
}

func (r *registryServer) serve(backend string, names []string) error {
	cert, rootPEM, err := selfMadeCertificate(names)
	if err != nil {
		return err
	}
	r.RootPEM = rootPEM
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
	if err != nil {
		return err
	}
	if addr, ok := listener.Addr().(*net.TCPAddr); ok {
		r.Port = addr.Port
	}
	proxy := httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: backend})
			p.Out.Host = p.In.Host
			p.Out.Header.Set("X-Forwarded-Proto", "https")
			p.Out.URL.Path = r.swapped(p.In.URL.Path)
			p.Out.URL.RawPath = ""
		},
		ModifyResponse: r.tamper,
	}
	r.front = &http.Server{Handler: &proxy, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = r.front.Serve(listener) }()
	return nil
}

// swapped is the path that is really asked for.
func (r *registryServer) swapped(path string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for from, to := range r.faults.swap {
		path = strings.Replace(path, "/manifests/"+from, "/manifests/"+to, 1)
	}
	return path
}

// tamper flips one byte in the middle of the blobs that are to be corrupted.
func (r *registryServer) tamper(resp *http.Response) error {
	r.mu.Lock()
	hit := false
	for digest := range r.faults.corrupt {
		hit = hit || strings.HasSuffix(resp.Request.URL.Path, "/blobs/"+digest)
	}
	r.mu.Unlock()
	if !hit || resp.StatusCode != http.StatusOK || resp.Request.Method != http.MethodGet {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	_ = resp.Body.Close()
	if err != nil {
		return err
	}
	if len(body) > 0 {
		body[len(body)/2] ^= 1
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}

// selfMadeCertificate makes a certificate authority and one certificate of it
// for names and 127.0.0.1, both good for a day.
func selfMadeCertificate(names []string) (tls.Certificate, []byte, error) {
	var none tls.Certificate
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return none, nil, err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return none, nil, err
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Coffer demo registry CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Coffer demo registry"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return none, nil, err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, leafKey.Public(), caKey)
	if err != nil {
		return none, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{leafDER, caDER}, PrivateKey: leafKey},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), nil
}
