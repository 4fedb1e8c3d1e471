// Package ccaverify checks the evidence of Arm CCA: the signatures of the
// platform token and of the realm token, that the platform vouches for the
// realm's key, the platform's lifecycle, and what the realm is bound to.
//
// Trust begins at the platforms' public attestation keys (CPAK), which
// [Options] names one by one: there is no common root. Nothing here has been
// tried on silicon; tests use tokens of emulated platforms and tokens that they
// mint themselves.
//
// # Checks
//
//   - cca.format: the evidence and the tokens are what package cca reads.
//   - cca.anchor: the instance identifier is that of a trust anchor, and the
//     implementation identifier is the anchor's.
//   - cca.platform_algorithm, cca.realm_algorithm: the token is signed with the
//     algorithm that the key's curve calls for: ES256 on P-256, ES384 on P-384,
//     ES512 on P-521.
//   - cca.platform_signature: the trust anchor signed the platform token.
//   - cca.realm_key: the platform's challenge is the digest of the realm's key.
//   - cca.realm_signature: the realm's key signed the realm token.
//   - cca.lifecycle: the platform is secured. A platform on which parts outside
//     of CCA may be debugged is genuine, with a warning; unknown, unfinished and
//     decommissioned platforms are not.
//   - cca.debug: the CCA platform itself is not open for debugging
//     (Options.AllowDebug makes it a warning).
//   - cca.report_data: the realm's challenge.
//   - cca.personalization_value: the digest of initdata, padded to 64 bytes.
//
// # Claims
//
// Byte strings are in standard base64, but for report_data and init_data (the
// realm's challenge and personalization value), which are in hex.
//
//   - platform: cca-platform-profile, -implementation-id, -instance-id,
//     -challenge, -config, -lifecycle (a number), -lifecycle-state (its name in
//     draft-ffm-rats-cca-token), -sw-components (objects measurement-type,
//     measurement-value, signer-id, version, measurement-description, which is
//     the hash algorithm), -service-indicator, -hash-algo-id.
//   - realm: cca-realm-profile, -challenge, -personalization-value,
//     -initial-measurement, -extensible-measurements (four),
//     -hash-algo-id, -public-key, -public-key-hash-algo-id.
//   - simulated: the trust anchor is a development one.
//
// Texts that the tokens leave out are left out here.
package ccaverify

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/cca"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/internal/memo"
)

// Options of [New].
type Options struct {
	// TrustAnchors are the platforms whose evidence can be genuine.
	TrustAnchors []TrustAnchor
	// AllowDebug makes a platform that is open for debugging a warning
	// instead of a failure.
	AllowDebug bool
	// Now is the clock; nil: time.Now. Tokens hold no time: it only says how
	// long a verified platform token is remembered.
	Now func() time.Time
}

// A platform signs one token for each realm key, that is for each boot of the
// realm manager, and every realm presents it.
const (
	maxPlatforms  = 4096
	rememberedFor = 24 * time.Hour
)

type verifier struct {
	o         Options
	anchors   map[string]*TrustAnchor
	platforms *memo.Memo[struct{}]
}

// New returns the verifier. It fails where an anchor is not complete, or two
// are of the same instance.
func New(o Options) (tee.Verifier, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	v := &verifier{o: o, anchors: make(map[string]*TrustAnchor, len(o.TrustAnchors)), platforms: memo.New[struct{}](maxPlatforms)}
	for i := range o.TrustAnchors {
		a := o.TrustAnchors[i]
		if err := a.check(); err != nil {
			return nil, fmt.Errorf("ccaverify: trust anchor %d: %w", i, err)
		}
		id := string(a.InstanceID)
		if v.anchors[id] != nil {
			return nil, fmt.Errorf("ccaverify: trust anchor %d: expected one for each instance, got another for %x", i, a.InstanceID)
		}
		v.anchors[id] = &a
	}
	return v, nil
}

// TEE implements [tee.Verifier].
func (*verifier) TEE() tee.Name { return tee.CCA }

// Verify implements [tee.Verifier].
func (v *verifier) Verify(ctx context.Context, evidence json.RawMessage, want tee.Expected) (*tee.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	e, err := cca.ParseEvidence(evidence)
	if err != nil {
		return nil, malformed("evidence", "evidence of Arm CCA", err)
	}
	t, err := cca.ParseToken(e.Token)
	if err != nil {
		return nil, malformed("token", "a CCA token of profile 2023 or legacy", err)
	}
	l := checks.New(tee.CCA, false)
	anchor := v.checkPlatform(l, t)
	checkRealm(l, t)
	v.checkLifecycle(l, t.Platform.Lifecycle)
	l.ReportData("cca", "cca-realm-challenge", t.Realm.Challenge, want)
	l.InitData("cca.personalization_value", "cca-realm-personalization-value", t.Realm.Personalization, want)
	if err := l.Err(); err != nil {
		return nil, err
	}
	claims := t.Claims()
	claims["simulated"] = anchor.Development
	return &tee.Result{
		TEE: tee.CCA, Class: tee.CPU, Claims: claims, ReportData: t.Realm.Challenge, InitData: t.Realm.Personalization,
		Simulated: anchor.Development, Warnings: l.Warnings(),
	}, nil
}

