package tpmverify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/internal/checks"
	"github.com/coffer-project/coffer/tee/internal/p384"
	"github.com/coffer-project/coffer/tee/tpm"
)

// AllPCRs has a bit for each register.
const AllPCRs = 1<<tpm.PCRCount - 1

const (
	minRSABits = 2048
	maxRSABits = 8192
	minRSAExp  = 65537 // the default of TPMs (TPM 2.0 Library, part 2, §12.2.3.5)
)

// CheckQuote judges a quote by key: the key itself, the signature, the selected
// registers and their digest. required has a bit for each register that the
// quote has to cover. The checks are named prefix + ".key", ".signature",
// ".quote" (the structure), ".pcr_selection" and ".pcr_digest". What fails is
// recorded in l. The result is nil where the message is no quote; the nonce is
// left to the caller.
func CheckQuote(l *checks.List, prefix string, key crypto.PublicKey, sig *tpm.Signature, message []byte, pcrs *tpm.PCRs, required uint32) *tpm.Attest {
	switch err := checkKey(key); {
	case err != nil:
		l.Fail(tee.Failure{Check: prefix + ".key", Field: "attestation key", Expected: "RSA of 2048 to 8192 bits, or ECDSA on P-256 or P-384", Got: err.Error()})
	default:
		if err := verify(key, sig, message); err != nil {
			l.Fail(tee.Failure{Check: prefix + ".signature", Field: "tpm_quote.signature", Expected: "a signature by the attestation key over tpm_quote.message", Got: err.Error(), Help: "the quote was changed, or another key made it"})
		}
	}
	a, err := tpm.ParseAttest(message)
	if err != nil {
		l.Fail(tee.Failure{Check: prefix + ".quote", Field: "tpm_quote.message", Expected: "a TPMS_ATTEST of type quote", Got: err.Error()})
		return nil
	}
	if checkSelection(l, prefix, a, required) {
		checkDigest(l, prefix, a, sig.Hash, pcrs)
	}
	return a
}

func checkKey(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *rsa.PublicKey:
		switch bits := k.N.BitLen(); {
		case bits < minRSABits || bits > maxRSABits:
			return fmt.Errorf("RSA of %d bits", bits)
		case k.E < minRSAExp || k.E%2 == 0:
			return fmt.Errorf("RSA with public exponent %d, less than %d or even", k.E, minRSAExp)
		case k.N.Bit(0) == 0:
			return errors.New("RSA with an even modulus")
		}
		return nil
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return fmt.Errorf("ECDSA on %s", k.Params().Name)
		}
		if _, err := k.ECDH(); err != nil {
			return fmt.Errorf("ECDSA with a point that is not on %s", k.Params().Name)
		}
		return nil
	}
	return fmt.Errorf("a key of type %T", key)
}

// hashOf maps the hash algorithms that count as secure.
func hashOf(a tpm.Alg) (crypto.Hash, error) {
	switch a {
	case tpm.AlgSHA256:
		return crypto.SHA256, nil
	case tpm.AlgSHA384:
		return crypto.SHA384, nil
	case tpm.AlgSHA512:
		return crypto.SHA512, nil
	}
	return 0, fmt.Errorf("hash algorithm: expected SHA256, SHA384 or SHA512, got %v", a)
}

func digest(h crypto.Hash, parts ...[]byte) []byte {
	sum := h.New()
	for _, p := range parts {
		sum.Write(p)
	}
	return sum.Sum(nil)
}

// verify checks sig over message; the key has passed checkKey.
func verify(key crypto.PublicKey, sig *tpm.Signature, message []byte) error {
	h, err := hashOf(sig.Hash)
	if err != nil {
		return err
	}
	sum := digest(h, message)
	bad := fmt.Errorf("a %v signature that does not verify", sig)
	switch k := key.(type) {
	case *rsa.PublicKey:
		switch sig.Scheme {
		case tpm.AlgRSASSA:
			err = rsa.VerifyPKCS1v15(k, h, sum, sig.RSA)
		case tpm.AlgRSAPSS:
			// TPMs of before revision 1.38 took the longest salt that fits.
			err = rsa.VerifyPSS(k, h, sum, sig.RSA, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto})
		default:
			return fmt.Errorf("scheme %v with an RSA key", sig.Scheme)
		}
		if err != nil {
			return bad
		}
		return nil
	case *ecdsa.PublicKey:
		if sig.Scheme != tpm.AlgECDSA {
			return fmt.Errorf("scheme %v with an ECDSA key", sig.Scheme)
		}
		r, s := new(big.Int).SetBytes(sig.R), new(big.Int).SetBytes(sig.S)
		var good bool
		if k.Curve == elliptic.P384() {
			good = p384.Verify(k, sum, r, s)
		} else {
			good = ecdsa.Verify(k, sum, r, s)
		}
		if !good {
			return bad
		}
		return nil
	}
	return fmt.Errorf("a key of type %T", key)
}

