// Package severify makes attestation requests for IBM Secure Execution, and
// checks the evidence that guests answer with.
//
// A request holds a measurement key and a nonce, encrypted so that only machines
// whose host keys the verifier names can read them. The ultravisor of such a
// machine answers with an HMAC under that key over the image's tags, the guest's
// user data, the nonce and the hashes of the host keys: who knows the right HMAC
// is a guest on such a machine. The host keys come in documents that IBM signs.
//
// None of this has been proven against a machine, as no evidence of one is
// public. The request, the HMAC's input, the image header and the chain over
// host keys are tested with the test data of IBM's s390-tools; evidence is that of
// a simulated ultravisor in the tests.
//
// # Sealing
//
// The verifier keeps nothing between request and evidence: it gives the
// measurement key and the nonce to the guest, sealed with AES-256-GCM under a
// secret that all replicas share ([Options].Secret). The upstream trustee encrypts
// them with an RSA public key instead, so that whoever gets to know that public
// key can choose a measurement key and forge evidence; these seals cannot be made
// without the secret. Guests do not look at them. Freshness comes with report
// data: the KBS protocol puts the whole request into the digest.
//
// # Checks
//
//   - se.format: the evidence is what package se reads.
//   - se.request: measurement key and nonce are sealed by this verifier.
//   - se.measurement: the HMAC.
//   - se.additional_data: the two hashes of host keys are there, nothing else.
//   - se.host_key: the request was unpacked by one of the host keys that the
//     options name, and its document is good.
//   - se.collateral: revocation lists are there and valid
//     (Options.AllowMissingCollateral makes it a warning).
//   - se.report_data: the user data.
//   - se.init_data: there is no field for initdata. Where initdata is given to
//     compare with, nothing binds it to the guest, which is a failure.
//
// # Claims
//
// In hex: cuid (configuration unique identifier), tag (of the image's header),
// image_phkh and attestation_phkh (hashes of the host keys that unpacked image and
// request), report_data; ours: page_list_digest, address_list_digest,
// tweak_list_digest. version is the number of the request's version, 256.
// simulated: the host key is a development one.
package severify

import (
	"bytes"
	"context"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/internal/memo"
	"github.com/coffer-project/coffer/tee/se"
)

// Options of [New].
type Options struct {
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Rand is the source of keys and nonces; nil: crypto/rand.
	Rand io.Reader
	// Secret seals what the verifier gives to guests; at least 32 bytes that
	// nobody else knows, the same for all replicas. What is sealed counts as long
	// as the host keys are the same, too.
	Secret []byte
	// HostKeys are host-key documents, Certificates IBM's signing key and the
	// intermediates over it, Roots the roots over those, CRLs the revocation
	// lists of each issuer; each is a file in PEM or DER. At most 255 host keys.
	HostKeys, Certificates, Roots, CRLs [][]byte
	// DevelopmentHostKeys are documents, or any certificates, that nobody has to
	// have signed. Guests on their machines are simulated. There are none beside
	// HostKeys: every machine that a request is for can answer it in the name of
	// each other one.
	DevelopmentHostKeys [][]byte
	// Tags are those of the image that requests are for. Guests echo them; it
	// is the measurement that tells which image runs.
	Tags se.Tags
	// AllowMissingCollateral makes missing and stale revocation lists a warning.
	AllowMissingCollateral bool
}

const minSecret = 32

// What seals are for.
const (
	purposeKey   = "coffer severify 1: measurement key"
	purposeNonce = "coffer severify 1: request nonce"
)

// Verifier makes requests and checks evidence. It is safe for concurrent use.
type Verifier struct {
	o     Options
	aead  cipher.AEAD
	keys  map[[se.HostKeyHashSize]byte]*hostKey
	order []*hostKey
	trust *trust // nil where there are development host keys only
	// good remembers host keys while their whole chain and its revocation lists
	// are valid; the files do not change.
	good *memo.Memo[struct{}]
}

// New returns the verifier. It fails where files cannot be read, and where IBM's
// signing key did not sign a host-key document; the chain over that key, dates and
// revocation are judged at use.
func New(o Options) (*Verifier, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if len(o.Secret) < minSecret {
		return nil, fmt.Errorf("severify: secret: expected at least %d bytes, got %d", minSecret, len(o.Secret))
	}
	v := &Verifier{o: o, keys: map[[se.HostKeyHashSize]byte]*hostKey{}, good: memo.New[struct{}](maxHostKeys)}
	if err := v.readHostKeys(); err != nil {
		return nil, fmt.Errorf("severify: %w", err)
	}
	key, err := hkdf.Key(sha256.New, o.Secret, nil, "coffer severify 2: seals"+v.machines(), protectionKeySize)
	if err != nil {
		return nil, fmt.Errorf("severify: secret: %w", err)
	}
	if v.aead, err = gcm(key); err != nil {
		return nil, fmt.Errorf("severify: %w", err)
	}
	return v, nil
}

