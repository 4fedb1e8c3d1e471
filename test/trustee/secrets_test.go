package tests

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/secret"
)

// forms are the ways in which a secret could be written.
func forms(value string) map[string]string {
	var numbers []string
	for _, b := range []byte(value) {
		numbers = append(numbers, strconv.Itoa(int(b)))
	}
	return map[string]string{
		"as it is":     value,
		"in hex":       hex.EncodeToString([]byte(value)),
		"in base64":    strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(value)), "="),
		"in base64url": base64.RawURLEncoding.EncodeToString([]byte(value)),
		"as numbers":   strings.Join(numbers, " "),
		"as JSON":      strings.Join(numbers, ","),
	}
}

// TestNoSecrets looks for what was told the trustee in confidence in
// everything that leaves it or that it keeps.
func TestNoSecrets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "webhook.key"), webhookSecret)
	write(t, filepath.Join(dir, "headers"), "authorization: Bearer the-collectors-secret-99\n")
	s := embed(t, dir, `tracing.headers_file = "headers"
tracing.endpoint = "http://127.0.0.1:1"
`+pkiConfig+`
[[webhook]]
name = "alerts"
url = "http://127.0.0.1:1/hook"
secret_file = "webhook.key"
tenant = "*"
`)
	kek, err := os.ReadFile(filepath.Join(dir, "state", "kek.hex"))
	s.must(err)
	rawKEK, err := hex.DecodeString(strings.TrimSpace(string(kek)))
	s.must(err)
	a := s.populate("")
	d, _ := digest(t, document)
	s.must(a.Bind(t.Context(), admin.Binding{Resource: "+pki", InitData: d}))

	plain := s.http()
	bodies := &strings.Builder{}
	fail := func(method, path, bearer, body string) {
		x := s.do(plain, method, path, bearer, body)
		if x.status < 400 {
			t.Errorf("%s %s: %d", method, path, x.status)
		}
		bodies.WriteString(x.body + "\n")
	}
	admin1 := adminToken(t, s)
	guest := s.good("")
	_, err = guest.Resource(t.Context(), uri(t, "kbs:///demo/key/1"))
	s.must(err)
	v, err := guest.Resource(t.Context(), uri(t, "kbs+pki:///issue/web"))
	s.must(err)
	var cert issued
	s.must(json.Unmarshal(v.Expose(), &cert))
	// A handshake by hand, for its cookie and nonce.
	x := s.do(plain, "POST", "/kbs/v0/auth", "", `{"version":"0.4.0","tee":"snp","extra-params":""}`)
	cookie := (&http.Response{Header: x.header}).Cookies()[0].Value
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/kbs/v0/attest", strings.NewReader(`{"oops":"`+content+`"}`))
	s.must(err)
	req.AddCookie(&http.Cookie{Name: kbs.SessionCookie, Value: cookie})
	resp, err := plain.Do(req)
	s.must(err)
	b, err := io.ReadAll(resp.Body)
	s.must(err, resp.Body.Close())
	bodies.Write(b)

	fail("POST", "/kbs/v0/resource/demo/key", admin1, content)
	fail("POST", "/kbs/v0/resource/../../x", admin1, content)
	fail("POST", "/kbs/v0/resource/demo/key/1", guest.HeldToken(), content)
	fail("POST", "/kbs/v0/reference-value", admin1, `{"type":"sample","payload":"`+content+`"}`)
	fail("PUT", "/admin/v1/bindings", admin1, `{"secret":"`+content+`"}`)
	fail("GET", "/kbs/v0/resource/demo/key/1", admin1, "")
	fail("GET", "/kbs/v0/resource/demo/key/1", guest.HeldToken()+"x", "")
	fail("GET", "/admin/v1/whoami", guest.HeldToken(), "")
	fail("GET", "/kbs/v0/resource/demo/key/1?token="+guest.HeldToken()[:64], admin1, "")
	fail("POST", "/kbs/v0/attest", "", content)
	fail("POST", "/kbs/v0/auth", "", content)
	fail("GET", "/kbs/v0/pki/issue/other", guest.HeldToken(), "")
	s.must(a.SetResource(t.Context(), uri(t, "kbs:///demo/key/2"), secret.New([]byte(content))), a.DeleteResource(t.Context(), uri(t, "kbs:///demo/key/2")))

	var backup bytes.Buffer
	_, err = a.Backup(t.Context(), &backup)
	s.must(err)
	z, err := gzip.NewReader(&backup)
	s.must(err)
	lines, err := io.ReadAll(z)
	s.must(err)
	entries, err := a.AuditFrom(t.Context(), 0, 1000)
	s.must(err)
	var records strings.Builder
	for _, e := range entries {
		records.Write(e.Body)
	}
	_, metrics := s.scrape()
	s.stop()

	secrets := map[string]string{
		"the resource": content, "the key-encryption key": string(rawKEK), "the webhook's secret": webhookSecret, "the collector's": "the-collectors-secret-99",
		"an administrator's token": strings.Split(admin1, ".")[2], "a guest's token": strings.Split(guest.HeldToken(), ".")[2], "a cookie": cookie,
		"an issued key": strings.Split(cert.PrivateKey, "\n")[1], "the administrator's key": string(s.key.Seed()),
	}
	places := map[string]string{"the log": s.log.String(), "the audit log": records.String(), "metrics": metrics, "the backup": string(lines), "error bodies": bodies.String()}
	s.must(filepath.WalkDir(filepath.Join(dir, "state"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.HasPrefix(d.Name(), "trustee.db") {
			var b []byte
			b, err = os.ReadFile(path)
			places[d.Name()] = string(b)
		}
		return err
	}))
	if len(places["the log"]) < 1000 || len(places["trustee.db"]) < 1000 || !strings.Contains(places["the audit log"], "kbs:///demo/key/1") || len(places["the backup"]) < 1000 {
		t.Fatal("there is nothing to look into")
	}
	for place, text := range places {
		for what, value := range secrets {
			for how, f := range forms(value) {
				if strings.Contains(text, f) {
					i := strings.Index(text, f)
					t.Errorf("%s holds %s %s: …%q", place, what, how, text[max(0, i-200):i])
				}
			}
		}
	}
}
