// Package eventlog reads the logs of what was measured into registers: TCG2
// logs of a TPM (crypto agile, and the SHA-1 form of TPM 1.2), CCEL logs of TDX
// and Hygon CSV guests, and the runtime events (AAEL) that an attestation agent
// adds.
//
// A log is no evidence by itself. [Log.Compare] replays it and compares with
// registers that a quote vouches for; after that the digests of the events, and
// their order within one register, are as measured. What an event says about
// itself (its type, its data) is only as good as digest_matches_event: where that
// is false, the digest is of something else, for example of a kernel of which the
// data holds a name and a path.
//
// Parsing is strict about structure and lenient about the data of an event, which
// [Event.Details] decodes as far as it is understood. No event may hide from the
// comparison: each has a digest for every algorithm, none has two for one
// algorithm, an EV_NO_ACTION event, which is not measured, has digests of zeros
// only (except in logs of TPM 1.2), and Compare refuses registers it was not given a value for.
//
// [Log.ClaimsOf] gives the claim "uefi_event_logs" of the TDX and CSV verifiers,
// [Boot.Claims] the claims "boot.*".
//
// SM3 is not in Go's library: who needs it passes it with [WithHash], so that a
// guest does not link it.
package eventlog

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
)

// Limits of what is read.
const (
	// MaxLog is the size of a log. The CCEL area of a TDX guest has 64 KiB to 1 MiB.
	MaxLog = 4 << 20
	// MaxEvents is the number of events in a log.
	MaxEvents = 1 << 15
	// maxAlgorithms is how many digests an event has: a TPM has one for each bank.
	maxAlgorithms = 8
	maxDigest     = 64
)

// Kind says where a log comes from.
type Kind string

// The kinds of logs.
const (
	// Auto finds out: a log whose events are all of registers 1 to 4 is CCEL.
	Auto Kind = ""
	// CCEL is a log of a confidential guest (UEFI 2.10, section 38.2), perhaps with
	// runtime events appended.
	CCEL Kind = "CCEL"
	// TCG2 is the log of a TPM (TCG PC Client Platform Firmware Profile, section 10).
	TCG2 Kind = "TCG2"
	// AAEL is a file of runtime events alone, without a header.
	AAEL Kind = "AAEL"
)

// Alg is a TPM_ALG_ID (TPM 2.0 Library, part 2, table 9).
type Alg uint16

// The hash algorithms of registers.
const (
	SHA1   Alg = 0x0004
	SHA256 Alg = 0x000b
	SHA384 Alg = 0x000c
	SHA512 Alg = 0x000d
	SM3    Alg = 0x0012
)

var algNames = map[Alg]string{SHA1: "SHA-1", SHA256: "SHA-256", SHA384: "SHA-384", SHA512: "SHA-512", SM3: "SM3"}

// String is the name that claims have, for example "SHA-384", or the number in hex.
func (a Alg) String() string {
	if name, ok := algNames[a]; ok {
		return name
	}
	return fmt.Sprintf("0x%04x", uint16(a))
}

// Size is the length of a digest in bytes, 0 for an algorithm that is not known.
func (a Alg) Size() int {
	switch a {
	case SHA1:
		return 20
	case SHA256, SM3:
		return 32
	case SHA384:
		return 48
	case SHA512:
		return 64
	}
	return 0
}

// Digest is one digest of an event.
type Digest struct {
	Alg   Alg
	Value []byte
}

// Event is one entry of a log. Its slices are parts of the bytes that were parsed.
type Event struct {
	// Register is the PCR (TCG2), or the measurement register of a confidential
	// guest (CCEL): RTMR n of TDX has number n+1. For AAEL it is the one or the
	// other, depending on the guest.
	Register int
	Type     EventType
	// Digests has one element for each algorithm, at least one.
	Digests []Digest
	// Data is what the log says of the event.
	Data []byte
}

// Digest returns the digest of an algorithm, nil for none.
func (e *Event) Digest(a Alg) []byte {
	for _, d := range e.Digests {
		if d.Alg == a {
			return d.Value
		}
	}
	return nil
}

// Log is a parsed log. Its methods are safe for concurrent use as long as nobody
// changes it.
type Log struct {
	// Kind is CCEL, TCG2 or AAEL.
	Kind Kind
	// Legacy is set for logs in the form of TPM 1.2.
	Legacy bool
	// Algorithms are those of the header, or of the first event where there is none.
	Algorithms []Alg
	// Events are all events, in order, without the header.
	Events []Event
	// Padding is the number of bytes behind the last event.
	Padding int

	hashes map[Alg]func() hash.Hash
}

// Option changes how a log is parsed and replayed.
type Option func(*Log)

// WithHash adds an algorithm, for example SM3.
func WithHash(a Alg, h func() hash.Hash) Option {
	return func(l *Log) { l.hashes[a] = h }
}

func newLog(options []Option) *Log {
	l := &Log{hashes: map[Alg]func() hash.Hash{
		SHA1: sha1.New, SHA256: sha256.New, SHA384: sha512.New384, SHA512: sha512.New,
	}}
	for _, o := range options {
		o(l)
	}
	return l
}

// sum is the digest of data, nil for an algorithm without a hash function.
func (l *Log) sum(a Alg, data ...[]byte) []byte {
	n, ok := l.hashes[a]
	if !ok || n == nil {
		return nil
	}
	h := n()
	for _, d := range data {
		h.Write(d)
	}
	return h.Sum(nil)
}

// DigestMatchesEvent reports whether every digest of an event is that of its data.
// It is false also where an algorithm has no hash function here.
func (l *Log) DigestMatchesEvent(e *Event) bool {
	for _, d := range e.Digests {
		if want := l.sum(d.Alg, e.Data); want == nil || !bytes.Equal(want, d.Value) {
			return false
		}
	}
	return len(e.Digests) > 0
}