// machines identifies the host keys, whatever their order. Every machine that a
// request is for learns the measurement key, and could answer in the name of each
// other one: what was sealed for other machines than today's must not count, or
// one that was taken off the list, or an emulated one, could answer for ever.
func (v *Verifier) machines() string {
	hashes := slices.Collect(maps.Keys(v.keys))
	slices.SortFunc(hashes, func(a, b [se.HostKeyHashSize]byte) int { return bytes.Compare(a[:], b[:]) })
	var out []byte
	for _, h := range hashes {
		out = append(out, h[:]...)
	}
	return string(out)
}

func (v *Verifier) readHostKeys() error {
	if len(v.o.HostKeys) > 0 && len(v.o.DevelopmentHostKeys) > 0 {
		return errors.New("development host keys: expected none beside those of machines: a request is for all of them, and an emulated machine could answer it in the name of a real one")
	}
	if len(v.o.HostKeys) > 0 {
		certificates, err1 := readCertificates("certificate", v.o.Certificates)
		roots, err2 := readCertificates("root", v.o.Roots)
		crls, err3 := readCRLs(v.o.CRLs)
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		var err error
		if v.trust, err = newTrust(certificates, roots, crls); err != nil {
			return err
		}
	}
	for _, files := range []struct {
		what        string
		data        [][]byte
		development bool
	}{{"host-key document", v.o.HostKeys, false}, {"development host key", v.o.DevelopmentHostKeys, true}} {
		documents, err := readCertificates(files.what, files.data)
		if err != nil {
			return err
		}
		for _, c := range documents {
			k, err := newHostKey(c, files.development)
			if err != nil {
				return err
			}
			if !k.development {
				if err := v.trust.issued(c); err != nil {
					return err
				}
			}
			if v.keys[k.hash] != nil {
				return fmt.Errorf("%s %s: expected each host key once", files.what, serial(c))
			}
			v.keys[k.hash] = k
			v.order = append(v.order, k)
		}
	}
	if len(v.order) == 0 || len(v.order) > maxHostKeys {
		return fmt.Errorf("host-key documents: expected 1 to %d, got %d", maxHostKeys, len(v.order))
	}
	return nil
}

// usable says whether a request may be made for a host key now.
func (v *Verifier) usable(k *hostKey, lenient bool) error {
	if k.development {
		return nil
	}
	now := v.o.Now()
	key := memo.Key(k.hash)
	if _, ok := v.good.Get(key, now); ok {
		return nil
	}
	w, err := v.trust.check(k.document, now, lenient)
	if err == nil && !lenient {
		v.good.Put(key, w.from, w.to, struct{}{})
	}
	return err
}

// Challenge returns a new request, which the KBS protocol sends as its nonce: a
// JSON object of request_blob, measurement_size, additional_size,
// encr_measurement_key, encr_request_nonce and image_hdr_tags. It names every
// host key that is good now, and fails where none is; the error is
// *[tee.CollateralError] where revocation lists are the reason.
func (v *Verifier) Challenge(ctx context.Context) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	r := new(request)
	var reasons error
	for _, k := range v.order {
		if err := v.usable(k, v.o.AllowMissingCollateral); err != nil {
			reasons = errors.Join(reasons, err)
			continue
		}
		r.hostKeys = append(r.hostKeys, k)
	}
	if len(r.hostKeys) == 0 {
		if errors.Is(reasons, errCollateral) {
			return "", &tee.CollateralError{Item: "revocation lists of IBM Secure Execution", Reason: tee.CollateralMissing, Err: reasons}
		}
		return "", fmt.Errorf("severify: no host key is good: %w", reasons)
	}
	var sealNonces [2][ivSize]byte
	var err error
	for _, b := range [][]byte{r.iv[:], r.protectionKey[:], r.measurementKey[:], r.nonce[:], sealNonces[0][:], sealNonces[1][:]} {
		if _, err = io.ReadFull(v.o.Rand, b); err != nil {
			return "", fmt.Errorf("severify: randomness: %w", err)
		}
	}
	if r.customer, err = ecdh.P521().GenerateKey(v.o.Rand); err != nil {
		return "", fmt.Errorf("severify: customer key: %w", err)
	}
	blob, err := r.encode()
	if err != nil {
		return "", fmt.Errorf("severify: request: %w", err)
	}
	challenge := se.Request{
		Blob: blob, MeasurementSize: se.MeasurementSize, AdditionalSize: additionalSize, Tags: v.o.Tags,
		SealedMeasurementKey: seal(v.aead, sealNonces[0], purposeKey, r.measurementKey[:]), SealedNonce: seal(v.aead, sealNonces[1], purposeNonce, r.nonce[:]),
	}
	return challenge.JSON()
}

