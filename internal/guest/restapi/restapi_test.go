package restapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/tee"
)

// fakes answer with what they were asked.
type fakeHub struct{ err error }

func (h fakeHub) Resource(_ context.Context, uri string) (secret.Bytes, error) {
	return secret.New([]byte("resource " + uri)), h.err
}

func (h fakeHub) Token(_ context.Context, kind string) (secret.Bytes, error) {
	if kind != "kbs" && kind != "coco_as" {
		return secret.Bytes{}, fmt.Errorf("token type %q: expected kbs or coco_as", kind)
	}
	return secret.New([]byte("token " + kind)), h.err
}

type fakeEvidence struct{ err error }

func (e fakeEvidence) Evidence(_ context.Context, data []byte) ([]byte, error) {
	return fmt.Appendf(nil, "evidence %q", data), e.err
}

func (e fakeEvidence) AdditionalEvidence(_ context.Context, data []byte) ([]byte, error) {
	if len(data) == 0 {
		return nil, e.err
	}
	return fmt.Appendf(nil, "additional %q", data), e.err
}

type fakeRecorder struct{ err error }

func (r fakeRecorder) Record(_ context.Context, domain, operation, content string) error {
	if r.err == nil && (domain != "d" || operation != "o" || content != "c \n") {
		return fmt.Errorf("got %q %q %q", domain, operation, content)
	}
	return r.err
}

func server(t testing.TB, features string, err error) *Server {
	t.Helper()
	f, perr := ParseFeatures(features)
	if perr != nil {
		t.Fatal(perr)
	}
	s, serr := New(Options{
		Version: "1.2.3", Features: f, Hub: fakeHub{err}, Evidencer: fakeEvidence{err}, Recorder: fakeRecorder{err},
		TEE: "snp", Devices: []string{"nvidia"}, Logger: slog.New(slog.DiscardHandler),
	})
	if serr != nil {
		t.Fatal(serr)
	}
	return s
}

// ask sends a request as a peer would.
func ask(s *Server, peer, method, target, body string) (status int, kind, text string) {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.RemoteAddr = peer
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w.Code, w.Header().Get("Content-Type"), w.Body.String()
}

const (
	local  = "127.0.0.1:4711"
	octet  = "application/octet-stream"
	isJSON = "application/json"
	event1 = `{"domain":"d","operation":"o","content":"c \n"}`
)

