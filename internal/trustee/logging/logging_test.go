package logging

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

// Known secrets in every place where a program may put them by mistake. None of
// the markers may show.
const (
	marker  = "hunter2marker"
	jwt     = "eyJhbGciOiJFUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJtYXJrZXIifQ.c2lnbmF0dXJlLW1hcmtlcg"
	jwe     = "eyJhbGciOiJFQ0RILUVTIiwiZW5jIjoiQTI1NkdDTSJ9..aXYtbWFya2Vy.Y2lwaGVydGV4dA.dGFn"
	pemKey  = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIGhNbWFya2VybWFya2VybWFya2Vy\n-----END EC PRIVATE KEY-----\n"
	pemBody = "MHcCAQEEIGhNbWFya2VybWFya2VybWFya2Vy"
	jwk     = `{"kty":"EC","crv":"P-256","x":"pubx","y":"puby","d":"` + marker + `"}`
)

type valuer struct{}

func (valuer) LogValue() slog.Value {
	return slog.GroupValue(slog.String("password", marker), slog.String("user", "alice"))
}

type stringer struct{}

func (stringer) String() string { return "Authorization: Bearer " + jwt }

type config struct {
	Name     string
	Password string            `json:"password"`
	Nested   map[string]any    `json:"nested"`
	Headers  map[string]string `json:"headers"`
	Key      json.RawMessage   `json:"key"`
}

func logEverything(log *slog.Logger) {
	ctx := context.Background()
	for _, key := range []string{
		"authorization", "Authorization", "Set-Cookie", "cookie", "token", "adminToken", "admin_token", "ACCESS_TOKEN", "password",
		"db.password", "secret", "client-secret", "pin", "user_pin", "kek", "kek_hex", "private", "privateKey", "private_key",
		"passphrase", "credential", "credentials", "api_key", "apiKey", "APIKey", "dataKey", "bearer", "plaintext",
	} {
		log.DebugContext(ctx, "by key", key, marker)
		log.DebugContext(ctx, "by key, other types", key, []byte(marker), key, errors.New(marker), key, map[string]string{"a": marker}, key, []string{marker})
		log.With(key, marker).DebugContext(ctx, "with")
		log.WithGroup(key).DebugContext(ctx, "in a group", "innocent", marker)
		log.WithGroup(key).WithGroup("inner").With("x", marker).DebugContext(ctx, "in two groups")
		log.DebugContext(ctx, "group attribute", slog.Group(key, "innocent", marker))
		log.DebugContext(ctx, "below a group", slog.Group("request", slog.Group("headers", key, marker)))
		log.DebugContext(ctx, "document", "doc", map[string]any{"list": []any{map[string]any{key: marker}}})
	}
	u := url.URL{Scheme: "postgres", User: url.UserPassword("coffer", marker), Host: "db:5432", Path: "/coffer"}
	for _, text := range []string{
		jwt, "token is " + jwt + ".", "(" + jwe + ")", pemKey, "key: " + pemKey + " trailing", jwk, "jwk " + jwk,
		"Authorization: Bearer " + jwt, "bearer " + marker, "Basic " + "aHVudGVyMm1hcmtlcg==", "cookie kbs-session-id=" + marker + "; Path=/",
		"Cookie: a=" + marker, u.String(), "host=db password=" + marker + " user=x", `{"password":"` + marker + `"}`,
		"password: " + marker, `pin-value=` + marker, "token=" + marker + "&x=1", "hvs.CAESI" + marker + "0123456789", "s." + marker + "0123456789abcd",
		"AGE-SECRET-KEY-1QQPQYRMARKER", "api_key='" + marker + "'", strings.Repeat("x", maxScanned-60) + " " + pemKey,
		strings.Repeat("x", MaxText-len(jwt)/2) + " " + jwt,
	} {
		log.DebugContext(ctx, text) //nolint:sloglint // messages of libraries are not constant
		log.DebugContext(ctx, "text", "text", text)
		log.DebugContext(ctx, "error", "error", fmt.Errorf("wrapped: %w", errors.New(text)))
		log.DebugContext(ctx, "list", "list", []string{"a", text})
		log.DebugContext(ctx, "raw", "raw", []byte(text))
		log.With("x", text).WithGroup("g").DebugContext(ctx, "with")
	}
	log.DebugContext(ctx, "values", "v", valuer{}, "s", stringer{}, "b", secret.New([]byte(marker)),
		"c", config{Name: "n", Password: marker, Nested: map[string]any{"pin": 123456, "token": marker}, Headers: map[string]string{"Authorization": marker}, Key: json.RawMessage(jwk)},
		"p", &config{Password: marker}, "h", http.Header{"Cookie": {marker}, "Accept": {"x"}}, "raw", json.RawMessage(jwk),
		"deep", deep(40), "pinned", 5)
}

func deep(n int) any {
	if n == 0 {
		return marker
	}
	return map[string]any{"a": deep(n - 1)}
}

