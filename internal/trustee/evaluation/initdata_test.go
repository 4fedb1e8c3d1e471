package evaluation

import (
	"bytes"
	"testing"

	"github.com/coffer-project/coffer/internal/trustee/appraisal"
	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/tpm"
)

func TestInitDataOfTPMs(t *testing.T) {
	t.Parallel()
	digest := bytes.Repeat([]byte{0xD1}, 32)
	register := tpm.Extended([32]byte(digest))
	for name, c := range map[string]struct {
		tee    tee.Name
		field  []byte
		digest []byte
		good   bool
	}{
		"TPM":          {tee.TPM, register[:], digest, true},
		"Azure, SNP":   {tee.AzureSNPVTPM, register[:], digest, true},
		"Azure, TDX":   {tee.AzureTDXVTPM, register[:], digest, true},
		"SNP":          {tee.SNP, register[:], digest, false},
		"SNP, plain":   {tee.SNP, digest, digest, true},
		"not bound":    {tee.TPM, make([]byte, 32), digest, false},
		"other digest": {tee.TPM, register[:], make([]byte, 32), false},
		"long digest":  {tee.TPM, register[:], append(bytes.Clone(digest), 0), false},
		"not quoted":   {tee.TPM, nil, digest, false},
	} {
		parts := []appraisal.Part{{Result: &tee.Result{TEE: c.tee, InitData: c.field}}}
		if p := checkInitData(parts, []*InitData{{Digest: c.digest}}); (p == nil) != c.good {
			t.Errorf("%s: %v", name, p)
		}
	}
}
