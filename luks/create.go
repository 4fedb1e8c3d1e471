package luks

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strconv"

	"github.com/coffer-project/coffer/secret"
)

// Layout of a new volume: what cryptsetup's default is.
const (
	newHeaderSize = 16 << 10
	// NewDataOffset is where the data of a new volume begins, in bytes.
	NewDataOffset = 16 << 20
	newAreaOffset = 2 * newHeaderSize
	newAreaSize   = (KeySize*stripes + 4095) / 4096 * 4096
	// MinDiskSize is the smallest disk that becomes a volume, in bytes.
	MinDiskSize = NewDataOffset + 4<<20
)

// Costs of a new volume's key derivation. The passphrase is a random key, which
// needs no stretching; these are for one that is not.
const (
	newArgonTime       = 4
	newArgonMemory     = 8 << 10 // KiB
	newDigestIteration = 1000
)

// New is a volume about to be: its header, and the key that it holds.
type New struct {
	// Header are the first bytes of the disk: both copies and the key slot.
	Header []byte
	// Key is the volume key, as [Header.Unlock] returns it. The caller clears it.
	Key secret.Bytes
}

// Create makes the header of a new volume whose only key slot the passphrase
// opens. Randomness (the key, salts, the UUID) comes from rand. The caller writes
// Header to a disk that is [Blank] and has at least [MinDiskSize] bytes, behind
// everything else, so that a volume that has a header is whole.
func Create(rand io.Reader, passphrase secret.Bytes) (*New, error) {
	if n := passphrase.Len(); n == 0 || n > maxPassphrase {
		return nil, fmt.Errorf("key of the volume: expected 1 to %d bytes, got %d", maxPassphrase, n)
	}
	var random struct {
		key                        [KeySize]byte
		uuid                       [16]byte
		saltKDF, saltDigest        [32]byte
		saltPrimary, saltSecondary [64]byte
	}
	for _, b := range [][]byte{random.key[:], random.uuid[:], random.saltKDF[:], random.saltDigest[:], random.saltPrimary[:], random.saltSecondary[:]} {
		if _, err := io.ReadFull(rand, b); err != nil {
			return nil, fmt.Errorf("random numbers for a new volume: %w", err)
		}
	}
	m := newMetadata(base64.StdEncoding.EncodeToString(random.saltKDF[:]), base64.StdEncoding.EncodeToString(random.saltDigest[:]))
	d := m.Digests["0"]
	sum, err := d.of(random.key[:], hashes[d.Hash]().Size())
	if err != nil {
		return nil, err
	}
	d.Digest = base64.StdEncoding.EncodeToString(sum)
	m.Digests["0"] = d
	doc, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	n := &New{Header: make([]byte, newAreaOffset+newAreaSize), Key: secret.New(random.key[:])}
	putCopy(n.Header[:newHeaderSize], magicPrimary, 0, random.uuid, random.saltPrimary, doc)
	putCopy(n.Header[newHeaderSize:newAreaOffset], magicSecondary, newHeaderSize, random.uuid, random.saltSecondary, doc)
	if err := putArea(n.Header[newAreaOffset:], rand, m.Keyslots["0"].KDF, passphrase, random.key[:]); err != nil {
		n.Key.Clear()
		return nil, err
	}
	return n, nil
}

func newMetadata(saltKDF, saltDigest string) *metadata {
	return &metadata{
		Keyslots: map[string]keyslot{"0": {
			Type: "luks2", KeySize: KeySize,
			AF:   af{Type: "luks1", Stripes: stripes, Hash: "sha256"},
			Area: area{Type: "raw", Offset: strconv.Itoa(newAreaOffset), Size: strconv.Itoa(newAreaSize), Encryption: Encryption, KeySize: areaKeySize},
			KDF:  kdf{Type: "argon2id", Time: newArgonTime, Memory: newArgonMemory, CPUs: 1, Salt: saltKDF},
		}},
		Tokens: map[string]struct{}{},
		Segments: map[string]segment{"0": {
			Type: "crypt", Offset: strconv.Itoa(NewDataOffset), Size: "dynamic", IVTweak: "0", Encryption: Encryption, SectorSize: SectorSize,
			Integrity: &integrity{Type: Integrity, JournalEncryption: "none", JournalIntegrity: "none"},
		}},
		Digests: map[string]digest{"0": {
			Type: "pbkdf2", Keyslots: []string{"0"}, Segments: []string{"0"}, Hash: "sha256", Iterations: newDigestIteration, Salt: saltDigest,
		}},
		Config: config{JSONSize: strconv.Itoa(newHeaderSize - binarySize), KeyslotsSize: strconv.Itoa(NewDataOffset - newAreaOffset)},
	}
}

// putCopy writes one copy of the header over all of b.
func putCopy(b []byte, magic [6]byte, offset uint64, id [16]byte, salt [64]byte, doc []byte) {
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80 // RFC 9562: version 4
	h := binaryHeader{Magic: magic, Version: 2, HeaderSize: uint64(len(b)), SequenceID: 1, Salt: salt, Offset: offset}
	x := hex.EncodeToString(id[:])
	copy(h.UUID[:], x[:8]+"-"+x[8:12]+"-"+x[12:16]+"-"+x[16:20]+"-"+x[20:])
	copy(h.ChecksumAlg[:], "sha256")
	_, _ = binary.Encode(b, binary.BigEndian, &h) // of fixed size, into 16 KiB
	copy(b[binarySize:], doc)
	reseal(b)
}

// reseal writes the checksum of a copy whose algorithm is SHA-256.
func reseal(b []byte) {
	sum, _ := checksum("sha256", b) // it is known
	copy(b[checksumAt:], sum)
}

// putArea writes the key, split and encrypted, over b.
func putArea(b []byte, rand io.Reader, k kdf, passphrase secret.Bytes, key []byte) error {
	derived, err := k.derive(passphrase.Expose(), areaKeySize)
	if err != nil {
		return err
	}
	defer clear(derived)
	split := make([]byte, KeySize*stripes)
	defer clear(split)
	if _, err := io.ReadFull(rand, split); err != nil {
		return fmt.Errorf("random numbers for a new volume: %w", err)
	}
	afSplit(split, key, stripes, hashes["sha256"])
	return areaCrypt(derived, b, split, true)
}
