package tests

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/audit"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// auditChain verifies a tenant's chain as whoever holds a checkpoint does.
func (s *site) auditChain(name string, pinned ...string) audit.Report {
	s.t.Helper()
	a := s.admin(name)
	doc, err := a.AuditKeys(s.t.Context())
	s.must(err)
	keys, err := audit.ParseKeys(doc)
	s.must(err)
	points, err := a.Checkpoints(s.t.Context(), 0)
	s.must(err)
	var signed []string
	for _, p := range points {
		signed = append(signed, p.JWS)
	}
	n := tenant.Name(name)
	if name == "" {
		n = tenant.Default
	}
	list := func(ctx context.Context, _ tenant.Name, q audit.Query) ([]audit.Entry, error) {
		in, err := a.AuditFrom(ctx, max(q.After, 0), q.Limit)
		var out []audit.Entry
		for _, e := range in {
			out = append(out, audit.Entry{Seq: e.Seq, Previous: e.Previous, Hash: e.Hash, Body: e.Body})
		}
		return out, err
	}
	r, err := audit.Verify(s.t.Context(), audit.Pages(s.t.Context(), list, n), audit.VerifyOptions{Tenant: n, Keys: keys, Checkpoints: signed, Pinned: pinned})
	s.must(err)
	if !r.OK {
		s.t.Errorf("tenant %q: %+v, %v", name, r, r.Problem)
	}
	return r
}

// TestBackup copies a trustee under load and moves it to PostgreSQL.
func TestBackup(t *testing.T) {
	t.Parallel()
	url := the.postgres.URL(t)
	dir := t.TempDir()
	s := launch(t, the.plain, dir, pkiConfig)
	a := s.populate("")
	s.must(a.CreateTenant(t.Context(), "acme", ""))
	s.populate("acme")
	const kept = 20
	for i := range kept {
		s.must(a.SetResource(t.Context(), uri(t, fmt.Sprintf("kbs:///kept/n/%d", i)), secret.New(fmt.Appendf(nil, "content %d", i))))
	}
	d, _ := digest(t, document)
	s.must(a.Bind(t.Context(), admin.Binding{Resource: "+pki", InitData: d}), a.Bind(t.Context(), admin.Binding{Resource: "kept", InitData: d}))
	_, err := a.SetPolicy(t.Context(), admin.PolicyResource, "open", "package policy\nallow := true\n")
	s.must(err)
	guest := s.good("")
	ca, err := guest.Resource(t.Context(), uri(t, "kbs+pki:///ca"))
	s.must(err)
	point, err := a.MakeCheckpoint(t.Context())
	s.must(err)

	// Online: writes go on, and the copy is of one moment.
	ctx, stop := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	var written atomic.Int64
	for w := range 2 {
		writers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				for _, name := range []string{"first", "second"} {
					if err := a.SetResource(ctx, uri(t, fmt.Sprintf("kbs:///load/w%d/%s", w, name)), secret.New(fmt.Appendf(nil, "%d", i))); err != nil && ctx.Err() == nil {
						t.Error(err)
					}
				}
				written.Add(1)
			}
		})
	}
	eventually(t, "there is load", func() bool { return written.Load() > 5 })
	file := filepath.Join(dir, "backup")
	toml := filepath.Join(dir, "trustee.toml")
	if out, err := run(t, the.plain, "backup", "--config", toml, file); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var online bytes.Buffer
	_, err = a.Backup(t.Context(), &online)
	s.must(err)
	stop()
	writers.Wait()
	token := guest.HeldToken()
	s.stop()
	if out, err := run(t, the.plain, "backup", "--config", toml, file); err == nil || !strings.Contains(out, "exists") {
		t.Errorf("over another backup: %v\n%s", err, out)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}

	// Into PostgreSQL, with the key-encryption key and nothing else.
	next := t.TempDir()
	if err := os.Mkdir(filepath.Join(next, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	kek, err := os.ReadFile(filepath.Join(dir, "state", "kek.hex"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(next, "url"), url+"\n")
	write(t, filepath.Join(next, "state", "kek.hex"), string(kek))
	extra := "storage.database.url_file = \"url\"\n" + pkiConfig
	toml = configure(t, next, extra)

	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	altered := bytes.Clone(whole)
	altered[len(altered)/2] ^= 1
	bad := filepath.Join(next, "bad")
	for what, b := range map[string][]byte{"cut off": whole[:len(whole)/2], "altered": altered, "empty": nil, "something else": []byte("PK\x03\x04")} {
		write(t, bad, string(b))
		if out, err := run(t, the.plain, "restore", "--config", toml, bad); err == nil {
			t.Errorf("%s: restored\n%s", what, out)
		}
	}
	if out, err := run(t, the.plain, "restore", "--config", toml, file); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := run(t, the.plain, "restore", "--config", toml, file); err == nil || !strings.Contains(out, "empty") {
		t.Errorf("over a database with content: %v\n%s", err, out)
	}
	other := t.TempDir()
	if err := os.Mkdir(filepath.Join(other, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(other, "state", "kek.hex"), strings.Repeat("07", 32)+"\n")
	if out, err := run(t, the.plain, "restore", "--config", configure(t, other, ""), file); err == nil || !strings.Contains(out, "key") {
		t.Errorf("under another key: %v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(other, "state", "trustee.db")); err == nil {
		t.Error("a refused restore leaves a database")
	}

	old := s
	s = launch(t, the.plain, next, extra)
	// Clients pin the same authority, administrators have the same key, and
	// the tokens of before are good.
	if !bytes.Equal(old.root, s.root) || !bytes.Equal(old.key, s.key) {
		t.Error("another authority or another administrator's key")
	}
	if x := s.do(s.http(), "GET", "/kbs/v0/resource/demo/key/1", token, ""); x.status != http.StatusOK {
		t.Errorf("a token of before: %d %s", x.status, x.body)
	}
	s.check("")
	s.check("acme")
	guest = s.good("")
	for i := range kept {
		v, err := guest.Resource(t.Context(), uri(t, fmt.Sprintf("kbs:///kept/n/%d", i)))
		if err != nil || string(v.Expose()) != fmt.Sprintf("content %d", i) {
			t.Errorf("%d: %q, %v", i, v.Expose(), err)
		}
	}
	_, err = guest.Resource(t.Context(), uri(t, "kbs:///open/a/b"))
	refused(t, err, http.StatusNotFound, "open/a/b")
	v, err := guest.Resource(t.Context(), uri(t, "kbs+pki:///ca"))
	s.must(err)
	if string(v.Expose()) != string(ca.Expose()) {
		t.Error("another authority of certificates")
	}
	a = s.admin("")
	status, err := a.Status(t.Context())
	s.must(err)
	if status.Database != "postgresql" {
		t.Errorf("%+v", status)
	}
	if r := s.auditChain("", point.JWS); r.Pinned != 1 || r.Entries < kept+10 {
		t.Errorf("%+v", r)
	}
	s.auditChain("acme")
	// And back: the backup by the API, into a file.
	s.stop()
	back := t.TempDir()
	if err := os.Mkdir(filepath.Join(back, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(back, "state", "kek.hex"), string(kek))
	write(t, filepath.Join(back, "backup"), online.String())
	if out, err := run(t, the.plain, "restore", "--config", configure(t, back, pkiConfig), filepath.Join(back, "backup")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s = launch(t, the.plain, back, pkiConfig)
	s.check("")
	s.auditChain("", point.JWS)
}
