package verifiers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/trustee/config"
	"github.com/coffer-project/coffer/tee"
)

func TestNew(t *testing.T) {
	t.Parallel()
	c := config.Default().TEE
	v, err := New(c, time.Now)
	if err != nil || len(v) != 1 || v[tee.SNP].TEE() != tee.SNP {
		t.Fatalf("%v, %v", v, err)
	}
	c.Sample.Enabled, c.SNP.KDS, c.SNP.CheckRevocation = true, true, true
	c.SNP.MinimumTCB = map[string]config.TCB{"Milan": {SNP: 8}, "Turin": {FMC: 1}}
	if v, err = New(c, time.Now); err != nil || len(v) != 2 {
		t.Errorf("%v, %v", v, err)
	}
	bad := filepath.Join(t.TempDir(), "bad.pem")
	if err := os.WriteFile(bad, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{bad, bad + ".missing"} {
		c.SNP.DevelopmentRoots = []string{file}
		if _, err := New(c, time.Now); err == nil || !strings.Contains(err.Error(), "tee.snp") {
			t.Errorf("%s: %v", file, err)
		}
	}
}
