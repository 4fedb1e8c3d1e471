package cli_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/coffer-project/coffer/internal/run"
	"github.com/coffer-project/coffer/internal/trustee"
	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/measure"
	"github.com/coffer-project/coffer/tee/softtee"
	"github.com/coffer-project/coffer/tee/softtee/softport"
)

// mktrustee starts a trustee until the script ends: mktrustee PUBLIC-KEY
// [mtls]. It writes ca.pem, the token of an OpenID provider for an auditor
// (oidc.jwt), and a certificate (client.pem, client-key.pem), which the trustee
// demands of administrators with mtls, and sets TRUSTEE.
func mktrustee(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 1 || len(args) > 2 || (len(args) == 2 && args[1] != "mtls") {
		ts.Fatalf("usage: mktrustee PUBLIC-KEY [mtls]")
	}
	c := config.Default()
	c.StateDir = filepath.Join(ts.Getenv("WORK"), "trustee-state")
	c.Listen = "127.0.0.1:0"
	c.Admin.PublicKeys = []string{ts.MkAbs(args[0])}
	mkcertificate(ts)
	if len(args) == 2 {
		c.Admin.ClientCA = ts.MkAbs("client.pem")
	}
	c.Admin.OIDC = []config.OIDC{mkprovider(ts)}
	t, err := trustee.New(context.Background(), trustee.Options{Config: c, Logger: slog.New(slog.DiscardHandler)})
	ts.Check(err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- t.Run(ctx) }()
	ts.Defer(func() {
		stop()
		<-done
	})
	ts.Check(os.WriteFile(ts.MkAbs("ca.pem"), t.RootPEM(), 0o600))
	_, port, err := net.SplitHostPort(t.Addr())
	ts.Check(err)
	ts.Setenv("TRUSTEE", "https://127.0.0.1:"+port)
}

// mkcertificate writes a certificate that vouches for itself.
func mkcertificate(ts *testscript.TestScript) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	ts.Check(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "alice"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, pub, key)
	ts.Check(err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("client.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs("client-key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
}

// mkprovider makes an OpenID provider's keys and a token of it.
func mkprovider(ts *testscript.TestScript) config.OIDC {
	const issuer = "https://id.example"
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	point, err := key.PublicKey.Bytes()
	ts.Check(err)
	b64 := base64.RawURLEncoding.EncodeToString
	object := func(v any) []byte {
		doc, err := json.Marshal(v)
		ts.Check(err)
		return doc
	}
	set := object(map[string]any{"keys": []map[string]string{{"kty": "EC", "crv": "P-256", "kid": "1", "alg": "ES256", "use": "sig", "x": b64(point[1:33]), "y": b64(point[33:])}}})
	ts.Check(os.WriteFile(ts.MkAbs("jwks.json"), set, 0o600))
	now := time.Now().Unix()
	signed := b64(object(map[string]string{"alg": "ES256", "typ": "JWT", "kid": "1"})) + "." +
		b64(object(map[string]any{"iss": issuer, "aud": "coffer", "sub": "bob", "iat": now - 10, "exp": now + 600, "groups": []string{"compliance"}}))
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	ts.Check(err)
	var signature [64]byte
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	ts.Check(os.WriteFile(ts.MkAbs("oidc.jwt"), []byte(signed+"."+b64(signature[:])+"\n"), 0o600))
	return config.OIDC{
		Issuer: issuer, Audience: "coffer", JWKS: ts.MkAbs("jwks.json"), RoleClaim: "groups",
		Roles: map[string]string{"compliance": "auditor"}, Tenant: "default",
	}
}

// asks lets a pod on the software TEE ask the embedded trustee for a resource:
// asks URI INITDATA-FILE STATUS.
func asks(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: asks URI INITDATA-FILE 200|403")
	}
	uri, err := kbs.ParseResourceURI(args[0])
	ts.Check(err)
	document := []byte(ts.ReadFile(args[1]))
	ts.Check(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		state := filepath.Join(ts.Getenv("XDG_STATE_HOME"), "coffer")
		ts.Check(os.MkdirAll(state, 0o700))
		processor, err := run.SoftTEE(state)
		if err != nil {
			return err
		}
		t, err := run.StartTrustee(ctx, run.TrusteeOptions{State: state, SoftTEE: processor, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		defer func() { _ = t.Close() }()
		id, err := run.OpenInitdata(document)
		if err != nil {
			return err
		}
		launch := measure.Launch{Firmware: make([]byte, 4096), Kernel: []byte("kernel"), Initrd: []byte("initrd"), VCPUs: 1, VCPUModel: "EPYC-v4"}
		if err := run.RegisterLaunch(ctx, t.Admin, launch); err != nil {
			return err
		}
		guest, err := processor.Launch(launch, softtee.Policy{HostData: [32]byte(tee.Fit(id.Digest, 32))})
		if err != nil {
			return err
		}
		attester := softport.New(func(context.Context) (io.ReadWriteCloser, error) {
			near, far := net.Pipe()
			go func() { _ = guest.Serve(ctx, far) }()
			return near, nil
		})
		client, err := kbs.NewClient(kbs.ClientOptions{URL: t.URL, RootPEM: t.RootPEM, Attester: attester, InitData: document, Logger: slog.New(slog.DiscardHandler), Rand: rand.Reader, Now: time.Now})
		if err != nil {
			return err
		}
		defer client.Close()
		status := http.StatusOK
		if _, err := client.Resource(ctx, uri); err != nil {
			e, ok := errors.AsType[*kbs.StatusError](err)
			if !ok {
				return err
			}
			status = e.Status
		}
		if strconv.Itoa(status) != args[2] {
			return fmt.Errorf("%s: expected status %s, got %d", args[0], args[2], status)
		}
		return nil
	}())
}

// lacks checks that what the command printed does not hold a file's content:
// lacks FILE.
func lacks(ts *testscript.TestScript, _ bool, args []string) {
	want := strings.TrimSpace(ts.ReadFile(args[0]))
	for _, stream := range []string{"stdout", "stderr"} {
		if strings.Contains(ts.ReadFile(stream), want) {
			ts.Fatalf("%s holds the content of %s", stream, args[0])
		}
	}
}

// recordid reads a list that was printed as JSON: the first record's number
// and id as SEQ and ID, the key of alice as ALICE: recordid FILE.
func recordid(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: recordid FILE")
	}
	var list []struct {
		ID     string `json:"id"`
		Name   string `json:"name"`
		Seq    int    `json:"seq"`
		Record struct {
			ID string `json:"id"`
		} `json:"record"`
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &list))
	for _, x := range list {
		if x.Name == "alice" {
			ts.Setenv("ALICE", x.ID)
		}
	}
	if len(list) > 0 {
		ts.Setenv("SEQ", strconv.Itoa(list[0].Seq))
		ts.Setenv("ID", list[0].Record.ID)
	}
}

// digest reads what `coffer initdata inspect --output json` printed: digest FILE.
func digest(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: digest FILE")
	}
	var doc struct {
		Digest string `json:"digest"`
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &doc))
	ts.Setenv("DIGEST", doc.Digest)
}

// edit copies a file with a word replaced: edit FROM TO OLD NEW.
func edit(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 4 {
		ts.Fatalf("usage: edit FROM TO OLD NEW")
	}
	text := ts.ReadFile(args[0])
	if !strings.Contains(text, args[2]) {
		ts.Fatalf("%s does not hold %s", args[0], args[2])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(strings.ReplaceAll(text, args[2], args[3])), 0o600))
}
