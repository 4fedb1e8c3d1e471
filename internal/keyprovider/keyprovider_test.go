package keyprovider_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containers/ocicrypt/config"
	ocikeyprovider "github.com/containers/ocicrypt/keywrap/keyprovider"
	pb "github.com/containers/ocicrypt/utils/keyprovider"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/coffer-project/coffer/internal/keyprovider"
	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/kbs/admin"
	"github.com/coffer-project/coffer/oci/crypt"
	"github.com/coffer-project/coffer/secret"
)

const (
	keyID   = "kbs:///shop/image/app"
	private = `{"symkey":"AAAA","digest":"sha256:00","cipheroptions":{"nonce":"AAAA"}}`
)

func testKey(fill byte) []byte { return bytes.Repeat([]byte{fill}, crypt.KeySize) }

// trustee is a Registrar in memory.
type trustee struct {
	keys map[string]string
	sets int
	err  error
}

func (s *trustee) SetResource(_ context.Context, uri kbs.ResourceURI, value secret.Bytes) error {
	s.sets++
	if s.err == nil {
		s.keys[uri.String()] = string(value.Expose())
	}
	return s.err
}

func (s *trustee) ResourceVersions(_ context.Context, uri kbs.ResourceURI) ([]admin.ResourceInfo, error) {
	if _, ok := s.keys[uri.String()]; !ok {
		return nil, kbs.NewStatusError("GET", 404, nil)
	}
	return make([]admin.ResourceInfo, 1), nil
}

func options() keyprovider.Options {
	return keyprovider.Options{
		ReadKey: func(path string) ([]byte, error) {
			switch path {
			case "/k/app":
				return testKey(7), nil
			case "/k/other":
				return testKey(8), nil
			case "/k/short":
				return []byte("short"), nil
			}
			return nil, errors.New("no such file")
		},
		Rand: rand.Reader, Logger: slog.New(slog.DiscardHandler),
	}
}

