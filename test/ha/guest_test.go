package ha

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/softtee"
	"github.com/coffer-project/coffer/tee/softtee/softport"
)

// document is the guests' initdata.
const document = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\n\"aa.toml\" = \"x = 1\"\n"

// softwareTEE launches guests.
type softwareTEE struct {
	processor   *softtee.Processor
	launch      measure.Launch
	root        string // file of the development root
	measurement string
	digest      string // of document
	field       [32]byte
}

func newSoftwareTEE(t *testing.T, dir string) *softwareTEE {
	t.Helper()
	p, err := softtee.LoadOrCreate(filepath.Join(dir, "soft"), rand.Reader, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := &softwareTEE{processor: p, root: filepath.Join(dir, "development.pem")}
	write(t, s.root, p.RootPEM())
	s.launch = measure.Launch{Firmware: make([]byte, 4096), Kernel: []byte("kernel"), Initrd: []byte("initrd"), VCPUs: 1, VCPUModel: "EPYC-v4"}
	m, err := measure.SNP(s.launch)
	if err != nil {
		t.Fatal(err)
	}
	s.measurement = hex.EncodeToString(m[:])
	_, digest, err := initdata.Digest([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	s.digest, s.field = hex.EncodeToString(digest), [32]byte(tee.Fit(digest, 32))
	return s
}

// reference is the reference value that guests are launched by.
func (s *softwareTEE) reference() admin.ReferenceValue {
	return admin.ReferenceValue{Name: "snp_launch_measurement", Values: []any{s.measurement}}
}

// attester is a guest's: the production attester over a pipe in the place of
// the virtio-serial port.
func (s *softwareTEE) attester(t *testing.T) tee.Attester {
	t.Helper()
	g, err := s.processor.Launch(s.launch, softtee.Policy{HostData: s.field})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	return softport.New(func(context.Context) (io.ReadWriteCloser, error) {
		guest, host := net.Pipe()
		go func() { _ = g.Serve(ctx, host) }()
		return guest, nil
	})
}

// witness sees what a production client hides: that it tried again.
type witness struct {
	slog.Handler
	// dials counts connections and repeats what the client says it repeats.
	dials, repeats atomic.Int64
}

func (w *witness) Enabled(context.Context, slog.Level) bool { return true }

func (w *witness) Handle(_ context.Context, r slog.Record) error {
	for _, s := range []string{"waiting", "again"} {
		if strings.Contains(r.Message, s) {
			w.repeats.Add(1)
			break
		}
	}
	return nil
}

func (w *witness) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.dials.Add(1)
	return (&net.Dialer{Timeout: 15 * time.Second}).DialContext(ctx, network, address)
}

// disturbed counts how often more than the least was sent.
func (w *witness) disturbed() int64 { return max(0, w.dials.Load()-1) + w.repeats.Load() }

// guest is the production client.
func (c *cluster) guest(a tee.Attester, base string) (*kbs.Client, *witness, error) {
	w := &witness{Handler: slog.DiscardHandler}
	g, err := kbs.NewClient(kbs.ClientOptions{
		URL: base, RootPEM: c.root, Attester: a, InitData: []byte(document), Logger: slog.New(w), Rand: rand.Reader, DialContext: w.dial,
	})
	return g, w, err
}

// caller is plain HTTP: it tries once.
type caller struct {
	base string
	http *http.Client
}

// newCaller's connections are used once each unless keep is true.
func newCaller(base string, root []byte, keep bool) *caller {
	return &caller{base, &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: tlsConfig(root), DisableKeepAlives: !keep}}}
}

// caller of one replica.
func (c *cluster) caller(t *testing.T, r *replica) *caller {
	t.Helper()
	x := newCaller(r.url(), c.root, true)
	t.Cleanup(x.http.CloseIdleConnections)
	return x
}

type answer struct {
	status int
	header http.Header
	body   []byte
}

// refused is an answer other than success.
func (a *answer) refused(op string) error {
	if a.status == http.StatusOK {
		return nil
	}
	return kbs.NewStatusError(op, a.status, a.body)
}

func (x *caller) do(ctx context.Context, method, path string, body []byte, header map[string]string) (_ *answer, err error) {
	r, err := http.NewRequestWithContext(ctx, method, x.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		r.Header.Set(k, v)
	}
	resp, err := x.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	a := &answer{status: resp.StatusCode, header: resp.Header}
	a.body, err = io.ReadAll(resp.Body)
	return a, err
}

