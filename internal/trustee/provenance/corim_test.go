package provenance

import (
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/x509"
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"
)

func enc(t testing.TB, v any) []byte {
	t.Helper()
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		t.Fatal(err)
	}
	b, err := mode.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tag(n uint64, v any) cbor.Tag { return cbor.Tag{Number: n, Content: v} }

func example(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/unsigned-example-corim.cbor")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// class is an environment with a class.
func class(id any, vendor, model string) map[int]any {
	c := map[int]any{}
	if id != nil {
		c[0] = id
	}
	if vendor != "" {
		c[1] = vendor
	}
	if model != "" {
		c[2] = model
	}
	return map[int]any{0: c}
}

func ownClass(t testing.TB) map[int]any {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(ClassID, "-", ""))
	if err != nil {
		t.Fatal(err)
	}
	return class(tag(37, b), "", "")
}

func measured(key any, values map[int]any) map[int]any { return map[int]any{0: key, 1: values} }

func digest(b byte) []any { return []any{1, filled(b, 32)} }

func filled(b byte, n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = b
	}
	return out
}

// corimMap is a corim-map with one CoMID of the given reference triples.
func corimMap(t testing.TB, triples ...[]any) map[int]any {
	t.Helper()
	comid := map[int]any{1: map[int]any{0: "tag"}, 4: map[int]any{0: triples}}
	return map[int]any{0: "test", 1: []any{tag(506, enc(t, comid))}}
}

func unsigned(t testing.TB, m map[int]any) []byte { return enc(t, tag(501, m)) }

func simple(t testing.TB) map[int]any {
	t.Helper()
	return corimMap(t, []any{class(nil, "ACME", "RR"), []any{measured("fw", map[int]any{2: []any{digest(1), digest(2)}})}})
}

func TestExampleCoRIM(t *testing.T) {
	t.Parallel()
	refs, err := Parse(t.Context(), Options{AllowUnsigned: []string{CoRIM}, Now: now}, message(CoRIM, example(t)))
	if err != nil {
		t.Fatal(err)
	}
	r := byName(t, refs, "ACME/RoadRunner/31fb5abf-023e-4992-aa4e-95f9c1503bfa/digests")
	const want = `"87428fc522803d31065e7bce3cf03fe475096631e5e07bbd7a0fde60c4cf25c7" "0263829989b6fd954f72baaf2fc64bc2e2f01d692d4de72986ea808f6e99813f" "a3a5e715f0cc574a73c3f9bebb6bc24f32ffd5b67b387244c2c909da779a1478"`
	if len(refs) != 1 || values(r) != want || r.Scalar || r.Entries[0].Source != "unsigned corim, CoRIM test corim id" {
		t.Errorf("got %+v", refs)
	}
	refs, err = Parse(t.Context(), Options{}, message(CoRIM, example(t)))
	refused(t, refs, err, "signed by one of the configured signers", true)
}

// The class id is what its comment says: RFC 9562 §5.5.
func TestClassID(t *testing.T) {
	t.Parallel()
	url, err := hex.DecodeString("6ba7b8119dad11d180b400c04fd430c8") // namespace URL, RFC 9562 §6.6
	if err != nil {
		t.Fatal(err)
	}
	sum := sha1.Sum(append(url, ReferenceValues...)) // version 5 is defined with SHA-1
	id := sum[:16]
	id[6], id[8] = id[6]&0x0f|0x50, id[8]&0x3f|0x80
	if uuid(id) != ClassID {
		t.Errorf("expected %s", uuid(id))
	}
}

