package tests

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// TestFullDisk: what cannot be written is refused, what cannot be recorded is
// not released, and with room again everything works.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	state := filepath.Join(dir, "small")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", state, "tmpfs", 0, "size=4m,mode=0700"); err != nil {
		t.Skipf("a small file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(state, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := embed(t, dir, "state_dir = \"small\"\n")
	a := s.populate("")
	guest := s.good("")
	s.must(guest.Attest(t.Context()))
	before := granted(s, a)

	filler, err := os.Create(filepath.Join(state, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 4096)
	for {
		if _, err := filler.Write(block); err != nil {
			break
		}
	}
	_ = filler.Close()
	// The log that SQLite writes ahead has some room of its own.
	stored := 0
	for i := 0; ; i++ {
		if i == 2000 {
			t.Fatal("the disk does not get full")
		}
		err := a.SetResource(t.Context(), uri(t, fmt.Sprintf("kbs:///fill/n/%d", i)), secret.New(make([]byte, 8<<10)))
		if err == nil {
			stored++
			continue
		}
		if e := asStatus(err); e == nil || e.Status < 500 || e.Info.Detail == "" || strings.Contains(e.Info.Detail, state) {
			t.Fatalf("set: %v", err)
		}
		break
	}
	// A record is smaller than a resource: these, too, come to an end.
	plain := s.http()
	released := 0
	for i := 0; ; i++ {
		if i == 2000 {
			t.Fatal("records find room for ever")
		}
		x := s.do(plain, "GET", "/kbs/v0/resource/demo/key/1", guest.HeldToken(), "")
		if x.status == http.StatusOK {
			released++
			continue
		}
		if x.status < 500 || !strings.Contains(x.body, `"type"`) || strings.Contains(x.body, "ciphertext") {
			t.Fatalf("get: %d %s", x.status, x.body)
		}
		break
	}
	if x := s.do(plain, "GET", "/healthz", "", ""); x.status != http.StatusOK {
		t.Errorf("healthz: %d", x.status)
	}
	refused(t, s.good("").Attest(t.Context()), http.StatusServiceUnavailable, "")
	if x := s.do(plain, "GET", "/admin/v1/resources", adminToken(t, s), ""); x.status != http.StatusOK {
		t.Errorf("reading: %d %s", x.status, x.body)
	}

	if err := os.Remove(filepath.Join(state, "filler")); err != nil {
		t.Fatal(err)
	}
	s.must(a.SetResource(t.Context(), uri(t, "kbs:///fill/n/last"), secret.New([]byte("x"))))
	s.check("")
	list, err := a.ResourceInfos(t.Context(), "fill")
	s.must(err)
	if len(list) != stored+1 {
		t.Errorf("%d resources; want the %d that were acknowledged", len(list), stored+1)
	}
	if n := granted(s, a); n != before+released+1 {
		t.Errorf("%d releases are recorded; want %d", n, before+released+1)
	}
	s.auditChain("")
}

// granted counts the recorded releases.
func granted(s *site, a *admin.Client) int {
	s.t.Helper()
	n := 0
	for after := int64(0); ; {
		page, err := a.AuditFrom(s.t.Context(), after, 1000)
		s.must(err)
		if len(page) == 0 {
			return n
		}
		for _, e := range page {
			r, err := e.Record()
			s.must(err)
			if r.Kind == admin.KindResource && r.Granted {
				n++
			}
		}
		after = page[len(page)-1].Seq
	}
}
