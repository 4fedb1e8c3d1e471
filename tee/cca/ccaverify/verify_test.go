package ccaverify

import (
	"bytes"
	"crypto/elliptic"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/veraison/go-cose"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/cca"
	"github.com/coffer-project/coffer/tee/internal/teetest"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("../testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func vectorVerifier(t testing.TB) tee.Verifier {
	t.Helper()
	anchors, err := ParseTrustAnchors(read(t, "tastore.json"), true)
	if err != nil {
		t.Fatal(err)
	}
	v, err := New(Options{TrustAnchors: anchors})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// asJSON is what a policy sees of the claims.
func asJSON(t testing.TB, v any) map[string]any {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestVectors(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"token", "tf-rmm", "draft-00"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := vectorVerifier(t)
			raw := read(t, name+".cbor")
			var golden map[string]any
			if err := json.Unmarshal(read(t, name+".claims.json"), &golden); err != nil {
				t.Fatal(err)
			}
			text, ok := golden["report_data"].(string)
			challenge, err := hex.DecodeString(text)
			if !ok || err != nil {
				t.Fatal(err)
			}
			want := tee.Expected{ReportData: challenge}
			r, err := v.Verify(t.Context(), evidence(t, raw), want)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(golden, asJSON(t, r.Claims)); diff != "" {
				t.Error(diff)
			}
			if !r.Simulated || r.TEE != tee.CCA || r.Class != tee.CPU || len(r.Warnings) != 0 || !bytes.Equal(r.ReportData, challenge) || len(r.InitData) != 64 {
				t.Errorf("got %+v", r)
			}
			teetest.EachBit(t, name, raw, func(mutated []byte) bool {
				_, err := v.Verify(t.Context(), evidence(t, mutated), want)
				if _, refused := errors.AsType[*tee.Error](err); err != nil && !refused {
					t.Errorf("got an error of type %T: %v", err, err)
				}
				return err == nil
			})
		})
	}
}

