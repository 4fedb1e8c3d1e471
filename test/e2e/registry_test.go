package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/coffer-project/coffer/internal/run"
)

// registryServer is a registry on loopback with TLS. Repositories below
// "private/" want a password.
type registryServer struct {
	port int
	// ca is a file with the certificate that vouches for it, authFile one with
	// the credential as the host uses it, guestAuth the guest's document.
	ca, authFile string
	guestAuth    []byte

	mu    sync.Mutex
	blobs map[string]int
}

// guestBlobs is how often guests have asked for blobs of a repository.
func (r *registryServer) guestBlobs(repository string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.blobs[repository]
}

func (r *registryServer) count(req *http.Request) {
	repository, _, ok := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/blobs/")
	if !ok || !strings.HasPrefix(req.UserAgent(), "coffer-agent/") {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[repository]++
}

// host is a reference's registry as the host names it.
func (r *registryServer) host() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(r.port)) }

const registryUser = "owner"

func (s *suite) startRegistry() (*registryServer, error) {
	password := rand.Text()
	s.hide("the registry's password", password)
	s.hide("the registry's credential", registryUser+":"+password)
	cert, authority, err := certificate("localhost", run.HostName)
	if err != nil {
		return nil, err
	}
	var config net.ListenConfig
	listener, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registryServer{
		port: listener.Addr().(*net.TCPAddr).Port,
		ca:   filepath.Join(s.dir, "registry-ca.pem"), authFile: filepath.Join(s.dir, "auth.json"),
		blobs: map[string]int{},
	}
	backend := ggcr.New(ggcr.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			r.count(req)
			user, given, _ := req.BasicAuth()
			allowed := user == registryUser && subtle.ConstantTimeCompare([]byte(given), []byte(password)) == 1
			if strings.HasPrefix(req.URL.Path, "/v2/private/") && !allowed {
				w.Header().Set("WWW-Authenticate", `Basic realm="e2e"`)
				http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"a password is wanted"}]}`, http.StatusUnauthorized)
				return
			}
			backend.ServeHTTP(w, req)
		}),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, ReadHeaderTimeout: limit,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
	}
	go func() { _ = server.ServeTLS(listener, "", "") }() // until the test program ends
	document := func(host string) []byte {
		credential := base64.StdEncoding.EncodeToString([]byte(registryUser + ":" + password))
		data, _ := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{"auth": credential}}})
		return data
	}
	r.guestAuth = document(net.JoinHostPort(run.HostName, strconv.Itoa(r.port)))
	if err := os.WriteFile(r.ca, authority, 0o600); err != nil {
		return nil, err
	}
	return r, os.WriteFile(r.authFile, document(r.host()), 0o600)
}

// certificate makes a self-signed certificate for names and 127.0.0.1.
func certificate(names ...string) (tls.Certificate, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "e2e registry"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
