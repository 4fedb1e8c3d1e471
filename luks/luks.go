// Package luks reads and writes the headers of LUKS2 volumes with integrity
// protection, as cryptsetup makes them with
//
//	cryptsetup luksFormat --type luks2 --cipher aes-xts-plain64 \
//	    --integrity hmac-sha256 --sector-size 4096 …
//
// The disk belongs to an adversary who may change it at any moment. So [Read]
// reads everything it needs once, into memory, and validates that copy
// strictly: one keyslot, one segment, one digest, one cipher, costs of key
// derivation within [Limits], both copies of the header alike. [Header.Unlock]
// works on the copy. A mapping that is built from a [Header] cannot be changed
// by a host that exchanges the bytes on the disk in between
// (GHSA-f5p4-p5q5-jv3h, GHSA-hq76-6gh2-5g4q).
//
// [Create] writes a header for a new volume, and [Blank] tells whether a disk
// may become one: only a disk that holds nothing at all.
//
// The format is that of the "LUKS2 On-Disk Format Specification", version
// 1.1.3; sections are named after it. Nothing here calls the kernel: reading
// and unlocking work on any machine.
package luks

import (
	"errors"
	"fmt"
	"io"

	"github.com/coffer-project/coffer/secret"
)

// What a volume is made of. A header that says otherwise is refused.
const (
	// Encryption is the segment's and the key slot's cipher, in LUKS terms.
	Encryption = "aes-xts-plain64"
	// Integrity is the segment's authentication, in LUKS terms.
	Integrity = "hmac(sha256)"
	// SectorSize is the size of an encrypted and authenticated sector in bytes.
	SectorSize = 4096
	// KeySize is the volume key's length: two AES-256 keys of XTS and one of
	// HMAC-SHA-256.
	KeySize = 96
	// TagSize is the length of a sector's authentication tag in bytes.
	TagSize = 32

	areaKeySize = 64   // of the cipher that encrypts the key slot
	stripes     = 4000 // of the anti-forensic splitter: the only number LUKS2 knows
	areaSector  = 512  // unit of encryption of a key slot's area
)

// maxPassphrase bounds what is fed to the key derivation.
const maxPassphrase = 4096

// Limits bound the work that a header may cause. A zero field is its default.
type Limits struct {
	// MemoryKiB is the memory of Argon2; default DefaultMemoryKiB.
	MemoryKiB uint32
}

// Costs of key derivation that are accepted.
const (
	// DefaultMemoryKiB is the memory that Argon2 may ask for by default.
	DefaultMemoryKiB = 64 << 10
	maxArgonTime     = 16
	maxArgonThreads  = 8
	maxIterations    = 20_000_000
	minIterations    = 1000 // section 3.2.3: PBKDF2's least
)

// Errors of reading and unlocking. Errors of reading the disk itself are none of
// them: see [ReadError].
var (
	// ErrNotLUKS says that there is no LUKS2 header at all.
	ErrNotLUKS = errors.New("not a LUKS2 volume")
	// ErrWrongKey says that the key opens no key slot.
	ErrWrongKey = errors.New("the key does not open this volume")
)

// ReadError says that the disk could not be read. It tells nothing about what is
// on it.
type ReadError struct {
	// Offset is where the read began, in bytes.
	Offset int64
	Err    error
}

// Error implements error.
func (e *ReadError) Error() string {
	return fmt.Sprintf("the disk cannot be read at byte %d: %v", e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *ReadError) Unwrap() error { return e.Err }

// FormatError is a header that was refused.
type FormatError struct {
	// Field names the place, for example keyslots.0.kdf.memory.
	Field string
	// Problem says what was expected and what was found.
	Problem string
}

// Error implements error.
func (e *FormatError) Error() string { return fmt.Sprintf("LUKS2 header: %s: %s", e.Field, e.Problem) }

func refuse(field, format string, args ...any) error {
	return &FormatError{field, fmt.Sprintf(format, args...)}
}

// Header is a validated header, held in memory. It has no reference to the disk.
type Header struct {
	// UUID of the volume as the header has it, printable.
	UUID string
	// DataOffset is where the segment begins, in bytes: dm-integrity's
	// superblock is there.
	DataOffset int64
	// KDF is the key derivation's name: argon2id, argon2i or pbkdf2.
	KDF string

	kdf    kdf
	afHash string
	digest digest
	area   []byte // the key slot's encrypted key material
}

// Read reads the header of a disk of size bytes and validates it. The error is a
// [ReadError], [ErrNotLUKS] or a [FormatError].
func Read(r io.ReaderAt, size int64, limits Limits) (*Header, error) {
	if limits.MemoryKiB == 0 {
		limits.MemoryKiB = DefaultMemoryKiB
	}
	m, hdrSize, err := readHeaders(r, size)
	if err != nil {
		return nil, err
	}
	h, area, err := m.validate(hdrSize, size, limits)
	if err != nil {
		return nil, err
	}
	h.area = make([]byte, stripes*KeySize)
	if err := readFull(r, h.area, area); err != nil {
		return nil, err
	}
	return h, nil
}

// readFull fills b from the disk at off.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	if n, err := r.ReadAt(b, off); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return &ReadError{off, err}
	}
	return nil
}

// Unlock derives the volume key from the passphrase: KeySize bytes, first those
// of XTS, then those of HMAC, as dm-crypt takes them. The error is
// [ErrWrongKey] for a passphrase that does not fit or a header that was altered.
// The caller clears the key.
func (h *Header) Unlock(passphrase secret.Bytes) (secret.Bytes, error) {
	if n := passphrase.Len(); n == 0 || n > maxPassphrase {
		return secret.Bytes{}, fmt.Errorf("key of the volume: expected 1 to %d bytes, got %d", maxPassphrase, n)
	}
	derived, err := h.kdf.derive(passphrase.Expose(), areaKeySize)
	if err != nil {
		return secret.Bytes{}, err
	}
	defer clear(derived)
	split := make([]byte, len(h.area))
	defer clear(split)
	if err := areaCrypt(derived, split, h.area, false); err != nil {
		return secret.Bytes{}, err
	}
	key := afMerge(split, KeySize, stripes, hashes[h.afHash])
	ok, err := h.digest.matches(key)
	if err == nil && !ok {
		err = ErrWrongKey
	}
	if err != nil {
		clear(key)
		return secret.Bytes{}, err
	}
	return secret.New(key), nil
}