func malformed(field, expected string, err error) error {
	return checks.Refuse(tee.CCA, tee.Failure{
		Check: "cca.format", Field: field, Expected: expected, Got: err.Error(),
		Help: "the evidence was cut, altered, or made by software that this verifier does not know",
	})
}

// checkPlatform checks the platform token; the anchor is nil where none fits.
func (v *verifier) checkPlatform(l *checks.List, t *cca.Token) *TrustAnchor {
	a := v.anchors[string(t.Platform.InstanceID)]
	if a == nil {
		l.Fail(tee.Failure{
			Check: "cca.anchor", Field: "cca-platform-instance-id", Expected: fmt.Sprintf("one of %d configured platforms", len(v.anchors)),
			Got: hex.EncodeToString(t.Platform.InstanceID), Help: "add the platform's attestation key, as its maker publishes it, to the trust anchors",
		})
		return nil
	}
	if !bytes.Equal(a.ImplementationID, t.Platform.ImplementationID) {
		l.Fail(tee.Failure{
			Check: "cca.anchor", Field: "cca-platform-implementation-id", Expected: hex.EncodeToString(a.ImplementationID),
			Got: hex.EncodeToString(t.Platform.ImplementationID), Help: "the trust anchor is that of another kind of platform",
		})
	}
	key := memo.KeyOf(t.PlatformToken.Raw, a.fingerprint())
	now := v.o.Now()
	if _, ok := v.platforms.Get(key, now); ok {
		return a
	}
	if checkSignature(l, "platform", &t.PlatformToken, a.Key, "the token was altered, or another key signed it than the one that the maker endorsed") {
		v.platforms.Put(key, now, now.Add(rememberedFor), struct{}{})
	}
	return a
}

// checkRealm checks that the platform vouches for the key that signed the realm
// token.
func checkRealm(l *checks.List, t *cca.Token) {
	hash, ok := map[string]crypto.Hash{"sha-256": crypto.SHA256, "sha-384": crypto.SHA384, "sha-512": crypto.SHA512}[t.Realm.PublicKeyHash]
	if !ok {
		l.Fail(tee.Failure{
			Check: "cca.realm_key", Field: "cca-realm-public-key-hash-algo-id", Expected: "sha-256, sha-384 or sha-512",
			Got: fmt.Sprintf("%.40q", t.Realm.PublicKeyHash), Help: "the realm's key is bound by a hash that is unknown or too weak",
		})
	} else {
		h := hash.New()
		h.Write(t.Realm.PublicKey)
		if sum := h.Sum(nil); !bytes.Equal(sum, t.Platform.Challenge) {
			l.Fail(tee.Failure{
				Check: "cca.realm_key", Field: "cca-platform-challenge", Expected: hex.EncodeToString(sum) + " (digest of cca-realm-public-key)",
				Got: hex.EncodeToString(t.Platform.Challenge), Help: "the platform vouches for another realm key: the two tokens do not belong together",
			})
		}
	}
	checkSignature(l, "realm", &t.RealmToken, t.Realm.Key, "the token was altered after the realm manager signed it")
}

// checkSignature checks one token; name is "platform" or "realm".
func checkSignature(l *checks.List, name string, s *cca.Signed, key *ecdsa.PublicKey, help string) bool {
	want, err := algorithmOf(key)
	if err != nil || want != s.Algorithm {
		l.Fail(tee.Failure{
			Check: "cca." + name + "_algorithm", Field: name + " token", Expected: want.String() + " (as the key is on " + key.Curve.Params().Name + ")",
			Got: s.Algorithm.String(), Help: "the token names an algorithm that its key is not for",
		})
		return false
	}
	if err := verifySign1(s, key); err != nil {
		l.Fail(tee.Failure{
			Check: "cca." + name + "_signature", Field: name + " token", Expected: "a valid " + want.String() + " signature", Got: err.Error(), Help: help,
		})
		return false
	}
	return true
}

// checkLifecycle judges the platform's state: what is open for debugging
// outside of the platform is no concern of realms, what is open inside is.
func (v *verifier) checkLifecycle(l *checks.List, claim uint16) {
	state := cca.LifecycleOf(claim)
	f := tee.Failure{
		Check: "cca.lifecycle", Field: "cca-platform-lifecycle", Expected: "secured: 0x3000 to 0x30ff", Got: fmt.Sprintf("%#04x, %s", claim, state),
	}
	switch state {
	case cca.LifecycleSecured:
	case cca.LifecycleNonPlatformDebug:
		f.Help = "parts of the machine outside of CCA may be debugged; realms are protected from them"
		l.Warn(f)
	case cca.LifecycleRecoverableDebug:
		f.Check, f.Help = "cca.debug", "the firmware that protects realms may be debugged: whoever does, reads them"
		l.FailUnless(v.o.AllowDebug, f)
	default:
		f.Help = "the platform is not in service: its keys and its firmware are not to be relied on"
		l.Fail(f)
	}
}