// TestUpstreamClaims mints a token with the values of upstream's example of
// claims. Its keys are not known, and its last two claims are of another token.
func TestUpstreamClaims(t *testing.T) {
	t.Parallel()
	var golden struct {
		Platform, Realm map[string]any
	}
	if err := json.Unmarshal(read(t, "expected_claims.json"), &golden); err != nil {
		t.Fatal(err)
	}
	b64 := func(v any) []byte {
		s, _ := v.(string)
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	p := newPlatform(t, elliptic.P384(), elliptic.P384())
	p.platform = map[any]any{
		265: cca.ProfileLegacy, 2396: b64(golden.Platform["cca-platform-implementation-id"]), 256: b64(golden.Platform["cca-platform-instance-id"]), 2401: b64(golden.Platform["cca-platform-config"]),
		2395: 12288, 2402: "sha-256", 2400: golden.Platform["cca-platform-service-indicator"],
		2399: []any{map[any]any{1: "BL", 2: filled(32, 3), 4: "3.4.2", 5: filled(32, 4)}},
	}
	p.realm = map[any]any{
		10: b64(golden.Realm["cca-realm-challenge"]), 44235: b64(golden.Realm["cca-realm-personalization-value"]), 44236: "sha-256",
		44238: b64(golden.Realm["cca-realm-initial-measurement"]), 44239: []any{filled(64, 'C'), filled(64, 'C'), filled(64, 'C'), filled(64, 'C')},
		44240: "sha-512", 44237: point(t, p.rak),
	}
	p.hash = func(b []byte) []byte { h := sha512.Sum512(b); return h[:] }
	anchor := p.anchor()
	anchor.ImplementationID, anchor.InstanceID = filled(32, 0), append([]byte{1}, filled(32, 2)...)
	r, err := verifyWith(t, p.token(t), Options{TrustAnchors: []TrustAnchor{anchor}}, tee.Expected{ReportData: bytes.Repeat([]byte("AB"), 32), InitData: bytes.Repeat([]byte("AD"), 32)})
	if err != nil {
		t.Fatal(err)
	}
	delete(golden.Platform, "cca-platform-challenge")
	delete(golden.Realm, "cca-realm-public-key")
	got := asJSON(t, r.Claims)
	for part, want := range map[string]map[string]any{"platform": golden.Platform, "realm": golden.Realm} {
		claims, _ := got[part].(map[string]any)
		for name, value := range want {
			if diff := cmp.Diff(value, claims[name]); diff != "" {
				t.Errorf("%s: %s: %s", part, name, diff)
			}
		}
	}
	if r.Simulated || got["simulated"] != false {
		t.Error("simulated under an anchor that is not")
	}
}

func verifyWith(t testing.TB, token []byte, o Options, want tee.Expected) (*tee.Result, error) {
	t.Helper()
	v, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return v.Verify(t.Context(), evidence(t, token), want)
}

func TestCurves(t *testing.T) {
	t.Parallel()
	curves := []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}
	for _, cpak := range curves {
		for _, rak := range curves {
			p := newPlatform(t, cpak, rak)
			r, err := verifyWith(t, p.token(t), Options{TrustAnchors: []TrustAnchor{p.anchor()}}, tee.Expected{ReportData: filled(64, 'A'), InitData: filled(64, 'B')})
			if err != nil || !bytes.Equal(r.ReportData, filled(64, 'A')) || !bytes.Equal(r.InitData, filled(64, 'B')) {
				t.Errorf("%s, %s: got %v, %v", cpak.Params().Name, rak.Params().Name, r, err)
			}
		}
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*platform)
		want   string
	}{
		"no profile":                    {func(p *platform) { delete(p.platform, 265) }, "cca.format cca-platform-profile"},
		"profile 2024":                  {func(p *platform) { p.platform[265] = "tag:arm.com,2024:cca_platform#2.0.0" }, "cca.format cca-platform-profile"},
		"realm profile 2024":            {func(p *platform) { p.realm[265] = "tag:arm.com,2024:realm#2.0.0" }, "cca.format cca-realm-profile"},
		"empty realm profile":           {func(p *platform) { p.realm[265] = "" }, "cca.format cca-realm-profile"},
		"bare key in profile 2023":      {func(p *platform) { p.realm[44237] = point(t, p.rak) }, "cca.format cca-realm-public-key"},
		"COSE_Key in the legacy one":    {func(p *platform) { delete(p.realm, 265) }, "cca.format cca-realm-public-key"},
		"short challenge":               {func(p *platform) { p.realm[10] = filled(63, 1) }, "cca.format cca-realm-challenge"},
		"challenge as text":             {func(p *platform) { p.realm[10] = strings.Repeat("A", 64) }, "cca.format byte string"},
		"challenge as numbers":          {func(p *platform) { p.realm[10] = []int{1, 2, 3} }, "cca.format byte string"},
		"tagged challenge":              {func(p *platform) { p.realm[10] = map[string]any{"x": filled(64, 'A')} }, "cca.format byte string"},
		"long personalization":          {func(p *platform) { p.realm[44235] = filled(65, 1) }, "cca.format cca-realm-personalization-value"},
		"no measurement":                {func(p *platform) { delete(p.realm, 44238) }, "cca.format cca-realm-initial-measurement"},
		"three measurements":            {func(p *platform) { p.realm[44239] = []any{filled(64, 1), filled(64, 1), filled(64, 1)} }, "cca.format cca-realm-extensible-measurements"},
		"odd measurement":               {func(p *platform) { p.realm[44239] = []any{filled(64, 1), filled(64, 1), filled(64, 1), filled(20, 1)} }, "cca.format cca-realm-extensible-measurements[3]"},
		"no hash":                       {func(p *platform) { delete(p.realm, 44240) }, "cca.format cca-realm-public-key-hash-algo-id"},
		"weak hash":                     {func(p *platform) { p.realm[44240] = "sha-1" }, "cca.realm_key "},
		"another hash":                  {func(p *platform) { p.realm[44240] = "sha-384" }, "cca.realm_key "},
		"another realm's key":           {func(p *platform) { p.platform[10] = filled(32, 1) }, "cca.realm_key "},
		"another realm signer":          {func(p *platform) { p.realm[44237] = coseKey(t, newKey(t, elliptic.P384())) }, "cca.realm_signature "},
		"another platform signer":       {func(p *platform) { p.cpak = newKey(t, elliptic.P384()) }, "cca.platform_signature "},
		"smaller platform key":          {func(p *platform) { p.cpak, p.platformAlg = newKey(t, elliptic.P256()), cose.AlgorithmES256 }, "cca.platform_algorithm "},
		"larger realm key":              {func(p *platform) { p.rak, p.realmAlg = newKey(t, elliptic.P521()), cose.AlgorithmES512 }, "cca.realm_algorithm "},
		"another instance":              {func(p *platform) { p.platform[256] = append([]byte{1}, filled(32, 9)...) }, "cca.anchor "},
		"another implementation":        {func(p *platform) { p.platform[2396] = filled(32, 9) }, "cca.anchor "},
		"instance of another type":      {func(p *platform) { p.platform[256] = append([]byte{2}, filled(32, 8)...) }, "cca.format cca-platform-instance-id"},
		"short instance":                {func(p *platform) { p.platform[256] = []byte{1} }, "cca.format cca-platform-instance-id"},
		"no components":                 {func(p *platform) { p.platform[2399] = []any{} }, "cca.format cca-platform-sw-components"},
		"component without signer":      {func(p *platform) { p.platform[2399] = []any{map[int]any{2: filled(32, 1)}} }, "cca.format signer-id"},
		"65 components":                 {func(p *platform) { p.platform[2399] = make([]any, 65) }, "cca.format max number of elements"},
		"no config":                     {func(p *platform) { p.platform[2401] = []byte{} }, "cca.format cca-platform-config"},
		"long text":                     {func(p *platform) { p.platform[2400] = strings.Repeat("x", 600) }, "cca.format cca-platform-service-indicator"},
		"no lifecycle":                  {func(p *platform) { delete(p.platform, 2395) }, "cca.format cca-platform-lifecycle"},
		"negative lifecycle":            {func(p *platform) { p.platform[2395] = -1 }, "cca.format 2395"},
		"lifecycle of 17 bits":          {func(p *platform) { p.platform[2395] = 0x13000 }, "cca.format 2395"},
		"unknown lifecycle":             {func(p *platform) { p.platform[2395] = 0 }, "cca.lifecycle "},
		"provisioning":                  {func(p *platform) { p.platform[2395] = 0x2000 }, "cca.lifecycle "},
		"decommissioned":                {func(p *platform) { p.platform[2395] = 0x6000 }, "cca.lifecycle "},
		"no lifecycle at all":           {func(p *platform) { p.platform[2395] = 0x7000 }, "cca.lifecycle "},
		"platform debug":                {func(p *platform) { p.platform[2395] = 0x5000 }, "cca.debug "},
		"something in the open header":  {func(p *platform) { p.unprotected = cose.UnprotectedHeader{int64(3): "text/plain"} }, "cca.format unprotected header"},
		"something in the other header": {func(p *platform) { p.protected = cose.ProtectedHeader{int64(15): map[any]any{}} }, "cca.format protected header"},
		"deep claims":                   {func(p *platform) { p.platform[1] = deep(40) }, "cca.format nested"},
		"private key":                   {func(p *platform) { p.realm[44237] = privateKey(t) }, "cca.format private"},
		"point off the curve": {func(p *platform) {
			p.realm[44237] = encode(t, map[int]any{1: 2, -1: 2, -2: filled(48, 1), -3: filled(48, 1)})
		}, "cca.format cca-realm-public-key"},
		"point at infinity": {func(p *platform) {
			p.realm[44237] = encode(t, map[int]any{1: 2, -1: 2, -2: filled(48, 0), -3: filled(48, 0)})
		}, "cca.format cca-realm-public-key"},
		"short coordinate": {func(p *platform) {
			p.realm[44237] = encode(t, map[int]any{1: 2, -1: 2, -2: filled(47, 0), -3: filled(48, 0)})
		}, "cca.format coordinates"},
		"unknown curve": {func(p *platform) {
			p.realm[44237] = encode(t, map[int]any{1: 2, -1: 8, -2: filled(32, 0), -3: filled(32, 0)})
		}, "cca.format curve"},
		"another key type": {func(p *platform) { p.realm[44237] = encode(t, map[int]any{1: 1, -1: 6, -2: filled(32, 0)}) }, "cca.format key type"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlatform(t, elliptic.P384(), elliptic.P384())
			anchor := p.anchor()
			tc.change(p)
			r, err := verifyWith(t, p.token(t), Options{TrustAnchors: []TrustAnchor{anchor}}, tee.Expected{ReportData: filled(64, 'A')})
			check, text, _ := strings.Cut(tc.want, " ")
			if got := teetest.Refused(t, err); r != nil || !slices.Contains(got, check) || !strings.Contains(err.Error(), text) {
				t.Errorf("got %v, %v; want %s", r, err, tc.want)
			}
		})
	}
}