// checkSelection wants exactly one bank, SHA-256, and at least the required
// registers: others could hide values that the evidence does not show.
func checkSelection(l *checks.List, prefix string, a *tpm.Attest, required uint32) bool {
	f := tee.Failure{Check: prefix + ".pcr_selection", Field: "tpm_quote.message: pcrSelect", Expected: fmt.Sprintf("registers %#08x of the SHA256 bank, and no other bank", required)}
	for i, s := range a.Selections {
		if i > 0 {
			f.Got += ", "
		}
		f.Got += fmt.Sprintf("registers %#08x of the %v bank", s.Mask(), s.Bank)
	}
	if len(a.Selections) != 1 || a.Selections[0].Bank != tpm.AlgSHA256 {
		if f.Got == "" {
			f.Got = "none"
		}
		f.Help = "ask the TPM for a quote over one bank; is its SHA256 bank allocated?"
		l.Fail(f)
		return false
	}
	switch mask := a.Selections[0].Mask(); {
	case mask&^AllPCRs != 0:
		f.Help = "a PC client TPM has 24 registers"
	case mask&required != required:
		f.Help = "the registers that are missing could hold anything"
	default:
		return true
	}
	l.Fail(f)
	return false
}

// checkDigest recomputes the digest of the registers. It is made with the hash
// algorithm of the signature (TPM 2.0 Library, part 3, §18.4.1).
func checkDigest(l *checks.List, prefix string, a *tpm.Attest, alg tpm.Alg, pcrs *tpm.PCRs) {
	h, err := hashOf(alg)
	if err != nil {
		return // the signature was refused for it
	}
	parts := make([][]byte, 0, len(pcrs))
	for i := range pcrs {
		if a.Selections[0].Has(i) {
			parts = append(parts, pcrs[i][:])
		}
	}
	if got := digest(h, parts...); !bytes.Equal(got, a.PCRDigest) {
		l.Fail(tee.Failure{
			Check: prefix + ".pcr_digest", Field: "tpm_quote.pcrs", Expected: "values with the digest " + hex.EncodeToString(a.PCRDigest), Got: hex.EncodeToString(got),
			Help: "the register values are not those that the TPM signed; did one change between quote and reading?",
		})
	}
}

// CheckInitData compares register 8 with what it holds after initdata with
// that digest was bound to a TPM: the register was zero and was extended once.
// check is the whole name of the check.
func CheckInitData(l *checks.List, check string, a *tpm.Attest, pcrs *tpm.PCRs, want tee.Expected) {
	if want.InitData == nil {
		return
	}
	if len(want.InitData) != 32 {
		l.Fail(tee.Failure{
			Check: check, Field: "initdata digest", Expected: "32 bytes", Got: fmt.Sprintf("%d bytes", len(want.InitData)),
			Help: "a register of the SHA-256 bank can hold no other digest: write `algorithm = \"sha256\"` into the initdata of guests with a TPM",
		})
		return
	}
	f := tee.Failure{Check: check, Field: "pcr08"}
	expected := tpm.Extended([32]byte(want.InitData))
	f.Expected, f.Got = hex.EncodeToString(expected[:]), hex.EncodeToString(pcrs[tpm.InitDataPCR][:])
	switch {
	case a == nil || len(a.Selections) != 1 || !a.Selections[0].Has(tpm.InitDataPCR):
		f.Got, f.Help = "not quoted", "the quote does not cover register 8: its value proves nothing"
	case f.Expected == f.Got:
		return
	case pcrs[tpm.InitDataPCR] == [32]byte{}:
		f.Help = "the guest has not extended register 8 with the digest of its initdata"
	default:
		f.Help = "the guest was bound to other initdata than it presents, or something else extended register 8"
	}
	l.Fail(f)
}

// PCRClaims are the quoted registers by name, pcr00 to pcr23, in lower-case hex.
// Registers that the quote does not cover are left out.
func PCRClaims(a *tpm.Attest, pcrs *tpm.PCRs) map[string]any {
	out := make(map[string]any, len(pcrs))
	for i := range pcrs {
		if len(a.Selections) == 1 && a.Selections[0].Has(i) {
			out[fmt.Sprintf("pcr%02d", i)] = hex.EncodeToString(pcrs[i][:])
		}
	}
	return out
}