// handshake is a guest's side by hand: each of its requests may go elsewhere.
type handshake struct {
	prefix, cookie, token string
	challenge             *kbs.Challenge
	key                   *kbs.TEEKey
}

// begin asks for a challenge. prefix is a tenant's.
func begin(ctx context.Context, x *caller, prefix string) (*handshake, error) {
	a, err := x.do(ctx, http.MethodPost, prefix+kbs.AuthPath, fmt.Appendf(nil, `{"version":%q,"tee":"snp","extra-params":""}`, kbs.V040), nil)
	if err == nil {
		err = a.refused("auth")
	}
	if err != nil {
		return nil, err
	}
	h := &handshake{prefix: prefix}
	if h.challenge, err = kbs.ParseChallenge(a.body); err != nil {
		return nil, err
	}
	for _, ck := range (&http.Response{Header: a.header}).Cookies() {
		h.cookie = ck.Name + "=" + ck.Value
	}
	h.key, err = kbs.GenerateTEEKey(rand.Reader)
	return h, err
}

// evidence is the body that answers the challenge.
func (h *handshake) evidence(ctx context.Context, a tee.Attester) ([]byte, error) {
	empty := ""
	att := kbs.Attestation{
		Version: kbs.V040, Nonce: h.challenge.Nonce, TEEKey: h.key.Public(), Additional: &empty, InitData: &kbs.InitData{Format: "toml", Body: document},
	}
	digest, err := att.Digest("", h.challenge.Nonce)
	if err != nil {
		return nil, err
	}
	if att.Evidence, err = a.Evidence(ctx, digest); err != nil {
		return nil, err
	}
	return json.Marshal(att)
}

// attest presents the evidence.
func (h *handshake) attest(ctx context.Context, x *caller, body []byte) error {
	a, err := x.do(ctx, http.MethodPost, h.prefix+kbs.AttestPath, body, map[string]string{"Cookie": h.cookie})
	if err == nil {
		err = a.refused("attest")
	}
	if err != nil {
		return err
	}
	token, err := kbs.ParseTokenResponse(a.body)
	if err == nil {
		h.token = token.Token
	}
	return err
}

// fetch gets a resource with the cookie or the token.
func (h *handshake) fetch(ctx context.Context, x *caller, resource kbs.ResourceURI, withCookie bool) (secret.Bytes, error) {
	header := map[string]string{"Authorization": "Bearer " + h.token}
	if withCookie {
		header = map[string]string{"Cookie": h.cookie}
	}
	a, err := x.do(ctx, http.MethodGet, h.prefix+resource.RequestPath(), nil, header)
	if err == nil {
		err = a.refused("resource")
	}
	if err != nil {
		return secret.Bytes{}, err
	}
	r, err := kbs.ParseResponse(a.body)
	if err != nil {
		return secret.Bytes{}, err
	}
	return h.key.Decrypt(*r)
}

// attested runs a handshake on one replica.
func (c *cluster) attested(t *testing.T, x *caller, prefix string) (*handshake, error) {
	t.Helper()
	h, err := begin(t.Context(), x, prefix)
	if err != nil {
		return nil, err
	}
	body, err := h.evidence(t.Context(), c.tee.attester(t))
	if err != nil {
		return nil, err
	}
	return h, h.attest(t.Context(), x, body)
}

// part decodes a part of a token: 0 is the header, 1 the claims.
func part(token string, i int, v any) error {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return fmt.Errorf("token of %d parts", len(parts))
	}
	doc, err := base64.RawURLEncoding.DecodeString(parts[i])
	if err != nil {
		return err
	}
	return json.Unmarshal(doc, v)
}

// sessionOf is the session that a token was issued in, which records name.
func sessionOf(token string) (string, error) {
	var claims struct {
		ID string `json:"jti"`
	}
	if err := part(token, 1, &claims); err != nil {
		return "", err
	}
	if claims.ID == "" {
		return "", errors.New("token without jti")
	}
	return claims.ID, nil
}

// status is that of a refusal, 0 for any other error.
func status(err error) int {
	if e, ok := errors.AsType[*kbs.StatusError](err); ok {
		return e.Status
	}
	return 0
}
