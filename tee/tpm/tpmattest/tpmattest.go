// Package tpmattest gets evidence from a TPM 2.0: a quote over all registers of
// the SHA-256 bank by an attestation key that stays in the TPM.
//
// It also has what others need of a TPM: reading and extending registers,
// binding initdata, and NV indexes. Functions take a transport, one command at
// a time; the Attester serialises its own.
//
// It is tested against a software TPM (swtpm), not against discrete hardware.
package tpmattest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/coffer-project/coffer/tee"
	"github.com/coffer-project/coffer/tee/tpm"
)

// DefaultAK is the persistent handle of the attestation key that the guest
// components use (confidential-containers/guest-components@8246e5e,
// TPM_DEFAULT_AK_HANDLE).
const DefaultAK = 0x81010002

// maxReportData is what all attesters take.
const maxReportData = 64

// Options configure an attester.
type Options struct {
	// TPM is the device; see [Open]. The attester does not close it, and
	// expects nobody else to use it at the same time.
	TPM transport.TPM
	// AK is the persistent handle of the attestation key. Zero: DefaultAK.
	AK uint32
	// CreateAK makes the key where there is none at AK. Without it that is an
	// error: a verifier that does not know the key has no use for it.
	CreateAK bool
	// Hierarchy and Kind are for CreateAK. Zero: Endorsement and RSA2048.
	Hierarchy Hierarchy
	Kind      KeyKind
	// AKCertificates is the key's certificate chain, DER, to be sent along.
	AKCertificates [][]byte
	// EventLog reads the firmware's event log, to be sent along, for example
	// of /sys/kernel/security/tpm0/binary_bios_measurements. Nil: none is sent.
	EventLog func() ([]byte, error)
}

// Attester implements [tee.Attester]. It is safe for concurrent use.
type Attester struct {
	o    Options
	key  *Key
	spki []byte
	turn *Turn
}

// New finds the attestation key, or makes it.
func New(o Options) (*Attester, error) {
	if o.TPM == nil {
		return nil, errors.New("tpmattest: no TPM given")
	}
	if o.AK == 0 {
		o.AK = DefaultAK
	}
	if o.Hierarchy == 0 {
		o.Hierarchy = Endorsement
	}
	if o.Kind == "" {
		o.Kind = RSA2048
	}
	key, err := ReadKey(o.TPM, o.AK)
	if errors.Is(err, tpm2.TPMRCHandle) && o.CreateAK {
		key, err = CreateKey(o.TPM, o.Hierarchy, o.Kind, o.AK)
	}
	if err != nil {
		return nil, err
	}
	if err := key.restrictedSigner(); err != nil {
		return nil, err
	}
	spki, err := key.SPKI()
	if err != nil {
		return nil, err
	}
	return &Attester{o: o, key: key, spki: spki, turn: NewTurn()}, nil
}

// TEE implements [tee.Attester].
func (*Attester) TEE() tee.Name { return tee.TPM }

// AKPublic is the attestation key, SubjectPublicKeyInfo in DER: what an operator
// registers with the verifier.
func (a *Attester) AKPublic() []byte { return append([]byte(nil), a.spki...) }

// Evidence implements [tee.Attester]. The quote carries the first 32 bytes of
// report data.
func (a *Attester) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	if len(reportData) > maxReportData {
		return nil, fmt.Errorf("tpmattest: report data: expected at most %d bytes, got %d", maxReportData, len(reportData))
	}
	nonce := tee.Fit(reportData, tpm.NonceSize)
	return Take(ctx, a.turn, func() (json.RawMessage, error) {
		q, err := Quote(a.o.TPM, a.key, nonce)
		if err != nil {
			return nil, err
		}
		e := &tpm.Evidence{AKPublic: a.spki, Quote: q.Quote, AKCertificates: a.o.AKCertificates}
		if a.o.EventLog != nil {
			if e.EventLog, err = a.o.EventLog(); err != nil {
				return nil, fmt.Errorf("tpmattest: event log: %w", err)
			}
		}
		return e.JSON()
	})
}

// InitData implements [tee.Attester]: register 8, which is 32 zeros unless
// initdata was bound. It is not the digest itself; see [tpm.Extended].
func (a *Attester) InitData(ctx context.Context) ([]byte, error) {
	return Take(ctx, a.turn, func() ([]byte, error) {
		pcrs, err := ReadPCRs(a.o.TPM)
		if err != nil {
			return nil, err
		}
		return pcrs[tpm.InitDataPCR][:], nil
	})
}

// BindInitData is the function of that name, in turn with evidence.
func (a *Attester) BindInitData(ctx context.Context, digest []byte) error {
	_, err := Take(ctx, a.turn, func() (struct{}, error) { return struct{}{}, BindInitData(a.o.TPM, digest) })
	return err
}

// ReadPCR reads a register of the SHA-256 bank, in turn with evidence.
func (a *Attester) ReadPCR(ctx context.Context, pcr int) ([]byte, error) {
	return Take(ctx, a.turn, func() ([]byte, error) { return ReadPCR(a.o.TPM, pcr) })
}

// ExtendPCR is the function of that name, in turn with evidence. The digest has 32
// bytes.
func (a *Attester) ExtendPCR(ctx context.Context, pcr int, digest []byte) error {
	return Extend(ctx, a.turn, a.o.TPM, pcr, digest)
}

// Extend is [ExtendPCR] when the caller's turn has come.
func Extend(ctx context.Context, turn *Turn, t transport.TPM, pcr int, digest []byte) error {
	if len(digest) != 32 {
		return fmt.Errorf("tpmattest: digest: expected 32 bytes, got %d", len(digest))
	}
	value := [32]byte(digest)
	_, err := Take(ctx, turn, func() (struct{}, error) { return struct{}{}, ExtendPCR(t, pcr, value) })
	return err
}

// Turn lets one caller at a time use a TPM.
type Turn struct{ busy chan struct{} }

// NewTurn returns a turn that nobody has.
func NewTurn() *Turn { return &Turn{make(chan struct{}, 1)} }

// Take calls f when its turn has come. A command cannot be interrupted: when
// ctx ends first, f finishes in the background, keeps its turn until then, and
// its result is dropped.
func Take[T any](ctx context.Context, t *Turn, f func() (T, error)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, err
	}
	select {
	case t.busy <- struct{}{}:
	case <-ctx.Done():
		return zero, fmt.Errorf("tpmattest: waiting for an earlier request: %w", ctx.Err())
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-t.busy }()
		v, err := f()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return zero, fmt.Errorf("tpmattest: the TPM's answer: %w", ctx.Err())
	}
}