func TestCoRIMValues(t *testing.T) {
	t.Parallel()
	end := testNow.Add(time.Hour)
	m := corimMap(t,
		[]any{class(tag(111, []byte{0x2b, 0x06, 0x01, 0x04, 0x01, 0x9c, 0x78}), "AMD", "Genoa"), []any{
			measured(641, map[int]any{4: tag(560, []byte{1, 2}), 2: []any{[]any{"sha-384", filled(3, 48)}}}),
			measured(tag(111, []byte{0x2a, 0x03}), map[int]any{1: tag(552, 7)}),
			measured("min", map[int]any{1: tag(553, 8)}),
			measured("bare", map[int]any{1: 9}),
		}},
		[]any{ownClass(t), []any{measured("snp_launch_measurement", map[int]any{2: []any{digest(5)}})}},
		[]any{ownClass(t), []any{measured("snp_launch_measurement", map[int]any{2: []any{digest(6), digest(5)}})}},
		[]any{ownClass(t), []any{measured("snp_guest_abi_major", map[int]any{1: 1})}},
	)
	m[4] = map[int]any{0: tag(1, testNow.Add(-time.Hour).Unix()), 1: tag(1, end.Unix())}
	refs, err := Parse(t.Context(), Options{AllowUnsigned: []string{CoRIM}, Now: now}, message(CoRIM, enc(t, tag(500, tag(501, m)))))
	if err != nil {
		t.Fatal(err)
	}
	five, six := strings.Repeat("05", 32), strings.Repeat("06", 32)
	for name, want := range map[string]string{
		"AMD/Genoa/641/raw_bytes": `"0102"`, "AMD/Genoa/641/digests": `"` + strings.Repeat("03", 48) + `"`,
		"AMD/Genoa/1.2.3/svn": "7", "AMD/Genoa/min/svn": "8", "AMD/Genoa/bare/svn": "9",
		"snp_launch_measurement": `"` + five + `" "` + six + `"`, "snp_guest_abi_major": "1",
	} {
		r := byName(t, refs, name)
		if values(r) != want || r.Scalar != !strings.Contains(want, `"`) || !r.Entries[0].Expires.Equal(end) {
			t.Errorf("%s: got %+v", name, r)
		}
	}
	if len(refs) != 7 {
		t.Errorf("%d references", len(refs))
	}
}

