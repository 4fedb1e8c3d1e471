package restapi_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coffer-project/coffer/kbs"
)

// TestFaults is what the trustee and the way to it may do wrong.
func TestFaults(t *testing.T) {
	t.Parallel()
	isResource := func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/kbs/v0/resource/") }
	respond := func(text string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if isResource(r) {
				w.Header().Set("Content-Length", fmt.Sprint(len(text)))
				_, _ = io.WriteString(w, text)
			}
			return isResource(r)
		}
	}
	b64 := base64.RawURLEncoding.EncodeToString
	head := func(alg, enc string) string {
		return b64(fmt.Appendf(nil, `{"alg":%q,"enc":%q,"epk":{"crv":"P-256","kty":"EC","x":"AA","y":"AA"}}`, alg, enc))
	}
	jwe := func(protected string) string {
		return fmt.Sprintf(`{"protected":%q,"encrypted_key":%q,"iv":%q,"ciphertext":"AA","tag":%q}`, protected, b64(make([]byte, 40)), b64(make([]byte, 12)), b64(make([]byte, 16)))
	}
	past := func(o *kbs.ClientOptions) { o.Now = func() time.Time { return time.Now().Add(-24 * time.Hour) } }
	dated := fmt.Sprintf(`{"iat":%[1]d,"nbf":%[1]d,"exp":%[2]d}`, time.Now().Unix(), time.Now().Add(time.Hour).Unix())
	for name, tt := range map[string]struct {
		answer       func(http.ResponseWriter, *http.Request) bool
		change       func(*kbs.ClientOptions)
		path, want   string
		attestations int
	}{
		"oversized resource":       {respond(strings.Repeat("x", kbs.MaxResponseBytes+1)), nil, password, "bytes, the limit is", 1},
		"oversized, in chunks":     {chunked, nil, password, "answer has more than", 1},
		"cut short":                {cutShort, nil, password, "unexpected EOF", 1},
		"401 loop":                 {always401, nil, password, "401 Unauthorized: attest first", 2},
		"malformed JWE, no JSON":   {respond("<html>"), nil, password, "kbs: response", 1},
		"malformed JWE, empty":     {respond("{}"), nil, password, `member "protected" is missing`, 1},
		"malformed JWE, header":    {respond(jwe("!")), nil, password, "expected unpadded base64url", 1},
		"malformed JWE, alg":       {respond(jwe(head("dir", "A256GCM"))), nil, password, `expected "ECDH-ES+A256KW", got "dir"`, 1},
		"malformed JWE, enc":       {respond(jwe(head("ECDH-ES+A256KW", "A128CBC-HS256"))), nil, password, `expected "A256GCM"`, 1},
		"malformed JWE, point":     {respond(jwe(head("ECDH-ES+A256KW", "A256GCM"))), nil, password, "expected unpadded base64url of exactly 32 bytes", 1},
		"slow trustee":             {slow, func(o *kbs.ClientOptions) { o.RequestTimeout = 5 * time.Second }, password, "no complete answer within 5s", 1},
		"refused evidence":         {refuseEvidence, nil, password, "attestation: kbs: POST /kbs/v0/attest: 403 Forbidden: measurement unknown", 1},
		"clock in the past, token": {nil, past, "/aa/token?token_type=kbs", "not valid before", 1},
		"clock in the past":        {nil, func(o *kbs.ClientOptions) { o.Now = func() time.Time { return time.Unix(-86400, 0) } }, password, "not yet valid", 0},
		"token type":               {nil, nil, "/aa/token?token_type=jwt", "expected kbs or coco_as", 0},
		"no attestation service":   {nil, nil, "/aa/token?token_type=coco_as", "names no attestation service", 0},
		"long runtime data":        {nil, nil, "/aa/evidence?runtime_data=" + strings.Repeat("x", 65), "evidence holds at most 64", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := newTrustee(t)
			tr.answer, tr.claims = tt.answer, dated
			s := start(t, tr, quiet(), tt.change)
			status, got := s.get(t, tt.path)
			if status != 500 || !strings.Contains(got, tt.want) || strings.Contains(got, value) {
				t.Errorf("got %d %s, want %q", status, got, tt.want)
			}
			if n := tr.count(kbs.AttestPath); n != tt.attestations {
				t.Errorf("%d attestations, want %d", n, tt.attestations)
			}
		})
	}
}

