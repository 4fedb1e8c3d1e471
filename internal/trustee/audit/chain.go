package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"

	"github.com/coffer-project/coffer/internal/trustee/tenant"
)

// Genesis is the Previous of a chain's first entry.
const Genesis = "0000000000000000000000000000000000000000000000000000000000000000"

// Hash is the hash of an entry, in hex: SHA-256 over the domain
// "coffer-audit/v1", the tenant, the sequence number in decimal, the
// predecessor's hash in hex and the record's JSON, with a newline after each
// but the last. None but the last can hold a newline.
func Hash(t tenant.Name, seq int64, previous string, body []byte) string {
	h := sha256.New()
	h.Write([]byte("coffer-audit/v1\n" + string(t) + "\n" + strconv.FormatInt(seq, 10) + "\n" + previous + "\n"))
	h.Write(body)
	return hex.EncodeToString(h.Sum(nil))
}