func TestCoRIMRefused(t *testing.T) {
	t.Parallel()
	env := class(nil, "ACME", "RR")
	one := []any{measured("fw", map[int]any{2: []any{digest(1)}})}
	with := func(k int, v any) map[int]any {
		m := simple(t)
		m[k] = v
		return m
	}
	triple := func(e, ms any) []byte { return unsigned(t, corimMap(t, []any{e, ms})) }
	value := func(v map[int]any) []byte { return triple(env, []any{measured("fw", v)}) }
	for name, c := range map[string]struct {
		doc  []byte
		want string
	}{
		"empty":            {nil, "CBOR"},
		"no tag":           {enc(t, simple(t)), "expected a tag"},
		"another tag":      {enc(t, tag(500, tag(502, 1))), "COSE_Sign1"},
		"trailing":         {append(unsigned(t, simple(t)), 0), "CBOR"},
		"no id":            {enc(t, tag(501, map[int]any{1: []any{}})), "expected an id"},
		"no tags":          {unsigned(t, with(1, []any{})), "tags: expected 1 to 64"},
		"dependent":        {unsigned(t, with(2, []any{})), "dependent RIMs"},
		"expired":          {unsigned(t, with(4, map[int]any{1: tag(1, testNow.Unix())})), "expired at"},
		"not yet valid":    {unsigned(t, with(4, map[int]any{0: tag(1, testNow.Unix()+60), 1: tag(1, testNow.Unix()+120)})), "not valid before"},
		"no end":           {unsigned(t, with(4, map[int]any{0: tag(1, 0)})), "not-after: expected a time"},
		"only others":      {unsigned(t, with(1, []any{tag(505, []byte{0xa0})})), "got 0"},
		"no bytes":         {unsigned(t, with(1, []any{tag(506, "x")})), "expected a byte string"},
		"broken CoMID":     {unsigned(t, with(1, []any{tag(506, []byte{0xa1})})), "CBOR"},
		"no tag identity":  {unsigned(t, with(1, []any{tag(506, []byte{0xa0})})), "tag-identity"},
		"twice a key":      {[]byte{0xd9, 0x01, 0xf5, 0xa2, 0x00, 0x61, 'a', 0x00, 0x61, 'b'}, "duplicate"},
		"indefinite":       {[]byte{0xd9, 0x01, 0xf5, 0xbf, 0x00, 0x61, 'a', 0xff}, "indefinite"},
		"huge array":       {[]byte{0xd9, 0x01, 0xf5, 0xa1, 0x01, 0x9a, 0xff, 0xff, 0xff, 0xff}, "CBOR"},
		"deep":             {append([]byte{0xd9, 0x01, 0xf5}, append(filled(0x81, 100), 0x00)...), "CBOR"},
		"short triple":     {unsigned(t, corimMap(t, []any{env})), "expected an environment and measurements"},
		"no class":         {triple(map[int]any{}, one), "expected a class"},
		"instance":         {triple(map[int]any{0: map[int]any{1: "a", 2: "b"}, 1: tag(550, []byte{1})}, one), "instance or group"},
		"group":            {triple(map[int]any{0: map[int]any{1: "a", 2: "b"}, 2: tag(37, filled(1, 16))}, one), "instance or group"},
		"layer":            {triple(map[int]any{0: map[int]any{1: "a", 2: "b", 3: 1}}, one), "layers and indices"},
		"no vendor":        {triple(class(nil, "", "RR"), one), "expected a vendor"},
		"no model":         {triple(class(nil, "ACME", ""), one), "expected a model"},
		"slash":            {triple(class(nil, "AC/ME", "RR"), one), "without a slash"},
		"space":            {triple(class(nil, "AC ME", "RR"), one), "printable ASCII"},
		"class id":         {triple(class(tag(99, 1), "ACME", "RR"), one), "class-id"},
		"no measurement":   {triple(env, []any{}), "measurements: expected 1 to"},
		"no key":           {triple(env, []any{map[int]any{1: map[int]any{2: []any{digest(1)}}}}), "expected a key"},
		"no values":        {triple(env, []any{map[int]any{0: "fw"}}), "expected values"},
		"authorised":       {triple(env, []any{map[int]any{0: "fw", 1: map[int]any{2: []any{digest(1)}}, 2: []any{}}}), "authorized-by"},
		"other values":     {value(map[int]any{11: "name"}), "others are not supported"},
		"no digest":        {value(map[int]any{2: []any{}}), "expected at least one"},
		"digest of three":  {value(map[int]any{2: []any{[]any{1, []byte{1}, 2}}}), "an algorithm and a value"},
		"short digest":     {value(map[int]any{2: []any{[]any{1, []byte{1}}}}), "of its size"},
		"SHA-1":            {value(map[int]any{2: []any{[]any{"sha-1", filled(1, 20)}}}), "of its size"},
		"algorithm type":   {value(map[int]any{2: []any{[]any{[]any{}, filled(1, 32)}}}), "of its size"},
		"raw type":         {value(map[int]any{4: "x"}), "raw-value: "},
		"masked":           {value(map[int]any{4: tag(563, []any{[]byte{1}, []byte{1}})}), "raw-value: expected bytes"},
		"mask":             {value(map[int]any{4: tag(560, []byte{1}), 5: []byte{1}}), "masks"},
		"svn type":         {value(map[int]any{1: "x"}), "svn"},
		"svn tag":          {value(map[int]any{1: tag(560, 1)}), "expected tag 552"},
		"svn twice":        {triple(env, []any{measured("fw", map[int]any{1: 1}), measured("fw", map[int]any{1: 2})}), "is set twice"},
		"own, two kinds":   {triple(ownClass(t), []any{measured("a", map[int]any{1: 1, 2: []any{digest(1)}})}), "is set twice"},
		"own, svn of list": {triple(ownClass(t), []any{measured("a", map[int]any{2: []any{digest(1)}}), measured("a", map[int]any{1: 1})}), "is set twice"},
		"own, list of svn": {triple(ownClass(t), []any{measured("a", map[int]any{1: 1}), measured("a", map[int]any{2: []any{digest(1)}})}), "a"},
	} {
		refs, err := Parse(t.Context(), Options{AllowUnsigned: []string{CoRIM}, Now: now}, message(CoRIM, c.doc))
		if err == nil || !strings.Contains(err.Error(), c.want) || refs != nil {
			t.Errorf("%s: got %v, %v, expected %q", name, refs, err, c.want)
		}
	}
}