func chunked(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path == kbs.AuthPath || r.URL.Path == kbs.AttestPath {
		return false
	}
	for range kbs.MaxResponseBytes/(64<<10) + 1 {
		_, _ = io.WriteString(w, strings.Repeat("x", 64<<10))
		_ = http.NewResponseController(w).Flush()
	}
	return true
}

func cutShort(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path == kbs.AuthPath || r.URL.Path == kbs.AttestPath {
		return false
	}
	w.Header().Set("Content-Length", "1000")
	_, _ = io.WriteString(w, "{")
	return true
}

func always401(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path == kbs.AuthPath || r.URL.Path == kbs.AttestPath {
		return false
	}
	refuse(w, http.StatusUnauthorized, "TokenNotFound", "attest first")
	return true
}

func slow(_ http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path == kbs.AuthPath || r.URL.Path == kbs.AttestPath {
		return false
	}
	<-r.Context().Done()
	return true
}

func refuseEvidence(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path != kbs.AttestPath {
		return false
	}
	refuse(w, http.StatusForbidden, "AttestationError", "measurement unknown")
	return true
}

// TestTrusteeDown is an answer within the time that the client tries.
func TestTrusteeDown(t *testing.T) {
	t.Parallel()
	tr := newTrustee(t)
	s := start(t, tr, quiet(), nil)
	tr.server.Close()
	status, got := s.get(t, password)
	if status != 500 || !strings.Contains(got, "connection refused") || !strings.Contains(got, "given up after 5 attempts") {
		t.Errorf("got %d %s", status, got)
	}
}

// TestPathTricks reach no resource, and ask the trustee for nothing.
func TestPathTricks(t *testing.T) {
	t.Parallel()
	tr := newTrustee(t)
	tr.resources["/kbs/v0/auth"] = "x"
	s := start(t, tr, quiet(), nil)
	addr := strings.TrimPrefix(s.url, "http://")
	for _, path := range []string{
		"/cdh/resource/shop/db/../db/password", "/cdh/resource/shop/db/password/..", "/cdh/resource/../auth", "/cdh/resource/shop%2fdb%2fpassword",
		"/cdh/resource/shop/db%2Fpassword", "/cdh/resource/%2e%2e/db/password", "/cdh/resource/shop/db/pass%77ord", "/cdh/resource//shop/db/password",
		"/cdh/resource/shop/db/password/", "/cdh/resource/shop/db/password/extra", "/cdh/resource/shop/db", "/cdh/resource/", "/cdh/resource/shop/./password",
		"/cdh/resource/shop/db/password%00", "/cdh/resource/shop/db/password%0d%0aX:%20y", "/cdh/resource/shop\\db\\password/x/y", "/cdh/resource/shop/db/password%3Fx=y",
		"/cdh/resource/shop/db/password%23", "/cdh/../cdh/resource/shop/db/password", "/./cdh/resource/shop/db/password", "//cdh/resource/shop/db/password",
		"/cdh//resource/shop/db/password", "/cdh/resource/" + strings.Repeat("a", 256) + "/b/c", "/cdh/resource/shop/db/p%C3%A4ss",
	} {
		c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		out, _ := io.ReadAll(c)
		_ = c.Close()
		text := string(out)
		if !strings.HasPrefix(text, "HTTP/1.1 500 ") && !strings.HasPrefix(text, "HTTP/1.1 404 ") || strings.Contains(text, value) {
			t.Errorf("%s: %.200s", path, text)
		}
	}
	if n := tr.count(""); n != 0 {
		t.Errorf("the trustee was asked %d times", n)
	}
}
