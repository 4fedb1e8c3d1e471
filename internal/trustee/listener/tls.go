package listener

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultInterval is how often files are looked at for a change.
const DefaultInterval = 30 * time.Second

// maxFile bounds certificate and key files, in bytes.
const maxFile = 1 << 20

// TLSOptions configure [LoadTLS].
type TLSOptions struct {
	// CertFile and KeyFile are PEM files: the chain, leaf first, and its key,
	// which others must not be able to read.
	CertFile, KeyFile string
	// Certificate replaces the files, for example with a certificate that the
	// program issues itself. It is called for each handshake.
	Certificate func() (*tls.Certificate, error)
	// ClientCAFile is a PEM file of the authorities of client certificates.
	// Empty: none are asked for. Else a client may present one, and one that
	// does not verify ends the handshake.
	ClientCAFile string
	// Interval is how often [TLS.Run] looks at the files. Default: 30 s.
	Interval time.Duration
	// Now is the clock. Default: time.Now.
	Now func() time.Time
	// Logger gets reloads. Default: nowhere.
	Logger *slog.Logger
}

// TLS serves certificates from files and follows their changes. It is safe for
// concurrent use.
type TLS struct {
	o       TLSOptions
	current atomic.Pointer[loaded]

	// mu is held while files are read, so that the later of two reloads wins.
	mu     sync.Mutex
	failed string // the last failure that was logged
}

// loaded is what was read from the files at one time.
type loaded struct {
	digest [sha256.Size]byte
	config *tls.Config
}

// LoadTLS reads the files. An expired or not yet valid certificate is an error.
func LoadTLS(o TLSOptions) (*TLS, error) {
	if (o.CertFile == "") != (o.KeyFile == "") || (o.CertFile == "") == (o.Certificate == nil) {
		return nil, errors.New("listener: expected a certificate and a key file, or a source of certificates")
	}
	if o.Interval <= 0 {
		o.Interval = DefaultInterval
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	t := &TLS{o: o}
	if _, err := t.reload(); err != nil {
		return nil, err
	}
	return t, nil
}

// Config is the server's configuration: TLS 1.3, no session tickets (a resumed
// session would prove nothing new), HTTP/2 and HTTP/1.1.
func (t *TLS) Config() *tls.Config {
	c := t.base()
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return t.current.Load().config, nil }
	return c
}

func (t *TLS) base() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2", "http/1.1"},
		Time:                   t.o.Now,
		// Never used: GetConfigForClient decides. Its presence tells net/http
		// that there is a certificate.
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return nil, errors.New("no certificate is loaded")
		},
	}
}

// Run looks at the files now and then, and when wake is sent to (SIGHUP),
// until ctx ends. wake may be nil.
func (t *TLS) Run(ctx context.Context, wake <-chan os.Signal) error {
	tick := time.NewTicker(t.o.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-wake:
		}
		t.follow(ctx)
	}
}

// Reload reads the files at once. Where that fails, what was loaded before
// stays in use.
func (t *TLS) Reload() error {
	_, err := t.reload()
	return err
}

func (t *TLS) follow(ctx context.Context) {
	changed, err := t.reload()
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil:
		// The two files change one after the other: the next look may succeed.
		if t.failed != err.Error() {
			t.failed = err.Error()
			t.o.Logger.ErrorContext(ctx, "TLS files could not be reloaded; what was loaded before stays in use", "error", err)
		}
		return
	case changed:
		t.o.Logger.InfoContext(ctx, "TLS files reloaded", "certificate", t.o.CertFile, "client_ca", t.o.ClientCAFile)
	}
	t.failed = ""
}

// reload reads the files and reports whether they differ from what is in use.
func (t *TLS) reload() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var chain, key, roots []byte
	var err error
	if t.o.CertFile != "" {
		if chain, err = readFile(t.o.CertFile, false); err != nil {
			return false, fmt.Errorf("tls.certificate: %w", err)
		}
		if key, err = readFile(t.o.KeyFile, true); err != nil {
			return false, fmt.Errorf("tls.private_key: %w", err)
		}
		defer clear(key)
	}
	if t.o.ClientCAFile != "" {
		if roots, err = readFile(t.o.ClientCAFile, false); err != nil {
			return false, fmt.Errorf("tls.client_ca: %w", err)
		}
	}
	digest := digestOf(chain, key, roots)
	if old := t.current.Load(); old != nil && old.digest == digest {
		return false, nil
	}
	config, err := t.build(chain, key, roots)
	if err != nil {
		return false, err
	}
	t.current.Store(&loaded{digest: digest, config: config})
	return true, nil
}

func digestOf(parts ...[]byte) [sha256.Size]byte {
	h := sha256.New()
	for _, p := range parts {
		s := sha256.Sum256(p)
		h.Write(s[:])
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func (t *TLS) build(chain, key, roots []byte) (*tls.Config, error) {
	c := t.base()
	if t.o.CertFile == "" {
		c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return t.o.Certificate() }
	} else {
		pair, err := tls.X509KeyPair(chain, key)
		if err != nil {
			return nil, fmt.Errorf("tls.certificate %s with tls.private_key %s: %w", t.o.CertFile, t.o.KeyFile, err)
		}
		now := t.o.Now()
		if now.Before(pair.Leaf.NotBefore) || !now.Before(pair.Leaf.NotAfter) {
			return nil, fmt.Errorf("tls.certificate %s: expected one that is valid now (%s), got one for %s to %s",
				t.o.CertFile, now.UTC().Format(time.RFC3339), pair.Leaf.NotBefore.UTC().Format(time.RFC3339), pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
		}
		c.GetCertificate, c.Certificates = nil, []tls.Certificate{pair}
	}
	if len(roots) > 0 || t.o.ClientCAFile != "" {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(roots) {
			return nil, fmt.Errorf("tls.client_ca %s: expected certificates in PEM", t.o.ClientCAFile)
		}
		c.ClientCAs, c.ClientAuth = pool, tls.VerifyClientCertIfGiven
	}
	return c, nil
}

// readFile reads a file of bounded size; a private one must not be readable by
// others.
func readFile(path string, private bool) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("%s: expected a file of at most %d bytes", path, maxFile)
	}
	if private && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: expected mode 0600, got %v: others can read the key", path, info.Mode().Perm())
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(io.LimitReader(f, maxFile)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