func provider(t *testing.T, change func(*keyprovider.Options)) *keyprovider.Provider {
	t.Helper()
	o := options()
	if change != nil {
		change(&o)
	}
	p, err := keyprovider.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// message is what Go's ocicrypt sends for wrapping.
func message(t *testing.T, params ...string) []byte {
	t.Helper()
	in := ocikeyprovider.KeyProviderKeyWrapProtocolInput{Operation: ocikeyprovider.OpKeyWrap}
	in.KeyWrapParams.Ec = &config.EncryptConfig{Parameters: map[string][][]byte{}}
	for _, p := range params {
		in.KeyWrapParams.Ec.Parameters[keyprovider.Name] = append(in.KeyWrapParams.Ec.Parameters[keyprovider.Name], []byte(p))
	}
	in.KeyWrapParams.OptsData = []byte(private)
	data, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func packetOf(t *testing.T, answer []byte) *crypt.Packet {
	t.Helper()
	var out ocikeyprovider.KeyProviderKeyWrapProtocolOutput // Go's reader
	if err := json.Unmarshal(answer, &out); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(answer, []byte(`"annotation":[`)) {
		t.Errorf("the annotation is no array of numbers, which Rust's reader needs: %s", answer)
	}
	p, err := crypt.ParsePacket(out.KeyWrapResults.Annotation)
	if err != nil {
		t.Fatal(err)
	}
	// Version 1 of the packet has exactly these members.
	var members map[string]any
	if err := json.Unmarshal(out.KeyWrapResults.Annotation, &members); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kid", "wrapped_data", "iv", "wrap_type"} {
		if _, ok := members[name]; !ok || len(members) != 4 {
			t.Errorf("expected the members of version 1, got %v", members)
		}
	}
	return p
}

func TestWrap(t *testing.T) {
	t.Parallel()
	for params, want := range map[string]struct {
		kid, algorithm string
		iv             int
	}{
		"keypath=/k/app::keyid=kbs:///shop/image/app::algorithm=A256GCM": {keyID, crypt.WrapGCM, 12},
		"keyid=kbs:///shop/image/app::keypath=/k/app::algorithm=A256CTR": {keyID, crypt.WrapCTR, 16},
		"keypath=/k/app::keyid=kbs:///shop/image/app":                    {keyID, crypt.WrapGCM, 12},
		"keypath=/k/app::keyid=/shop/image/app":                          {keyID, crypt.WrapGCM, 12},
		"keypath=/k/app::keyid=shop/image/app":                           {keyID, crypt.WrapGCM, 12},
		"keypath=/k/app::keyid=kbs.example:8080/shop/image/app":          {keyID, crypt.WrapGCM, 12},
		"keypath=/k/app::keyid=kbs://kbs.example/shop/image/app":         {keyID, crypt.WrapGCM, 12},
	} {
		p := provider(t, nil)
		answer, err := p.Wrap(t.Context(), message(t, params))
		if err != nil {
			t.Errorf("%s: %v", params, err)
			continue
		}
		packet := packetOf(t, answer)
		if packet.KID != want.kid || packet.WrapType != want.algorithm || len(packet.IV) != want.iv {
			t.Errorf("%s: got %s %s and an IV of %d bytes", params, packet.KID, packet.WrapType, len(packet.IV))
		}
		plain, err := packet.Unwrap(secret.New(testKey(7)))
		if err != nil || string(plain.Expose()) != private {
			t.Errorf("%s: the packet does not open to the private options: %v", params, err)
		}
	}
}

func TestWrapRefuses(t *testing.T) {
	t.Parallel()
	p := provider(t, nil)
	for params, says := range map[string]string{
		"":                                     "NAME=VALUE",
		"x":                                    "NAME=VALUE",
		"keypath=":                             "NAME=VALUE",
		"color=red":                            "expected sample, keypath, keyid or algorithm",
		"sample=true":                          "everybody knows that key",
		"sample=maybe::keyid=a/b/c":            "expected true or false",
		"sample=true::keyid=a/b/c":             "nothing besides",
		"keyid=a/b/c::keyid=a/b/d":             "occurs twice",
		"keypath=/k/app":                       "keyid: missing",
		"keyid=a/b/c":                          "keypath: missing",
		"keypath=/k/app::keyid=a/b":            "keyid:",
		"keypath=/k/app::keyid=http://h/a/b/c": "keyid:",
		"keypath=/k/app::keyid=kbs:///a/../c":  "keyid:",
		"keypath=/k/app::keyid=a/b/c::algorithm=A128CBC":   "algorithm: expected A256GCM or A256CTR",
		"keypath=/k/short::keyid=a/b/c":                    "expected 32 bytes",
		"keypath=/k/absent::keyid=a/b/c":                   "no such file",
		"keyid=" + strings.Repeat("a", 5000) + "::sample=": "at most 4096 bytes",
	} {
		if _, err := p.Wrap(t.Context(), message(t, params)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: expected %q, got %v", params, says, err)
		}
	}
	if _, err := p.Wrap(t.Context(), message(t, "keypath=/k/app::keyid=a/b/c", "keypath=/k/app::keyid=a/b/d")); err == nil || !strings.Contains(err.Error(), "one key at a time") {
		t.Errorf("two keys: got %v", err)
	}
	for text, says := range map[string]string{
		`{`: "not the JSON", `{"op":"keyunwrap"}`: `op: expected "keywrap"`, `{"op":"keywrap"}`: "ec: missing",
		`{"op":"keywrap","keywrapparams":{"ec":{}}}`:                     "optsdata: missing",
		`{"op":"keywrap","keywrapparams":{"ec":{},"optsdata":[1]}}`:      "expected one entry",
		`{"op":"keywrap","keywrapparams":{"ec":{},"optsdata":[256]}}`:    "not the JSON",
		`{"op":"` + strings.Repeat("a", 70_000) + `"}`:                   "at most 65536 bytes",
		`{"op":"keywrap","keywrapparams":{"ec":null,"optsdata":"AA=="}}`: "ec: missing",
	} {
		if _, err := p.Wrap(t.Context(), []byte(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.80s: expected %q, got %v", text, says, err)
		}
	}
}

// TestForms: the same private options in each of the forms that writers of the
// protocol use.
func TestForms(t *testing.T) {
	t.Parallel()
	p := provider(t, nil)
	list, err := json.Marshal(numbersOf(private))
	if err != nil {
		t.Fatal(err)
	}
	params := base64.StdEncoding.EncodeToString([]byte("keypath=/k/app::keyid=" + keyID))
	paramList, err := json.Marshal(numbersOf("keypath=/k/app::keyid=" + keyID))
	if err != nil {
		t.Fatal(err)
	}
	quoted, err := json.Marshal(private)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"base64":         `{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"attestation-agent":["` + params + `"]},"DecryptConfig":{"Parameters":{}}},"optsdata":"` + base64.StdEncoding.EncodeToString([]byte(private)) + `"},"keyunwrapparams":{"dc":null,"annotation":null}}`,
		"numbers":        `{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"attestation-agent":["` + params + `"]}},"optsdata":` + string(list) + `}}`,
		"string":         `{"op":"keywrap","keywrapparams":{"ec":{"parameters":{"attestation-agent":["` + params + `"]}},"optsdata":` + string(quoted) + `}}`,
		"numbers inside": `{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"attestation-agent":[` + string(paramList) + `]}},"optsdata":` + string(list) + `}}`,
	} {
		answer, err := p.Wrap(t.Context(), []byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		plain, err := packetOf(t, answer).Unwrap(secret.New(testKey(7)))
		if err != nil || string(plain.Expose()) != private {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func numbersOf(s string) []int {
	list := make([]int, len(s))
	for i := range s {
		list[i] = int(s[i])
	}
	return list
}

func TestRegister(t *testing.T) {
	t.Parallel()
	r := &trustee{keys: map[string]string{"kbs:///old/image/key": "an old key"}}
	p := provider(t, func(o *keyprovider.Options) { o.Registrar = r })
	wrap := func(params string) (*crypt.Packet, error) {
		answer, err := p.Wrap(t.Context(), message(t, params))
		if err != nil {
			return nil, err
		}
		return packetOf(t, answer), nil
	}
	// A key file, twice: one registration.
	for range 2 {
		if _, err := wrap("keypath=/k/app::keyid=" + keyID); err != nil {
			t.Fatal(err)
		}
	}
	if r.sets != 1 || r.keys[keyID] != string(testKey(7)) {
		t.Errorf("expected one registration of the key, got %d", r.sets)
	}
	// Another key for the same id would lose the first.
	if _, err := wrap("keypath=/k/other::keyid=" + keyID); err == nil || !strings.Contains(err.Error(), "another key than was used") {
		t.Errorf("another key: %v", err)
	}
	// A key that is made up is the same for all layers of an image.
	var first string
	for range 2 {
		packet, err := wrap("keyid=kbs:///new/image/key")
		if err != nil {
			t.Fatal(err)
		}
		key := r.keys["kbs:///new/image/key"]
		if first == "" {
			first = key
		}
		plain, err := packet.Unwrap(secret.New([]byte(key)))
		if key != first || err != nil || string(plain.Expose()) != private {
			t.Errorf("a layer's packet does not open under the trustee's key: %v", err)
		}
	}
	// One that the trustee has is not replaced by one that is made up.
	if _, err := wrap("keyid=kbs:///old/image/key"); err == nil || !strings.Contains(err.Error(), "has a key") || r.keys["kbs:///old/image/key"] != "an old key" {
		t.Errorf("an old key: %v", err)
	}
	// An id that is made up.
	packet, err := wrap("algorithm=A256GCM")
	if err != nil || !strings.HasPrefix(packet.KID, "kbs:///default/image-kek/") || r.keys[packet.KID] == "" {
		t.Errorf("no id: %v %v", packet, err)
	}
	// Nothing is wrapped under a key that the trustee does not take.
	r.err = errors.New("no")
	if _, err := wrap("keypath=/k/app::keyid=a/b/c"); err == nil || !strings.Contains(err.Error(), "put kbs:///a/b/c into the trustee") {
		t.Errorf("a trustee that refuses: %v", err)
	}
}

// TestSample: the sample key, also the published packet made with it
// (guest-components, ocicrypt-rs/data/sample_kbc_annotation.json).
func TestSample(t *testing.T) {
	t.Parallel()
	p := provider(t, func(o *keyprovider.Options) { o.AllowSample = true })
	answer, err := p.Wrap(t.Context(), message(t, "sample=true"))
	if err != nil {
		t.Fatal(err)
	}
	if packet := packetOf(t, answer); packet.KID != "kbs:///default/test-key/1" || !bytes.Equal(packet.IV, make([]byte, 12)) {
		t.Errorf("got %s with IV %x", packet.KID, packet.IV)
	}
	published := `{"kid":"kbs:///default/test-key/1","wrapped_data":"KxAFgXwa0y72Xdygub9lF00RVMtSRbYzvakIEASgi3Gvt1wGLkhKPXf0S033Jdi6vAN6zBM7d0xZSDo2JCeew0FeKwTYgdJfdcPhuEpZOpjhwIsidyeiunzp0J/crvI1tSPZJw4DPHZN2eQtg71rDzIbuDM5ATheiDM9/YJv+k+n6Nv6/pRb8qynNzbWFz7Q8wEo1ZZlL6UftOBJ6j9GuEOTM2k/B+5sMA2VhGHSzDsKA1mn0qzcn2HJg4GcmxwDpJwzm5n7B4iIJ3A0umrQAjQ=","iv":"3PQMqtjbR4hxCr83","wrap_type":"A256GCM"}`
	const want = `{"symkey":"1jL2jJV0Oyz2nmPkLtqulW6cKcpIUN5FpILcVnP5Uqs=","digest":"sha256:18be1897f9402f27c8c0eba7c86e0c00f5656db62961b5949d55f9565c42c6e7","cipheroptions":{"nonce":"r10F9oaCu+nWFXfod3l83g=="}}`
	for _, annotation := range []any{[]byte(published), numbersOf(published), published} {
		in, err := json.Marshal(map[string]any{"op": "keyunwrap", "keywrapparams": map[string]any{"ec": nil, "optsdata": nil}, "keyunwrapparams": map[string]any{"dc": nil, "annotation": annotation}})
		if err != nil {
			t.Fatal(err)
		}
		answer, err := p.Unwrap(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		var out ocikeyprovider.KeyProviderKeyWrapProtocolOutput
		if err := json.Unmarshal(answer, &out); err != nil || string(out.KeyUnwrapResults.OptsData) != want {
			t.Errorf("the published packet: %v", err)
		}
		if !bytes.Contains(answer, []byte(`"optsdata":[`)) {
			t.Error("optsdata is no array of numbers")
		}
	}
}

func TestUnwrapRefuses(t *testing.T) {
	t.Parallel()
	p := provider(t, func(o *keyprovider.Options) { o.Keys = map[string]secret.Bytes{keyID: secret.New(testKey(9))} })
	answer, err := p.Wrap(t.Context(), message(t, "keyid="+keyID))
	if err != nil {
		t.Fatal(err)
	}
	packet := packetOf(t, answer)
	ask := func(packet *crypt.Packet) error {
		raw, err := json.Marshal(packet)
		if err != nil {
			t.Fatal(err)
		}
		in, err := json.Marshal(map[string]any{"op": "keyunwrap", "keyunwrapparams": map[string]any{"annotation": raw}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Unwrap(t.Context(), in)
		return err
	}
	if err := ask(packet); err != nil {
		t.Fatal(err)
	}
	packet.WrappedData[0] ^= 1
	if err := ask(packet); err == nil || !strings.Contains(err.Error(), "does not open") {
		t.Errorf("changed: %v", err)
	}
	packet.KID = "kbs:///a/b/c"
	if err := ask(packet); err == nil || !strings.Contains(err.Error(), "was not given it; it has "+keyID) {
		t.Errorf("unknown: %v", err)
	}
	if _, err := p.Wrap(t.Context(), message(t, "keypath=/k/app::keyid="+keyID)); err == nil || !strings.Contains(err.Error(), "another key than") {
		t.Errorf("two keys for one id: %v", err)
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	for id, size := range map[string]int{"kbs:///a/b": 32, "kbs:///a/b/c": 31} {
		o := options()
		o.Keys = map[string]secret.Bytes{id: secret.New(make([]byte, size))}
		if _, err := keyprovider.New(o); err == nil {
			t.Errorf("%s of %d bytes: expected an error", id, size)
		}
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"0.0.0.0:0", "192.0.2.1:0", "localhost:0", "[::]:0", "", "127.0.0.1"} {
		if l, err := keyprovider.Listen(t.Context(), address, false); err == nil {
			_ = l.Close()
			t.Errorf("%q: expected an error", address)
		}
	}
}

// TestServe asks over both kinds of sockets, as ocicrypt does.
func TestServe(t *testing.T) { // not parallel: ocicrypt's configuration is the process's
	for _, address := range []string{"127.0.0.1:0", "unix:" + filepath.Join(t.TempDir(), "s")} {
		p := provider(t, func(o *keyprovider.Options) { o.Keys = map[string]secret.Bytes{keyID: secret.New(testKey(7))} })
		l, err := keyprovider.Listen(t.Context(), address, false)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Serve(ctx, l) }()
		raw, err := keyprovider.Configuration(l.Addr())
		if err != nil {
			t.Fatal(err)
		}
		var c struct {
			Providers map[string]struct{ GRPC string } `json:"key-providers"`
		}
		if err := json.Unmarshal(raw, &c); err != nil {
			t.Fatal(err)
		}
		conn, err := grpc.NewClient(c.Providers[keyprovider.Name].GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		client := pb.NewKeyProviderServiceClient(conn)
		out, err := client.WrapKey(ctx, &pb.KeyProviderKeyWrapProtocolInput{KeyProviderKeyWrapProtocolInput: message(t, "keyid="+keyID)})
		if err != nil {
			t.Fatal(err)
		}
		packet := packetOf(t, out.GetKeyProviderKeyWrapProtocolOutput())
		raw, err = json.Marshal(packet)
		if err != nil {
			t.Fatal(err)
		}
		in, err := json.Marshal(map[string]any{"op": "keyunwrap", "keyunwrapparams": map[string]any{"annotation": raw}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.UnWrapKey(ctx, &pb.KeyProviderKeyWrapProtocolInput{KeyProviderKeyWrapProtocolInput: in}); err != nil {
			t.Error(err)
		}
		if _, err := client.WrapKey(ctx, &pb.KeyProviderKeyWrapProtocolInput{KeyProviderKeyWrapProtocolInput: []byte("{}")}); err == nil || !strings.Contains(err.Error(), "op: expected") {
			t.Errorf("expected an error about op, got %v", err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte(`{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"attestation-agent":["c2FtcGxlPXRydWU="]}},"optsdata":[1,2]}}`))
	f.Add([]byte(`{"op":"keyunwrap","keyunwrapparams":{"annotation":"{}"}}`))
	o := options()
	o.AllowSample = true
	p, err := keyprovider.New(o)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if out, err := p.Wrap(t.Context(), data); err == nil && !json.Valid(out) {
			t.Error("an answer that is not JSON")
		}
		if out, err := p.Unwrap(t.Context(), data); err == nil && !json.Valid(out) {
			t.Error("an answer that is not JSON")
		}
	})
}