// signedCoRIM makes a COSE_Sign1 of a corim-map.
func signedCoRIM(t testing.TB, key crypto.Signer, alg cose.Algorithm, payload []byte, change func(*cose.Sign1Message)) []byte {
	t.Helper()
	msg := cose.NewSign1Message()
	msg.Headers.Protected[cose.HeaderLabelAlgorithm] = alg
	msg.Headers.Protected[cose.HeaderLabelContentType] = contentType
	msg.Payload = payload
	if change != nil {
		change(msg)
	}
	s, err := cose.NewSigner(alg, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := msg.Sign(rand.Reader, nil, s); err != nil {
		t.Fatal(err)
	}
	b, err := msg.MarshalCBOR()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSignedCoRIM(t *testing.T) {
	t.Parallel()
	p256, p384 := newKey(t, elliptic.P256()), newKey(t, elliptic.P384())
	edPub, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	payload := unsigned(t, simple(t))
	bare := enc(t, simple(t))
	good := signedCoRIM(t, p256, cose.AlgorithmES256, payload, nil)
	a := goodAuthority(t)
	chain := signedCoRIM(t, a.key, cose.AlgorithmES384, payload, func(m *cose.Sign1Message) {
		m.Headers.Protected[cose.HeaderLabelX5Chain] = [][]byte{a.leaf.Raw, a.root.Raw}
	})
	for name, c := range map[string]struct {
		doc    []byte
		signer Signer
		proof  string
	}{
		"P-256":             {good, keySigner(&p256.PublicKey), "signer builder: corim, CoRIM test, key sha256:"},
		"P-384":             {signedCoRIM(t, p384, cose.AlgorithmES384, payload, nil), keySigner(&p384.PublicKey), "signer builder"},
		"Ed25519":           {signedCoRIM(t, ed, cose.AlgorithmEdDSA, payload, nil), keySigner(edPub), "signer builder"},
		"map alone":         {signedCoRIM(t, p256, cose.AlgorithmES256, bare, nil), keySigner(&p256.PublicKey), "signer builder"},
		"wrapped":           {enc(t, tag(502, cbor.RawMessage(good))), keySigner(&p256.PublicKey), "signer builder"},
		"wrapped, untagged": {enc(t, tag(502, cbor.RawMessage(good[1:]))), keySigner(&p256.PublicKey), "signer builder"},
		"wrapped twice":     {enc(t, tag(500, tag(502, cbor.RawMessage(good)))), keySigner(&p256.PublicKey), "signer builder"},
		"certificate":       {chain, rootSigner(a), `signer vendor: corim, CoRIM test, certificate "test signer" sha256:`},
		"one certificate":   {signedCoRIM(t, a.key, cose.AlgorithmES384, payload, func(m *cose.Sign1Message) { m.Headers.Protected[cose.HeaderLabelX5Chain] = a.leaf.Raw }), rootSigner(a), "signer vendor"},
	} {
		refs, err := Parse(t.Context(), Options{Signers: []Signer{c.signer}, Now: now}, message(CoRIM, c.doc))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if e := byName(t, refs, "ACME/RR/fw/digests").Entries; len(e) != 2 || !strings.HasPrefix(e[0].Source, c.proof) {
			t.Errorf("%s: got %+v", name, e)
		}
	}
}

func TestSignedCoRIMRefused(t *testing.T) {
	t.Parallel()
	key, other := newKey(t, elliptic.P256()), newKey(t, elliptic.P256())
	payload := unsigned(t, simple(t))
	good := signedCoRIM(t, key, cose.AlgorithmES256, payload, nil)
	signed := func(payload []byte, change func(*cose.Sign1Message)) []byte {
		return signedCoRIM(t, key, cose.AlgorithmES256, payload, change)
	}
	header := func(label, v any) func(*cose.Sign1Message) {
		return func(m *cose.Sign1Message) { m.Headers.Protected[label] = v }
	}
	meta := func(validity map[int]any) func(*cose.Sign1Message) {
		return header(int64(headerMeta), enc(t, map[int]any{0: map[int]any{0: "x"}, 1: validity}))
	}
	a := goodAuthority(t)
	altered := strings.Replace(string(good), strings.Repeat("\x01", 32), strings.Repeat("\x09", 32), 1)
	for name, c := range map[string]struct {
		doc       []byte
		signers   []Signer
		want      string
		untrusted bool
	}{
		"another key":       {good, []Signer{keySigner(&other.PublicKey)}, "no configured key", true},
		"no signers":        {good, nil, "no configured key", true},
		"altered":           {[]byte(altered), nil, "no configured key", true},
		"signature cut":     {good[:len(good)-1], nil, "CBOR", false},
		"no payload":        {enc(t, tag(18, []any{enc(t, map[int]any{1: -7}), map[int]any{}, nil, filled(1, 64)})), nil, "detached", false},
		"no header":         {enc(t, tag(18, []any{[]byte{}, map[int]any{}, payload, filled(1, 64)})), nil, "COSE_Sign1", false},
		"algorithm outside": {enc(t, tag(18, []any{[]byte{}, map[int]any{1: -7}, payload, filled(1, 64)})), nil, "COSE_Sign1", false},
		"HMAC":              {enc(t, tag(18, []any{enc(t, map[int]any{1: 5}), map[int]any{}, payload, filled(1, 32)})), nil, "algorithm: expected ECDSA", false},
		"RSA PKCS1":         {enc(t, tag(18, []any{enc(t, map[int]any{1: -257}), map[int]any{}, payload, filled(1, 32)})), nil, "algorithm: expected ECDSA", false},
		"content type":      {signed(payload, header(cose.HeaderLabelContentType, "text/plain")), nil, "content type: expected", false},
		"critical": {signed(payload, func(m *cose.Sign1Message) {
			m.Headers.Protected[cose.HeaderLabelCritical] = []any{int64(99)}
			m.Headers.Protected[int64(99)] = 1
		}), nil, "critical", false},
		"payload tag":       {signed(enc(t, tag(500, simple(t))), nil), nil, "expected tag 501", false},
		"payload":           {signed([]byte("hello"), nil), nil, "payload", false},
		"signature expired": {signed(payload, meta(map[int]any{1: tag(1, testNow.Unix()-1)})), nil, "signature-validity: not-after: expired", false},
		"signature early":   {signed(payload, meta(map[int]any{0: tag(1, testNow.Unix()+9), 1: tag(1, testNow.Unix()+99)})), nil, "not valid before", false},
		"broken meta":       {signed(payload, header(int64(headerMeta), []byte{0xff})), nil, "corim-meta", false},
		"prefix":            {good, []Signer{{Name: "x", Keys: []crypto.PublicKey{&key.PublicKey}, Prefixes: []string{"ACME/XX"}}}, "may set references that begin with ACME/XX", true},
		"no certificates":   {signed(payload, header(cose.HeaderLabelX5Chain, [][]byte{})), []Signer{rootSigner(a)}, "x5chain", false},
		"no certificate":    {signed(payload, header(cose.HeaderLabelX5Chain, []byte{1})), []Signer{rootSigner(a)}, "x5chain", false},
		"key of another":    {signed(payload, header(cose.HeaderLabelX5Chain, a.leaf.Raw)), []Signer{rootSigner(a)}, "is not that of certificate", true},
		"unknown root":      {signedCoRIM(t, a.key, cose.AlgorithmES384, payload, header(cose.HeaderLabelX5Chain, a.leaf.Raw)), []Signer{rootSigner(goodAuthority(t))}, "unknown authority", true},
		"COSE_Mac0":         {enc(t, tag(17, []any{[]byte{}, map[int]any{}, payload, []byte{}})), nil, "got 17", false},
		"wrapped other":     {enc(t, tag(502, tag(98, []any{}))), nil, "got tag 98", false},
	} {
		if c.signers == nil && name != "no signers" {
			c.signers = []Signer{keySigner(&key.PublicKey)}
		}
		// That unsigned ones are accepted does not help a wrong signature.
		refs, err := Parse(t.Context(), Options{Signers: c.signers, AllowUnsigned: []string{CoRIM}, Now: now}, message(CoRIM, c.doc))
		t.Run(name, func(t *testing.T) { refused(t, refs, err, c.want, c.untrusted) })
	}
}

// The earlier of two ends counts.
func TestSignedCoRIMExpiry(t *testing.T) {
	t.Parallel()
	key := newKey(t, elliptic.P256())
	m := simple(t)
	m[4] = map[int]any{1: tag(1, testNow.Unix()+200)}
	doc := signedCoRIM(t, key, cose.AlgorithmES256, unsigned(t, m), func(msg *cose.Sign1Message) {
		msg.Headers.Protected[int64(headerMeta)] = enc(t, map[int]any{0: map[int]any{0: "x"}, 1: map[int]any{1: tag(1, testNow.Unix()+100)}})
	})
	refs, err := Parse(t.Context(), Options{Signers: []Signer{keySigner(&key.PublicKey)}, Now: now}, message(CoRIM, doc))
	if err != nil || refs[0].Entries[0].Expires.Unix() != testNow.Unix()+100 {
		t.Errorf("got %+v, %v", refs, err)
	}
}

func TestOID(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"2b0601040182370a": "1.3.6.1.4.1.311.10", "2a864886f70d": "1.2.840.113549", "883703": "2.999.3", "00": "0.0", "4f": "1.39", "50": "2.0",
		"": "", "80": "", "2b80": "", "2b8001": "", "2bffffffffffffffffff7f": "", strings.Repeat("01", 65): "",
	} {
		b, err := hex.DecodeString(in)
		if err != nil {
			t.Fatal(err)
		}
		got, err := oid(b)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s: got %q, %v, expected %q", in, got, err, want)
		}
	}
}

