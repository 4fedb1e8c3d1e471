package tests

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
)

// TestLargeToken: the token of a guest with eight GPUs and four switches, of
// another attestation service, releases a resource.
func TestLargeToken(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "as-1", Algorithm: "ES256", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "as.json"), string(set))
	s := launch(t, the.plain, dir, "[[token.trusted]]\nissuer = \"CoCo-Attestation-Service\"\njwks = \"as.json\"\n")
	a := s.populate("")
	_, err = a.SetPolicy(t.Context(), admin.PolicyResource, "demo", `package policy
default allow := false
allow if {
	count(input.submods) == 13
	every x in input.submods { x["ear.status"] == "affirming" }
}
`)
	s.must(err)
	guest, err := kbs.GenerateTEEKey(rand.Reader)
	s.must(err)
	submod := func(evidence map[string]any) map[string]any {
		return map[string]any{
			"ear.status": "affirming", "ear.appraisal-policy-id": "default", "ear.trustworthiness-vector": map[string]int{"hardware": 2, "executables": 3},
			"ear.veraison.annotated-evidence": evidence,
		}
	}
	submods := map[string]any{"cpu0": submod(map[string]any{"tdx": map[string]any{}, "runtime_data_claims": map[string]any{"nonce": "x", "tee-pubkey": guest.Public()}})}
	measurements := map[string]string{}
	for i := range 64 {
		measurements[fmt.Sprint(i)] = strings.Repeat("ab", 48)
	}
	for i := range 8 {
		submods[fmt.Sprintf("gpu%d", i)] = submod(map[string]any{"nvidia": map[string]any{"measurements": measurements, "config": strings.Repeat("c", 6000)}})
	}
	for i := range 4 {
		submods[fmt.Sprintf("switch%d", i)] = submod(map[string]any{"nvidia": map[string]any{"measurements": measurements}})
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "as-1"}}, (&jose.SignerOptions{}).WithType("JWT"))
	s.must(err)
	sign := func(change func(map[string]any)) string {
		c := map[string]any{
			"eat_profile": "tag:github.com,2024:confidential-containers/Trustee", "iss": "CoCo-Attestation-Service",
			"iat": time.Now().Unix(), "exp": time.Now().Add(5 * time.Minute).Unix(), "submods": submods,
			"ear.verifier-id": map[string]string{"developer": "x", "build": "y"},
		}
		change(c)
		token, err := jwt.Signed(signer).Claims(c).Serialize()
		s.must(err)
		return token
	}
	token := sign(func(map[string]any) {})
	if len(token) < 170<<10 || len(token) > 256<<10 {
		t.Fatalf("the token has %d bytes", len(token))
	}
	one := s.http(func(c *tls.Config) { c.NextProtos = []string{"http/1.1"} })
	for name, c := range map[string]*http.Client{"HTTP/1.1": one, "negotiated": s.http()} {
		x := s.do(c, "GET", "/kbs/v0/resource/demo/key/1", token, "")
		if x.status != http.StatusOK {
			t.Fatalf("%s: %d %.500s", name, x.status, x.body)
		}
		r, err := kbs.ParseResponse([]byte(x.body))
		s.must(err)
		v, err := guest.Decrypt(*r)
		if err != nil || string(v.Expose()) != content {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The record of the release has what it takes to replay it, or says what is missing.
	list, err := a.Audit(t.Context(), admin.AuditQuery{Kind: admin.KindResource, Limit: 1})
	s.must(err)
	if len(list) != 1 || len(list[0].Body) > 256<<10 {
		t.Errorf("%d records", len(list))
	}

	for name, bad := range map[string]string{
		"expired":         sign(func(c map[string]any) { c["exp"] = time.Now().Add(-time.Hour).Unix() }),
		"no expiry":       sign(func(c map[string]any) { delete(c, "exp") }),
		"another issuer":  sign(func(c map[string]any) { c["iss"] = "someone" }),
		"our own issuer":  sign(func(c map[string]any) { c["iss"] = "coffer-trustee" }),
		"cut off":         token[:len(token)-8],
		"alg none":        "eyJhbGciOiJub25lIn0." + strings.Split(token, ".")[1] + ".",
		"too large":       token + strings.Repeat("A", 400<<10),
		"nothing but dot": "..",
	} {
		if x := s.do(s.http(), "GET", "/kbs/v0/resource/demo/key/1", bad, ""); x.status != http.StatusUnauthorized {
			t.Errorf("%s: %d %.300s", name, x.status, x.body)
		}
	}
	// Beyond the limit of headers: 431, and the server lives.
	conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: roots(s.root), MinVersion: tls.VersionTLS13}}).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.url, "https://"))
	s.must(err)
	defer func() { _ = conn.Close() }()
	go func() {
		_, _ = fmt.Fprintf(conn, "GET /kbs/v0/resource/a/b/c HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", strings.Repeat("A", 2<<20))
	}()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if !strings.Contains(line, "431") {
		t.Errorf("2 MiB of header: %q, %v", line, err)
	}
	s.must(s.good("").Attest(t.Context()))
}