// TEE implements [tee.Verifier].
func (*Verifier) TEE() tee.Name { return tee.SE }

// Verify implements [tee.Verifier].
func (v *Verifier) Verify(ctx context.Context, evidence json.RawMessage, want tee.Expected) (*tee.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e, err := se.ParseEvidence(evidence)
	if err != nil {
		return nil, checks.Refuse(tee.SE, tee.Failure{
			Check: "se.format", Field: "evidence", Expected: "evidence of IBM Secure Execution", Got: err.Error(), Help: "the evidence was cut, altered, or made by software that this verifier does not know",
		})
	}
	l := checks.New(tee.SE, v.o.AllowMissingCollateral)
	v.checkMeasurement(l, e)
	k := v.checkHostKey(l, e)
	l.ReportData("se", "user_data", e.UserData, want)
	if want.InitData != nil {
		l.Fail(tee.Failure{
			Check: "se.init_data", Field: "init_data", Expected: hex.EncodeToString(want.InitData) + ", bound by the measurement", Got: "evidence that has no field for it",
			Help: "the host could have exchanged initdata: run this guest without, and put what it needs into its image",
		})
	}
	if err := l.Err(); err != nil {
		return nil, err
	}
	claims := e.Claims()
	claims["simulated"] = k.development
	return &tee.Result{TEE: tee.SE, Class: tee.CPU, Claims: claims, ReportData: e.UserData, Simulated: k.development, Warnings: l.Warnings()}, nil
}

// checkMeasurement computes the HMAC anew.
func (v *Verifier) checkMeasurement(l *checks.List, e *se.Evidence) {
	key, keyErr := unseal(v.aead, purposeKey, e.SealedMeasurementKey, measurementKeySize)
	nonce, nonceErr := unseal(v.aead, purposeNonce, e.SealedNonce, se.NonceSize)
	for _, s := range []struct {
		field string
		err   error
	}{{"encr_measurement_key", keyErr}, {"encr_request_nonce", nonceErr}} {
		if s.err != nil {
			l.Fail(tee.Failure{
				Check: "se.request", Field: s.field, Expected: "what this verifier gave with its request", Got: s.err.Error(),
				Help: "the evidence answers another verifier's request, or replicas do not share their secret",
			})
		}
	}
	if keyErr != nil || nonceErr != nil {
		return
	}
	h := hmac.New(sha512.New, key)
	h.Write(se.Measured(&e.Tags, e.CUID, e.UserData, nonce, e.AdditionalData))
	if !hmac.Equal(h.Sum(nil), e.Measurement) {
		// What it should have been is not said: it would be a forgery's last missing part.
		l.Fail(tee.Failure{
			Check: "se.measurement", Field: "measurement", Expected: "the HMAC over what the evidence says", Got: hex.EncodeToString(e.Measurement),
			Help: "the evidence was altered, or answers another request, or is of another image than it says",
		})
	}
}

// checkHostKey finds the host key that unpacked the request.
func (v *Verifier) checkHostKey(l *checks.List, e *se.Evidence) *hostKey {
	_, attestation, err := e.HostKeyHashes()
	if err != nil {
		l.Fail(tee.Failure{
			Check: "se.additional_data", Field: "additional_data", Expected: "the hashes of two host keys", Got: err.Error(), Help: "the guest did not pass on what the ultravisor returned",
		})
		return nil
	}
	k := v.keys[[se.HostKeyHashSize]byte(attestation)]
	f := tee.Failure{Check: "se.host_key", Field: "attestation_phkh", Got: hex.EncodeToString(attestation)}
	if k == nil {
		f.Expected, f.Help = fmt.Sprintf("the hash of one of %d configured host keys", len(v.keys)), "add the machine's host-key document"
		l.Fail(f)
		return nil
	}
	err = v.usable(k, false)
	if errors.Is(err, errCollateral) {
		missing := tee.Failure{Check: "se.collateral", Field: "revocation lists"}
		l.Missing(missing, &tee.CollateralError{Item: "revocation lists of IBM Secure Execution", Reason: tee.CollateralMissing, Err: err})
		err = v.usable(k, true) // what lists there are may still speak against it
	}
	if err != nil {
		f.Expected, f.Got, f.Help = "a host-key document that is good", err.Error(), "the machine's host key is not to be relied on any more: get its new document from IBM"
		l.Fail(f)
	}
	return k
}