func TestNoKnownSecretIsLogged(t *testing.T) {
	t.Parallel()
	for _, format := range []string{Text, JSON} {
		var out bytes.Buffer
		log, err := New(&out, "debug", format)
		if err != nil {
			t.Fatal(err)
		}
		logEverything(log)
		for _, known := range []string{
			marker, "aHVudGVyMm1hcmtlcg", pemBody, "c2lnbmF0dXJlLW1hcmtlcg", "eyJzdWIiOiJtYXJrZXIifQ", "aXYtbWFya2Vy", "QQPQYRMARKER", "123456",
			fmt.Sprintf("%d", []byte(marker)),
		} {
			for line := range strings.Lines(out.String()) {
				if i := strings.Index(line, known); i >= 0 {
					t.Errorf("%s: %q was logged: …%s", format, known, line[max(0, i-200):min(len(line), i+200)])
				}
			}
		}
		if n := strings.Count(out.String(), "\n"); n < 100 {
			t.Errorf("%s: only %d lines were logged", format, n)
		}
	}
}

func TestHarmlessIsKept(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log, err := New(&out, "info", JSON)
	if err != nil {
		t.Fatal(err)
	}
	digest := strings.Repeat("3ad3", 16)
	log.With("component", "broker").WithGroup("g").Info("request failed",
		"status", 403, "path", "/kbs/v0/resource/demo/key/1", "seconds", 0.25, "session", "0123abcd", "digest", digest,
		"token_lifetime", 5*time.Minute, "mapping", "pinned", "error", errors.New("dial tcp 127.0.0.1:5432: connect: connection refused"),
		"at", time.Unix(0, 0).UTC(), "reason", kbs.Reason{Rule: "snp.chain", Expected: "AMD", Got: "other"}, "list", []int{1, 2},
		"url", "https://kds.example:443/vcek/v1?x=1", "nil", nil, "big", uint64(1<<63), "resource", "kbs:///a/b/c", "key", "value")
	out2 := out.String()
	for _, want := range []string{
		`"component":"broker"`, `"status":403`, `"path":"/kbs/v0/resource/demo/key/1"`, `"session":"0123abcd"`, digest, `"token_lifetime":300000000000`,
		`"mapping":"pinned"`, `connection refused`, `"at":"1970-01-01T00:00:00Z"`, `"reason":"snp.chain: expected AMD, got other"`,
		`"list":[1,2]`, `"url":"https://kds.example:443/vcek/v1?x=1"`, `"nil":null`, `9223372036854775808`, `kbs:///a/b/c`, `"key":"value"`,
	} {
		if !strings.Contains(out2, want) {
			t.Errorf("%s is missing in %s", want, out2)
		}
	}
	if strings.Contains(out2, secret.Redacted) {
		t.Errorf("redacted without need: %s", out2)
	}
}

func TestLongTextIsCut(t *testing.T) {
	t.Parallel()
	for _, s := range []string{strings.Repeat("ä", MaxText), strings.Repeat("x", 10<<20), strings.Repeat("x", maxScanned-1) + "äöü"} {
		got := Redact(s)
		if len(got) > MaxText+64 || !utf8.ValidString(got) || !strings.Contains(got, "more bytes)") {
			t.Errorf("%d bytes became %d bytes ending in %q", len(s), len(got), got[len(got)-40:])
		}
	}
	if got := Redact("short"); got != "short" {
		t.Errorf("got %q", got)
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range [][2]string{{"trace", Text}, {"", Text}, {"INFO", Text}, {"info+2", Text}, {"info", "xml"}} {
		if _, err := New(&bytes.Buffer{}, c[0], c[1]); err == nil || !strings.Contains(err.Error(), "expected") {
			t.Errorf("%v: got %v", c, err)
		}
	}
}

func TestLevel(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log, err := New(&out, "warn", Text)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("no")
	log.Warn("yes")
	if s := out.String(); strings.Contains(s, "msg=no") || !strings.Contains(s, "msg=yes") {
		t.Errorf("got %q", s)
	}
}

// FuzzRedact: whatever surrounds a credential, it does not show, and redacting
// twice is redacting once.
func FuzzRedact(f *testing.F) {
	f.Add("", "")
	f.Add("Authorization: ", " x")
	f.Add(`{"a":"`, `"}`)
	f.Add("password=", "&")
	f.Fuzz(func(t *testing.T, before, after string) {
		got := Redact(before + " " + pemKey + " " + after)
		if len(before) < maxScanned && strings.Contains(got, pemBody) {
			t.Errorf("a private key shows in %q", got)
		}
		got = Redact(before + " " + jwt + " " + after)
		if strings.Contains(got, "c2lnbmF0dXJlLW1hcmtlcg") {
			t.Errorf("a signature shows in %q", got)
		}
		if len(got) > MaxText+64 {
			t.Errorf("%d bytes", len(got))
		}
		_ = sensitiveKey(before)
		_ = redactJSON([]byte(before))
	})
}

func BenchmarkHandle(b *testing.B) {
	log, err := New(discard{}, "debug", JSON)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		log.Debug("request", "method", "GET", "path", "/kbs/v0/resource/demo/key/1", "status", 200, "remote", "192.0.2.1:1234", "seconds", .001)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
