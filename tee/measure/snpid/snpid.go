// Package snpid builds and checks the ID block and the ID authentication
// information of an SEV-SNP guest (SEV-SNP Firmware ABI Specification,
// publication 56860, §8.18 SNP_LAUNCH_FINISH, tables of ID_BLOCK and ID_AUTH).
//
// A host hands both to the security processor at launch. It refuses the launch
// if the measurement or the policy is not the block's, and puts the digests of
// the keys that signed into every report: id_key_digest and author_key_digest.
// So a verifier that knows the owner's key need not know each measurement.
//
// [Sign] signs with the owner's keys, [SignOnce] with a key that nobody keeps,
// [SignAnonymously] with no key at all. [Verify] does what the security processor
// does with them.
//
// The formats agree with the vectors of virtee/sev and virtee/sev-snp-measure;
// no block was launched on hardware here.
package snpid

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Sizes in bytes.
const (
	// BlockSize is the size of an ID block.
	BlockSize = 0x60
	// AuthSize is the size of the ID authentication information: a page.
	AuthSize = 0x1000
)

// version is the only version of ID blocks.
const version = 1

// Block is an ID block.
type Block struct {
	// Measurement is the launch digest that the guest must have.
	Measurement [48]byte
	// FamilyID and ImageID are the owner's; reports repeat them.
	FamilyID, ImageID [16]byte
	// GuestSVN is the owner's security version of the guest.
	GuestSVN uint32
	// Policy is the guest policy that the launch must have; see the bits
	// snp.Policy….
	Policy uint64
}

// Bytes encodes b.
func (b Block) Bytes() (out [BlockSize]byte) {
	copy(out[0x00:], b.Measurement[:])
	copy(out[0x30:], b.FamilyID[:])
	copy(out[0x40:], b.ImageID[:])
	binary.LittleEndian.PutUint32(out[0x50:], version)
	binary.LittleEndian.PutUint32(out[0x54:], b.GuestSVN)
	binary.LittleEndian.PutUint64(out[0x58:], b.Policy)
	return out
}

// ParseBlock reads an ID block of exactly [BlockSize] bytes.
func ParseBlock(data []byte) (Block, error) {
	if len(data) != BlockSize {
		return Block{}, fmt.Errorf("snpid: id block: expected %d bytes, got %d", BlockSize, len(data))
	}
	if v := binary.LittleEndian.Uint32(data[0x50:]); v != version {
		return Block{}, fmt.Errorf("snpid: id block: version: expected %d, got %d", version, v)
	}
	return Block{
		Measurement: [48]byte(data), FamilyID: [16]byte(data[0x30:]), ImageID: [16]byte(data[0x40:]),
		GuestSVN: binary.LittleEndian.Uint32(data[0x54:]), Policy: binary.LittleEndian.Uint64(data[0x58:]),
	}, nil
}

// Offsets in ID_AUTH.
const (
	offIDAlgo      = 0x000
	offAuthorAlgo  = 0x004
	offBlockSig    = 0x040
	offIDKey       = 0x240
	offIDKeySig    = 0x680
	offAuthorKey   = 0x880
	keySize        = 0x404
	sigSize        = 0x200
	numberSize     = 72 // of a coordinate, or of half a signature, little-endian
	algoP384SHA384 = 1
	curveP384      = 2
)

// zeroes checks that what the specification reserves is zero.
func zeroes(auth []byte) error {
	for _, r := range [][2]int{
		{0x008, offBlockSig},
		{offBlockSig + 2*numberSize, offIDKey},
		{offIDKey + 4 + 2*numberSize, offIDKeySig},
		{offIDKeySig + 2*numberSize, offAuthorKey},
		{offAuthorKey + 4 + 2*numberSize, AuthSize},
	} {
		if !bytes.Equal(auth[r[0]:r[1]], make([]byte, r[1]-r[0])) {
			return fmt.Errorf("snpid: id auth: expected zeroes from %#x to %#x", r[0], r[1])
		}
	}
	return nil
}

var errNoKey = errors.New("snpid: a key is missing")