// TestTable is the interface as it is specified, row by row.
func TestTable(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		features, method, target, body string
		status                         int
		kind, want                     string
	}{
		{"all", "GET", "/info", "", 200, isJSON, `{"version":"Guest Components Version: 1.2.3","tee":"snp","additional_tees":["nvidia"],"feature":"all"}`},
		{"attestation", "GET", "/info?x=y", "", 200, isJSON, `{"version":"Guest Components Version: 1.2.3","tee":"snp","additional_tees":["nvidia"],"feature":"attestation"}`},
		{"resource", "GET", "/info", "", 200, isJSON, `{"version":"Guest Components Version: 1.2.3","feature":"resource"}`},
		{"", "GET", "/info", "", 200, isJSON, `{"version":"Guest Components Version: 1.2.3","feature":"resource"}`},
		{"all", "POST", "/info", "", 405, "", "Method Not Allowed"},
		{"none", "DELETE", "/info", "", 405, "", "Method Not Allowed"},
		{"all", "GET", "/info/", "", 404, "", "URL NOT FOUND"},

		{"all", "GET", "/aa/token?token_type=kbs", "", 200, octet, "token kbs"},
		{"attestation", "GET", "/aa/token?token_type=coco_as&x=1", "", 200, octet, "token coco_as"},
		{"all", "GET", "/aa/token?token_type=x&token_type=kbs", "", 200, octet, "token kbs"},
		{"all", "GET", "/aa/token", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/token?Token_Type=kbs", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/token?token_type=", "", 500, "", `token type "": expected kbs or coco_as`},
		{"all", "GET", "/aa/token?token_type=jwt", "", 500, "", `token type "jwt": expected kbs or coco_as`},
		{"all", "POST", "/aa/token?token_type=kbs", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/aa/token/?token_type=kbs", "", 404, "", "URL NOT FOUND"},
		{"resource", "GET", "/aa/token?token_type=kbs", "", 404, "", "Attestation Feature Not Enabled"},
		{"none", "GET", "/aa/token", "", 404, "", "Attestation Feature Not Enabled"},

		{"all", "GET", "/aa/evidence?runtime_data=hello", "", 200, octet, `evidence "hello"`},
		{"all", "GET", "/aa/evidence?runtime_data=a+b%21;%zz", "", 200, octet, `evidence "a b%21;%zz"`},
		{"all", "GET", "/aa/evidence?runtime_data=a+b%21", "", 200, octet, `evidence "a b!"`},
		{"all", "GET", "/aa/evidence?runtime_data=", "", 200, octet, `evidence ""`},
		{"all", "GET", "/aa/evidence?runtime_data=%ff", "", 200, octet, `evidence "�"`},
		{"all", "GET", "/aa/evidence?runtime_data=__-_&encoding=base64", "", 200, octet, `evidence "\xff\xff\xbf"`},
		{"all", "GET", "/aa/evidence?runtime_data=cmVwb3J0&encoding=base64", "", 200, octet, `evidence "report"`},
		{"all", "GET", "/aa/evidence?runtime_data=!!!&encoding=base64", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/evidence?runtime_data=AA%3D%3D&encoding=base64", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/evidence?runtime_data=AB&encoding=base64", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/evidence?runtime_data=AAAA%0A&encoding=base64", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/evidence?runtime_data=00&encoding=hex", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/evidence?runtime_data=00&encoding=", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/evidence", "", 400, "", "BAD REQUEST"},
		{"all", "POST", "/aa/evidence?runtime_data=x", "", 404, "", "URL NOT FOUND"},
		{"resource", "GET", "/aa/evidence?runtime_data=x", "", 404, "", "Attestation Feature Not Enabled"},

		{"all", "GET", "/aa/additional-evidence?runtime_data=x", "", 200, octet, `additional "x"`},
		{"all", "GET", "/aa/additional-evidence?runtime_data=eA&encoding=base64", "", 200, octet, `additional "x"`},
		{"all", "GET", "/aa/additional-evidence?runtime_data=", "", 200, octet, ""},
		{"all", "GET", "/aa/additional-evidence", "", 400, "", "BAD REQUEST"},
		{"all", "GET", "/aa/additional-evidence?runtime_data=x&encoding=base32", "", 400, "", "BAD REQUEST"},
		{"all", "PUT", "/aa/additional-evidence?runtime_data=x", "", 404, "", "URL NOT FOUND"},

		{"all", "POST", "/aa/aael", event1, 200, isJSON, `{"success":"true"}`},
		{"all", "POST", "/aa/aael", `{"more":[1],` + event1[1:], 200, isJSON, `{"success":"true"}`},
		{"all", "POST", "/aa/aael", "", 500, "", "Illegal AAEL event format: JSON document, byte 0: the document ends where a value should be"},
		{"all", "POST", "/aa/aael", `{"domain":"d","operation":"o"}`, 500, "", `Illegal AAEL event format: member "content": expected a string`},
		{"all", "POST", "/aa/aael", `{"domain":"d","operation":"o","content":null}`, 500, "", `Illegal AAEL event format: member "content": expected a string`},
		{"all", "POST", "/aa/aael", strings.Repeat(" ", maxBody+1), 500, "", "Illegal AAEL event format: more than 65536 bytes"},
		{"all", "GET", "/aa/aael", "", 404, "", "URL NOT FOUND"},
		{"resource", "POST", "/aa/aael", event1, 404, "", "Attestation Feature Not Enabled"},

		{"all", "GET", "/cdh/resource/repo/type/tag", "", 200, octet, "resource kbs:///repo/type/tag"},
		{"resource", "GET", "/cdh/resource/repo/type/tag?version=1", "", 200, octet, "resource kbs:///repo/type/tag"},
		{"all", "DELETE", "/cdh/resource/repo/type/tag", "", 200, octet, "resource kbs:///repo/type/tag"},
		{"all", "POST", "/cdh/resource/repo/type/tag", "a body", 200, octet, "resource kbs:///repo/type/tag"},
		{"all", "BREW", "/cdh/resource/repo/type/tag", "", 200, octet, "resource kbs:///repo/type/tag"},
		{"all", "GET", "/cdh/resource/a/b/c/d", "", 200, octet, "resource kbs:///a/b/c/d"}, // the hub refuses it
		{"all", "GET", "/cdh/resource/", "", 200, octet, "resource kbs:///"},               // and this
		{"all", "GET", "/cdh/resource", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/cdh/resources/a/b/c", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/cdh/plugin/a/b/c", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/cdh/", "", 404, "", "URL NOT FOUND"},
		{"attestation", "GET", "/cdh/resource/a/b/c", "", 404, "", "Resource Feature Not Enabled"},
		{"none", "GET", "/cdh/resource/a/b/c", "", 404, "", "Resource Feature Not Enabled"},

		{"all", "GET", "/", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/aa", "", 404, "", "URL NOT FOUND"},
		{"none", "GET", "/cdh", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "//aa/token?token_type=kbs", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/AA/token?token_type=kbs", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/%61a/token?token_type=kbs", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/x/../aa/token?token_type=kbs", "", 404, "", "URL NOT FOUND"},
		{"all", "GET", "/kbs/v0/resource/a/b/c", "", 404, "", "URL NOT FOUND"},
	} {
		name := tt.features + " " + tt.method + " " + tt.target
		status, kind, got := ask(server(t, tt.features, nil), local, tt.method, tt.target, tt.body)
		if status != tt.status || kind != tt.kind || got != tt.want {
			t.Errorf("%s: got %d %q %q, want %d %q %q", name, status, kind, got, tt.status, tt.kind, tt.want)
		}
		// Whoever is not on this machine learns nothing, whatever it asks for.
		for _, peer := range []string{"10.0.0.1:80", "[2001:db8::1]:80", "169.254.1.1:1", "", "@"} {
			if status, _, got := ask(server(t, tt.features, nil), peer, tt.method, tt.target, tt.body); status != 403 || got != "Forbidden" {
				t.Errorf("%s from %q: got %d %q", name, peer, status, got)
			}
		}
	}
	if status, _, _ := ask(server(t, "all", nil), "[::1]:80", "GET", "/info", ""); status != 200 {
		t.Errorf("from ::1: %d", status)
	}
}

// TestFailures are 500 with a sentence that explains and steers no terminal.
func TestFailures(t *testing.T) {
	t.Parallel()
	denied := errors.New("resource kbs:///a/b/c: 403: policy says no\x1b[2J\r\nX: y" + strings.Repeat("z", 4000))
	for _, target := range []string{"/cdh/resource/a/b/c", "/aa/token?token_type=kbs", "/aa/evidence?runtime_data=x", "/aa/additional-evidence?runtime_data=x"} {
		status, _, got := ask(server(t, "all", denied), local, "GET", target, "")
		if status != 500 || !strings.HasPrefix(got, "resource kbs:///a/b/c: 403: policy says no [2J  X: yzzz") || len(got) > 2100 || !strings.HasSuffix(got, "…") {
			t.Errorf("%s: got %d %.80q", target, status, got)
		}
	}
	for err, want := range map[error]string{
		fmt.Errorf("tpm: %w", errors.ErrUnsupported): `200 {"success":"false","message": "The platform does not support runtime measurement"}`,
		fmt.Errorf("off: %w", ErrNotEnabled):         `200 {"success":"false","message": "Attestation Agent does not enable eventlog recording"}`,
		errors.New("content: has a line break"):      "500 content: has a line break",
	} {
		status, _, got := ask(server(t, "all", err), local, "POST", "/aa/aael", event1)
		if s := fmt.Sprint(status, " ", got); s != want || status == 200 && !json.Valid([]byte(got)) {
			t.Errorf("got %s, want %s", s, want)
		}
	}
	s, err := New(Options{Features: Features{Attestation: true}, Hub: fakeHub{}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if status, _, got := ask(s, local, "GET", "/aa/evidence?runtime_data=x", ""); status != 500 || got != "this guest has no evidence to give" {
		t.Errorf("got %d %s", status, got)
	}
	if status, _, got := ask(s, local, "POST", "/aa/aael", event1); status != 200 || !strings.Contains(got, "does not enable") {
		t.Errorf("got %d %s", status, got)
	}
}

func TestFeatures(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"none", "resource", "attestation", "all"} {
		if f, err := ParseFeatures(s); err != nil || f.String() != s {
			t.Errorf("%s: got %s, %v", s, f, err)
		}
	}
	if f, err := ParseFeatures(""); err != nil || f.String() != "resource" {
		t.Errorf("got %s, %v", f, err)
	}
	if _, err := ParseFeatures("everything"); err == nil {
		t.Error("accepted")
	}
	if _, err := New(Options{}); err == nil {
		t.Error("a server without a hub")
	}
}

type fakeAttester struct {
	name tee.Name
	doc  string
	err  error
}

func (a fakeAttester) TEE() tee.Name { return a.name }

func (a fakeAttester) Evidence(_ context.Context, data []byte) (json.RawMessage, error) {
	if a.doc == "" {
		return nil, a.err
	}
	return fmt.Appendf(nil, `{%q:%q}`, a.doc, data), a.err
}

func (fakeAttester) InitData(context.Context) ([]byte, error) { return nil, nil }

func TestAttesters(t *testing.T) {
	t.Parallel()
	a := Attesters{Primary: fakeAttester{tee.SNP, "q", nil}, Devices: []tee.Attester{fakeAttester{tee.NVIDIA, "g", nil}, fakeAttester{tee.SampleDevice, "", nil}}}
	if got, err := a.Evidence(t.Context(), []byte("x")); err != nil || string(got) != `{"q":"x"}` {
		t.Errorf("got %s, %v", got, err)
	}
	if got, err := a.AdditionalEvidence(t.Context(), []byte("x")); err != nil || string(got) != `{"nvidia":{"g":"x"}}` {
		t.Errorf("got %s, %v", got, err)
	}
	if got, err := (Attesters{}).AdditionalEvidence(t.Context(), nil); err != nil || len(got) != 0 {
		t.Errorf("got %s, %v", got, err)
	}
	long := make([]byte, 65)
	broken := Attesters{Primary: fakeAttester{tee.SNP, "", errors.New("no")}, Devices: []tee.Attester{fakeAttester{tee.NVIDIA, "", errors.New("no")}}}
	for want, call := range map[string]func() ([]byte, error){
		"65 bytes, evidence holds": func() ([]byte, error) { return a.Evidence(t.Context(), long) },
		"evidence holds at most":   func() ([]byte, error) { return a.AdditionalEvidence(t.Context(), long) },
		"has no TEE":               func() ([]byte, error) { return Attesters{}.Evidence(t.Context(), nil) },
		"snp evidence: no":         func() ([]byte, error) { return broken.Evidence(t.Context(), nil) },
		"nvidia evidence: no":      func() ([]byte, error) { return broken.AdditionalEvidence(t.Context(), nil) },
	} {
		if got, err := call(); err == nil || got != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %s, %v", want, got, err)
		}
	}
}

// slowHub waits for its gate, or its context.
type slowHub struct {
	fakeHub
	begun, gate chan struct{}
}

func (h *slowHub) Resource(ctx context.Context, _ string) (secret.Bytes, error) {
	select {
	case h.begun <- struct{}{}:
	case <-ctx.Done():
	}
	select {
	case <-h.gate:
		return secret.New([]byte("x")), nil
	case <-ctx.Done():
		return secret.Bytes{}, context.Cause(ctx)
	}
}

func FuzzRequests(f *testing.F) {
	f.Add("GET", "/aa/evidence?runtime_data=x&encoding=base64", "")
	f.Add("POST", "/aa/aael", event1)
	f.Add("GET", "/cdh/resource/a/b/c", "")
	f.Fuzz(func(t *testing.T, method, target, body string) {
		r, err := http.NewRequestWithContext(t.Context(), method, "http://127.0.0.1:8006"+target, strings.NewReader(body))
		if err != nil {
			return
		}
		r.RemoteAddr = local
		w := httptest.NewRecorder()
		server(t, "all", nil).ServeHTTP(w, r)
		switch w.Code {
		case 200, 400, 404, 405, 500:
		default:
			t.Fatalf("status %d", w.Code)
		}
	})
}
