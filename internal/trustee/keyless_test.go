package trustee_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee"
	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/layout"
	"github.com/coffer-project/coffer/oci/signature"
	"github.com/coffer-project/coffer/oci/signature/keyless/keylesstest"
	"github.com/coffer-project/coffer/oci/signature/remote"
	"github.com/coffer-project/coffer/secret"
)

const (
	keylessIssuer = "https://accounts.example.com"
	keylessEmail  = "release@example.com"
)

// keylessImage is a signed image: its repository with the signature.
func keylessImage(t *testing.T, s *keylesstest.Sigstore) (signature.Subject, oci.Fetcher) {
	t.Helper()
	digest := oci.FromBytes([]byte("image"))
	e, err := s.AttestAtTime(keylessEmail, keylessIssuer, []byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"`+digest.Hex()+`"}}],"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}`), time.Now().Add(5*time.Minute), true)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := oci.ParseReference("reg.example/shop/web@" + string(digest))
	if err != nil {
		t.Fatal(err)
	}
	l, err := layout.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	layer, err := oci.PushBytes(t.Context(), l, "application/vnd.dev.sigstore.bundle.v0.3+json", s.BundleOf(t, e))
	if err != nil {
		t.Fatal(err)
	}
	blank, err := oci.PushBytes(t.Context(), l, oci.MediaTypeConfig, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := json.Marshal(oci.Manifest{SchemaVersion: 2, MediaType: oci.MediaTypeManifest, Config: blank, Layers: []oci.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := oci.PushBytes(t.Context(), l, oci.MediaTypeManifest, m)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(t.Context(), d, signature.Tag(digest)); err != nil {
		t.Fatal(err)
	}
	return signature.Subject{Ref: ref, Digests: []oci.Digest{digest}}, l
}

// keylessPolicy is an image policy whose signatures a guest's trustee verifies.
func keylessPolicy(t *testing.T, guest *kbs.Client, s *keylesstest.Sigstore, email string) *signature.Policy {
	t.Helper()
	b64 := base64.StdEncoding.EncodeToString
	u, err := kbs.ParseResourceURI(remote.URI)
	if err != nil {
		t.Fatal(err)
	}
	p, err := signature.ParsePolicy(
		fmt.Appendf(nil, `{"default":[{"type":"sigstoreSigned","fulcio":{"caData":%q,"oidcIssuer":%q,"subjectEmail":%q},"rekorPublicKeyData":%q}]}`,
			b64([]byte(s.Authority)), keylessIssuer, email, b64([]byte(s.Log))),
		signature.WithKeyless(remote.New(func(ctx context.Context, body []byte) (secret.Bytes, error) { return guest.Ask(ctx, u, body) })))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestKeyless has a guest check an image's signature by asking its trustee.
func TestKeyless(t *testing.T) {
	t.Parallel()
	s, other := keylesstest.New(t), keylesstest.New(t)
	dir := t.TempDir()
	for name, text := range map[string]string{"fulcio.pem": s.Authority, "rekor.pem": s.Log} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e := start(t, "", func(o *trustee.Options) {
		o.Config.Plugins.Keyless = config.Keyless{Enabled: true, Authorities: []string{filepath.Join(dir, "fulcio.pem")}, Logs: []string{filepath.Join(dir, "rekor.pem")}}
	})
	a := e.populate("x")
	subject, images := keylessImage(t, s)
	_, elsewhere := keylessImage(t, other)
	guest := e.guest(fakeAttester{measurement: measurement, field: fieldOf(t, document)}, document)
	check := func(s *keylesstest.Sigstore, email string, f oci.Fetcher, want string) {
		t.Helper()
		v, err := keylessPolicy(t, guest, s, email).Verify(t.Context(), subject, f, nil)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %+v, %v", want, v, err)
		}
		if err == nil && (v.KeyID == "" || v.Digest != subject.Digests[0]) {
			t.Errorf("verdict %+v", v)
		}
	}
	// The pod is attested, and bound to other resources.
	check(s, keylessEmail, images, "initdata.registered")
	if err := a.Bind(t.Context(), admin.Binding{Resource: "+keyless", InitData: digestOf(t, document)}); err != nil {
		t.Fatal(err)
	}
	check(s, keylessEmail, images, "")
	check(s, "mallory@example.com", images, "keyless.signature")
	check(s, keylessEmail, elsewhere, "keyless.signature")
	check(other, keylessEmail, elsewhere, "keyless.pinned")

	// A guest of another measurement is no attested one.
	bad := e.guest(fakeAttester{measurement: "ff", field: fieldOf(t, document)}, document)
	if _, err := keylessPolicy(t, bad, s, keylessEmail).Verify(t.Context(), subject, images, nil); err == nil {
		t.Error("any guest may ask")
	}
	// All of it is on record.
	var granted, refused int
	list, err := a.Audit(t.Context(), admin.AuditQuery{Kind: admin.KindResource, Resource: remote.URI})
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range list {
		r, err := entry.Record()
		if err != nil {
			t.Fatal(err)
		}
		if !r.Granted {
			refused++
			continue
		}
		granted++
		if !strings.Contains(r.Detail, string(subject.Digests[0])) || !strings.Contains(r.Detail, keylessEmail) {
			t.Errorf("detail %q", r.Detail)
		}
	}
	if granted != 1 || refused < 4 {
		t.Errorf("%d granted, %d refused: %+v", granted, refused, list)
	}
	// What is no guest's, too large or no request.
	u := "/kbs/v0/keyless/verify"
	c := e.raw()
	_, token := e.attestAt(c, "")
	for name, tt := range map[string]struct {
		body   string
		header map[string]string
		status int
	}{
		"no token":   {"{}", nil, http.StatusUnauthorized},
		"no request": {"{}", token, http.StatusBadRequest},
		"too large":  {strings.Repeat("a", remote.MaxRequest+1), token, http.StatusRequestEntityTooLarge},
	} {
		if x := e.do(c, http.MethodPost, u, []byte(tt.body), tt.header); x.status != tt.status {
			t.Errorf("%s: %d %s", name, x.status, x.body)
		}
	}
}

// TestKeylessOff: a trustee without the plugin, and one that is configured wrong.
func TestKeylessOff(t *testing.T) {
	t.Parallel()
	e := start(t, "", nil)
	e.populate("x")
	s := keylesstest.New(t)
	subject, images := keylessImage(t, s)
	guest := e.guest(fakeAttester{measurement: measurement, field: fieldOf(t, document)}, document)
	_, err := keylessPolicy(t, guest, s, keylessEmail).Verify(t.Context(), subject, images, nil)
	// Package program of the guest knows these statuses.
	se, ok := errors.AsType[*kbs.StatusError](err)
	if !ok || se.Status != http.StatusUnauthorized && se.Status != http.StatusNotFound && se.Status != http.StatusMethodNotAllowed {
		t.Errorf("got %v", err)
	}
	o := trustee.Options{Config: config.Default(), Logger: slog.New(slog.DiscardHandler), Now: time.Now}
	o.Config.StateDir = filepath.Join(t.TempDir(), "state")
	o.Config.Plugins.Keyless = config.Keyless{Enabled: true, Logs: []string{filepath.Join(t.TempDir(), "absent.pem")}}
	if err := trustee.Check(t.Context(), o); err == nil || !strings.Contains(err.Error(), "plugins.keyless.logs") {
		t.Errorf("got %v", err)
	}
}
