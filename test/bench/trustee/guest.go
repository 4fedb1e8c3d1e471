package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/coffer-project/coffer/initdata"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/softtee"
	"github.com/coffer-project/coffer/tee/softtee/softport"
)

// document is the guests' initdata.
const document = "version = \"0.1.0\"\nalgorithm = \"sha384\"\n\n[data]\n\"aa.toml\" = '''\n[token_configs.kbs]\nurl = \"https://trustee.example:8443\"\n'''\n"

// secretText is what every resource holds: 256 bytes.
var secretText = bytes.Repeat([]byte("0123456789abcdef"), 16)

// fleet is the launch that all guests are of.
type fleet struct {
	guest  *softtee.Guest
	root   []byte // the development root, PEM
	digest []byte // of the initdata
}

func newFleet(dir string) (*fleet, error) {
	chip, err := softtee.LoadOrCreate(dir, rand.Reader, time.Now())
	if err != nil {
		return nil, err
	}
	f := &fleet{root: chip.RootPEM()}
	if _, f.digest, err = initdata.Digest([]byte(document)); err != nil {
		return nil, err
	}
	policy := softtee.Policy{HostData: [32]byte(tee.Fit(f.digest, 32))}
	f.guest, err = chip.Launch(measure.Launch{
		Firmware: make([]byte, 4096), Kernel: []byte("kernel"), Initrd: []byte("initrd"), Cmdline: "console=ttyS0", VCPUs: 2, VCPUModel: "EPYC-v4",
	}, policy)
	return f, err
}

// attester is the production attester over a pipe in the place of the
// virtio-serial port.
func (f *fleet) attester(ctx context.Context) tee.Attester {
	return softport.New(func(context.Context) (io.ReadWriteCloser, error) {
		guest, host := net.Pipe()
		go func() { _ = f.guest.Serve(ctx, host) }() // ends with the guest's side
		return guest, nil
	})
}

// client is one with connections of its own, as each guest has: the settings
// are the production client's.
func (s *server) client() *http.Client {
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}, SessionTicketsDisabled: true},
		TLSHandshakeTimeout: 30 * time.Second, MaxIdleConnsPerHost: 1, DisableCompression: true,
	}}
}

// exchange is what a handshake and a resource leave behind: the answers as
// they came.
type exchange struct {
	challenge, token, resource []byte
	cookie                     string
	compact                    string // the token alone
	key                        *kbs.TEEKey
	latency                    time.Duration // of the resource alone
}

// shake does what the production client does: request, challenge, evidence
// over it with a fresh key, token, resource, decryption. With a key of its own
// it is a bare server's, whose resource is encrypted to that key; the fresh
// one is made all the same.
func shake(ctx context.Context, c *http.Client, url string, a tee.Attester, fixed *kbs.TEEKey, path string) (*exchange, error) {
	x := &exchange{}
	body, err := json.Marshal(kbs.Request{Version: kbs.ProtocolVersion, TEE: a.TEE(), HashAlgorithms: []string{kbs.SHA256, kbs.SHA384, kbs.SHA512}})
	if err != nil {
		return nil, err
	}
	var header http.Header
	if x.challenge, header, err = call(ctx, c, http.MethodPost, url+kbs.AuthPath, nil, body); err != nil {
		return nil, err
	}
	challenge, err := kbs.ParseChallenge(x.challenge)
	if err != nil {
		return nil, err
	}
	for _, ck := range (&http.Response{Header: header}).Cookies() {
		if ck.Name == kbs.SessionCookie {
			x.cookie = ck.Value
		}
	}
	if x.key, err = kbs.GenerateTEEKey(rand.Reader); err != nil {
		return nil, err
	}
	att := kbs.Attestation{
		Version: kbs.ProtocolVersion, InitData: &kbs.InitData{Format: "toml", Body: document}, Nonce: challenge.Nonce, TEEKey: x.key.Public(), Additional: new(string),
	}
	digest, err := att.Digest(challenge.HashAlgorithm, challenge.Nonce)
	if err != nil {
		return nil, err
	}
	if att.Evidence, err = a.Evidence(ctx, digest); err != nil {
		return nil, err
	}
	if body, err = json.Marshal(att); err != nil {
		return nil, err
	}
	if x.token, _, err = call(ctx, c, http.MethodPost, url+kbs.AttestPath, http.Header{"Cookie": {kbs.SessionCookie + "=" + x.cookie}}, body); err != nil {
		return nil, err
	}
	token, err := kbs.ParseTokenResponse(x.token)
	if err != nil {
		return nil, err
	}
	x.compact = token.Token
	if fixed != nil {
		x.key = fixed
	}
	return x, x.fetch(ctx, c, url, path)
}

// fetch gets a resource with the token and decrypts it.
func (x *exchange) fetch(ctx context.Context, c *http.Client, url, path string) (err error) {
	begun := time.Now()
	header := http.Header{"Authorization": {"Bearer " + x.compact}, "Accept": {"application/json"}}
	x.resource, _, err = call(ctx, c, http.MethodGet, url+kbs.PathPrefix+"/resource/"+path, header, nil)
	x.latency = time.Since(begun)
	if err != nil {
		return err
	}
	r, err := kbs.ParseResponse(x.resource)
	if err != nil {
		return err
	}
	var v secret.Bytes
	if v, err = x.key.Decrypt(*r); err != nil {
		return err
	}
	if !bytes.Equal(v.Expose(), secretText) {
		return errors.New("the resource has another content")
	}
	return nil
}

func call(ctx context.Context, c *http.Client, method, url string, header http.Header, body []byte) ([]byte, http.Header, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	if header != nil {
		req.Header = header
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, nil, err
	}
	out, err := io.ReadAll(resp.Body)
	err = errors.Join(err, resp.Body.Close())
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %.500s", method, req.URL.Path, resp.Status, out)
	}
	return out, resp.Header, err
}