func deep(n int) any {
	if n == 0 {
		return 0
	}
	return []any{deep(n - 1)}
}

func privateKey(t *testing.T) []byte {
	return encode(t, map[int]any{1: 2, -1: 1, -2: filled(32, 1), -3: filled(32, 1), -4: filled(32, 1)})
}

// TestLegacy mints tokens of the older profile, in which the key is a point.
func TestLegacy(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		key  func(p *platform) []byte
		want string
	}{
		"good":             {func(p *platform) []byte { return point(t, p.rak) }, ""},
		"compressed":       {func(p *platform) []byte { return elliptic.MarshalCompressed(elliptic.P384(), p.rak.X, p.rak.Y) }, "cca.format"},
		"of another curve": {func(*platform) []byte { return point(t, newKey(t, elliptic.P256())) }, "cca.format"},
		"off the curve":    {func(*platform) []byte { return append([]byte{4}, filled(96, 9)...) }, "cca.format"},
		"infinity":         {func(*platform) []byte { return []byte{0} }, "cca.format"},
	} {
		p := newPlatform(t, elliptic.P256(), elliptic.P384())
		p.platform[265] = cca.ProfileLegacy
		delete(p.realm, 265)
		p.realm[44237] = tc.key(p)
		_, err := verifyWith(t, p.token(t), Options{TrustAnchors: []TrustAnchor{p.anchor()}}, tee.Expected{AnyReportData: true})
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.want != "" && !slices.Contains(teetest.Refused(t, err), tc.want):
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestSplicing(t *testing.T) {
	t.Parallel()
	p, q := newPlatform(t, elliptic.P384(), elliptic.P384()), newPlatform(t, elliptic.P384(), elliptic.P384())
	o := Options{TrustAnchors: []TrustAnchor{p.anchor()}}
	pp, pr := p.tokens(t)
	_, qr := q.tokens(t)
	untagged := pp[1:]
	zero := bytes.Clone(pp)
	copy(zero[len(zero)-96:], make([]byte, 96))
	ones := bytes.Clone(pp)
	copy(ones[len(ones)-96:], bytes.Repeat([]byte{0xFF}, 96))
	for name, tc := range map[string]struct {
		token []byte
		want  string
	}{
		"another's realm token": {collect(t, pp, qr), "cca.realm_key"},
		"swapped":               {collect(t, pr, pp), "cca.format"},
		"twice the platform":    {collect(t, pp, pp), "cca.format"},
		"untagged message":      {collect(t, untagged, pr), "cca.format"},
		"not a string":          {collect(t, "x", pr), "cca.format"},
		"zero signature":        {collect(t, zero, pr), "cca.platform_signature"},
		"signature of ones":     {collect(t, ones, pr), "cca.platform_signature"},
		"short signature":       {collect(t, bytes.Replace(pp[:len(pp)-1], []byte{0x58, 0x60}, []byte{0x58, 0x5F}, 1), pr), "cca."},
		"bytes behind":          {collect(t, append(bytes.Clone(pp), 0), pr), "cca.format"},
	} {
		if _, err := verifyWith(t, tc.token, o, tee.Expected{AnyReportData: true}); !slices.ContainsFunc(teetest.Refused(t, err), func(c string) bool { return strings.HasPrefix(c, tc.want) }) {
			t.Errorf("%s: got %v, want %s", name, err, tc.want)
		}
	}
}

func TestExpected(t *testing.T) {
	t.Parallel()
	p := newPlatform(t, elliptic.P384(), elliptic.P384())
	p.realm[10] = append(filled(48, 'A'), filled(16, 0)...)
	p.realm[44235] = append(filled(32, 'B'), filled(32, 0)...)
	p.platform[2395], p.unprotected = 0x5001, cose.UnprotectedHeader{cose.HeaderLabelKeyID: []byte("key")}
	token := p.token(t)
	o := Options{TrustAnchors: []TrustAnchor{p.anchor()}, AllowDebug: true}
	r, err := verifyWith(t, token, o, tee.Expected{ReportData: filled(48, 'A'), InitData: filled(32, 'B')})
	if err != nil || len(r.Warnings) != 1 || r.Warnings[0].Check != "cca.debug" {
		t.Errorf("padded, debug allowed: got %+v, %v", r, err)
	}
	if r, err := verifyWith(t, token, o, tee.Expected{AnyReportData: true}); err != nil || len(r.Warnings) != 2 {
		t.Errorf("any report data: got %+v, %v", r, err)
	}
	_, err = verifyWith(t, token, o, tee.Expected{ReportData: filled(48, 'X'), InitData: filled(32, 'X')})
	if diff := cmp.Diff([]string{"cca.report_data", "cca.personalization_value"}, teetest.Refused(t, err)); diff != "" {
		t.Error(diff)
	}
	_, err = verifyWith(t, token, o, tee.Expected{})
	if diff := cmp.Diff([]string{"cca.report_data"}, teetest.Refused(t, err)); diff != "" {
		t.Error(diff)
	}
	p.platform[2395] = 0x4000
	o.AllowDebug = false
	if r, err := verifyWith(t, p.token(t), o, tee.Expected{ReportData: filled(48, 'A')}); err != nil || len(r.Warnings) != 1 || r.Warnings[0].Check != "cca.lifecycle" {
		t.Errorf("debug of other parts: got %+v, %v", r, err)
	}
}

// TestMemo sees to it that a remembered platform token vouches for nothing but
// itself under its own anchor.
func TestMemo(t *testing.T) {
	t.Parallel()
	p := newPlatform(t, elliptic.P384(), elliptic.P384())
	v, err := New(Options{TrustAnchors: []TrustAnchor{p.anchor()}})
	if err != nil {
		t.Fatal(err)
	}
	good := p.token(t)
	altered := bytes.Replace(good, []byte("3.4.2"), []byte("3.4.3"), 1)
	for range 2 {
		if _, err := v.Verify(t.Context(), evidence(t, good), tee.Expected{AnyReportData: true}); err != nil {
			t.Error(err)
		}
		if _, err := v.Verify(t.Context(), evidence(t, altered), tee.Expected{AnyReportData: true}); !slices.Contains(teetest.Refused(t, err), "cca.platform_signature") {
			t.Errorf("altered: got %v", err)
		}
	}
}

func TestAnchors(t *testing.T) {
	t.Parallel()
	p := newPlatform(t, elliptic.P384(), elliptic.P384())
	a := p.anchor()
	short, noKey := a, a
	short.InstanceID, noKey.Key = a.InstanceID[1:], nil
	small := a
	small.Key = &newKey(t, elliptic.P224()).PublicKey
	for name, anchors := range map[string][]TrustAnchor{"twice": {a, a}, "short": {short}, "no key": {noKey}, "P-224": {small}} {
		if _, err := New(Options{TrustAnchors: anchors}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	store := string(read(t, "tastore.json"))
	for name, in := range map[string]string{
		"not JSON": `[`, "an object": `{}`, "unknown name": strings.Replace(store, `"crv"`, `"d":"x","crv"`, 1), "another curve": strings.Replace(store, "P-384", "P-256", 1),
		"another type": strings.Replace(store, `"EC"`, `"RSA"`, 1), "off the curve": strings.Replace(store, `"x": "I`, `"x": "J`, 1),
		"odd hex": strings.Replace(store, `"0107`, `"107`, 1), "short id": strings.Replace(store, `"0107`, `"07`, 1), "padding": strings.Replace(store, `6M"`, `6M="`, 1),
	} {
		if got, err := ParseTrustAnchors([]byte(in), false); err == nil {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

func TestReferenceValues(t *testing.T) {
	t.Parallel()
	got, err := ReferenceValues(read(t, "rvstore.json"))
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Platform struct {
			ID         string `json:"cca-platform-implementation-id"`
			Config     string `json:"cca-platform-config"`
			Components []struct {
				Value string `json:"measurement-value"`
			} `json:"cca-platform-sw-components"`
		}
		Realm struct {
			Initial    string   `json:"cca-realm-initial-measurement"`
			Extensible []string `json:"cca-realm-extensible-measurements"`
		}
	}
	if err := json.Unmarshal(read(t, "token.claims.json"), &claims); err != nil {
		t.Fatal(err)
	}
	// The store is the one that upstream appraises this token with.
	for name, values := range map[string][]string{
		"cca_platform_implementation_id": {claims.Platform.ID}, "cca_platform_config": {claims.Platform.Config}, "cca_realm_initial_measurement": {claims.Realm.Initial},
		"cca_realm_extensible_measurement_0": claims.Realm.Extensible[:1], "cca_realm_extensible_measurement_3": claims.Realm.Extensible[3:],
	} {
		if diff := cmp.Diff(values, got[name]); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for _, c := range claims.Platform.Components {
		if !slices.Contains(got["cca_platform_sw_components"], c.Value) {
			t.Errorf("component %s is not among the reference values", c.Value)
		}
	}
	if n := len(got["cca_platform_sw_components"]); n != 13 || len(slices.Collect(maps.Keys(got))) != 8 {
		t.Errorf("got %d components in %v", n, got)
	}
	for _, in := range []string{``, `[]`, `{"realm":[{"initial-measurement":"xx","rak-hash-algorithm":"sha-256"}]}`, `{"realm":[{"initial-measurement":"00","rak-hash-algorithm":"sha-256","extensible-measurements":["00"]}]}`, `{"other":1}`} {
		if got, err := ReferenceValues([]byte(in)); err == nil {
			t.Errorf("%s: got %v", in, got)
		}
	}
}

func FuzzVerify(f *testing.F) {
	for _, name := range []string{"token", "tf-rmm", "draft-00"} {
		f.Add([]byte(evidence(f, read(f, name+".cbor"))))
	}
	v := vectorVerifier(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := v.Verify(t.Context(), data, tee.Expected{ReportData: []byte("none has this")})
		if _, ok := errors.AsType[*tee.Error](err); !ok || r != nil {
			t.Errorf("got %v, %v", r, err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	data := evidence(b, read(b, "token.cbor"))
	b.Run("warm", func(b *testing.B) {
		v := vectorVerifier(b)
		for b.Loop() {
			if _, err := v.Verify(b.Context(), data, tee.Expected{AnyReportData: true}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			if _, err := vectorVerifier(b).Verify(b.Context(), data, tee.Expected{AnyReportData: true}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