func FuzzCoRIM(f *testing.F) {
	// Seeds are the same in every process: the key is fixed, its signatures too.
	key := ed25519.NewKeyFromSeed(filled(7, 32))
	f.Add(example(f))
	f.Add(unsigned(f, simple(f)))
	f.Add(signedCoRIM(f, key, cose.AlgorithmEdDSA, unsigned(f, simple(f)), nil))
	f.Add(unsigned(f, corimMap(f, []any{ownClass(f), []any{measured("a", map[int]any{4: tag(560, []byte{1})})}})))
	// Nobody has this key: nothing may verify.
	nobody := newKey(f, elliptic.P256())
	signed := Options{Signers: []Signer{keySigner(&nobody.PublicKey), {Name: "r", Roots: []*x509.Certificate{goodAuthority(f).root}, Prefixes: []string{"*"}}}, Now: now}
	free := Options{AllowUnsigned: []string{CoRIM}, Now: now}
	f.Fuzz(func(t *testing.T, data []byte) {
		if d, err := parseCoRIM(&signed, data); err == nil && d.by != nil {
			t.Error("a signature that nobody made was accepted")
		}
		d, err := parseCoRIM(&free, data)
		if err != nil {
			return
		}
		refs, err := free.finish(CoRIM, d)
		for i := range refs {
			if err := refs[i].Validate(); err != nil {
				t.Error(err)
			}
		}
		if err == nil && len(refs) == 0 {
			t.Error("nothing, without an error")
		}
	})
}
