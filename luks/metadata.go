package luks

import (
	"encoding/base64"
	"errors"
	"math"
	"strconv"

	"github.com/coffer-project/coffer/internal/strictjson"
)

// metadata is the JSON area (section 3) with the fields that a volume of ours
// may have. Whatever else a document has is an error: a reader that skips
// what it does not know cannot say what it opens.
type metadata struct {
	Keyslots map[string]keyslot  `json:"keyslots"`
	Tokens   map[string]struct{} `json:"tokens"`
	Segments map[string]segment  `json:"segments"`
	Digests  map[string]digest   `json:"digests"`
	Config   config              `json:"config"`

	uuid string
}

type keyslot struct {
	Type    string `json:"type"`
	KeySize int    `json:"key_size"`
	AF      af     `json:"af"`
	Area    area   `json:"area"`
	KDF     kdf    `json:"kdf"`
}

type af struct {
	Type    string `json:"type"`
	Stripes int    `json:"stripes"`
	Hash    string `json:"hash"`
}

type area struct {
	Type       string `json:"type"`
	Offset     string `json:"offset"`
	Size       string `json:"size"`
	Encryption string `json:"encryption"`
	KeySize    int    `json:"key_size"`
}

// kdf is Argon2 with time, memory (KiB) and cpus, or PBKDF2 with hash and
// iterations.
type kdf struct {
	Type       string `json:"type"`
	Time       uint32 `json:"time,omitempty"`
	Memory     uint32 `json:"memory,omitempty"`
	CPUs       uint32 `json:"cpus,omitempty"`
	Hash       string `json:"hash,omitempty"`
	Iterations uint32 `json:"iterations,omitempty"`
	Salt       string `json:"salt"`
}

type segment struct {
	Type       string     `json:"type"`
	Offset     string     `json:"offset"`
	Size       string     `json:"size"`
	IVTweak    string     `json:"iv_tweak"`
	Encryption string     `json:"encryption"`
	SectorSize int        `json:"sector_size"`
	Integrity  *integrity `json:"integrity,omitempty"`
}

type integrity struct {
	Type              string `json:"type"`
	JournalEncryption string `json:"journal_encryption"`
	JournalIntegrity  string `json:"journal_integrity"`
}

type digest struct {
	Type       string   `json:"type"`
	Keyslots   []string `json:"keyslots"`
	Segments   []string `json:"segments"`
	Hash       string   `json:"hash"`
	Iterations uint32   `json:"iterations"`
	Salt       string   `json:"salt"`
	Digest     string   `json:"digest"`
}

type config struct {
	JSONSize     string        `json:"json_size"`
	KeyslotsSize string        `json:"keyslots_size"`
	Flags        []string      `json:"flags,omitempty"`
	Requirements *requirements `json:"requirements,omitempty"`
}

type requirements struct {
	Mandatory []string `json:"mandatory"`
}

// parseMetadata decodes the JSON area.
func parseMetadata(raw []byte) (*metadata, error) {
	m := new(metadata)
	if err := strictjson.Decode(raw, m, strictjson.Limits{Bytes: maxHeader, Depth: 8}); err != nil {
		if e, ok := errors.AsType[*strictjson.Error](err); ok && e.Path != "" {
			return nil, refuse(e.Path, "%s (cryptsetup luksDump shows the volume)", e.Problem)
		}
		return nil, refuse("JSON area", "%v", err)
	}
	return m, nil
}

// validate checks everything against everything. It returns the header without
// its key material, and where that is.
func (m *metadata) validate(hdrSize, size int64, l Limits) (*Header, int64, error) {
	slot, okSlot := m.Keyslots["0"]
	seg, okSeg := m.Segments["0"]
	dig, okDig := m.Digests["0"]
	switch {
	case len(m.Keyslots) != 1 || !okSlot:
		return nil, 0, refuse("keyslots", "expected exactly one with the number 0, got %d (a second one would be another way in)", len(m.Keyslots))
	case len(m.Segments) != 1 || !okSeg:
		return nil, 0, refuse("segments", "expected exactly one with the number 0, got %d", len(m.Segments))
	case len(m.Digests) != 1 || !okDig:
		return nil, 0, refuse("digests", "expected exactly one with the number 0, got %d", len(m.Digests))
	case len(m.Tokens) != 0:
		return nil, 0, refuse("tokens", "expected none, got %d", len(m.Tokens))
	case m.Config.Requirements != nil:
		return nil, 0, refuse("config.requirements", "expected none, got some: the volume needs a feature that is not supported (finish its re-encryption first)")
	case len(m.Config.Flags) != 0:
		return nil, 0, refuse("config.flags", "expected none, got %q", m.Config.Flags[0])
	}
	keyslots, err := m.Config.validate(hdrSize, size)
	if err != nil {
		return nil, 0, err
	}
	data, err := seg.validate(keyslots, size)
	if err != nil {
		return nil, 0, err
	}
	at, err := slot.validate(2*hdrSize, keyslots, l)
	if err != nil {
		return nil, 0, err
	}
	if err := dig.validate(); err != nil {
		return nil, 0, err
	}
	return &Header{UUID: m.uuid, DataOffset: data, KDF: slot.KDF.Type, kdf: slot.KDF, afHash: slot.AF.Hash, digest: dig}, at, nil
}

// validate returns where the area of key slots ends.
func (c config) validate(hdrSize, size int64) (int64, error) {
	json, err := number("config.json_size", c.JSONSize)
	if err != nil {
		return 0, err
	}
	if json != hdrSize-binarySize {
		return 0, refuse("config.json_size", "expected %d, got %d", hdrSize-binarySize, json)
	}
	keyslots, err := number("config.keyslots_size", c.KeyslotsSize)
	if err != nil {
		return 0, err
	}
	if keyslots%4096 != 0 || keyslots > size-2*hdrSize {
		return 0, refuse("config.keyslots_size", "expected a multiple of 4096 within the disk of %d bytes, got %d", size, keyslots)
	}
	return 2*hdrSize + keyslots, nil
}

// validate returns where the data begins.
func (s segment) validate(keyslots, size int64) (int64, error) {
	field := func(name string) string { return "segments.0." + name }
	switch {
	case s.Type != "crypt":
		return 0, refuse(field("type"), `expected "crypt", got %q`, s.Type)
	case s.Encryption != Encryption:
		return 0, refuse(field("encryption"), "expected %s, got %q", Encryption, s.Encryption)
	case s.Integrity == nil:
		return 0, refuse(field("integrity"), "expected %s, got none: a host could alter the data (make the volume with cryptsetup luksFormat --integrity hmac-sha256, or let the guest format a blank disk)", Integrity)
	case s.Integrity.Type != Integrity:
		return 0, refuse(field("integrity.type"), "expected %s, got %q", Integrity, s.Integrity.Type)
	case s.Integrity.JournalEncryption != "none":
		return 0, refuse(field("integrity.journal_encryption"), `expected "none", got %q`, s.Integrity.JournalEncryption)
	case s.Integrity.JournalIntegrity != "none":
		return 0, refuse(field("integrity.journal_integrity"), `expected "none", got %q`, s.Integrity.JournalIntegrity)
	case s.SectorSize != SectorSize:
		return 0, refuse(field("sector_size"), "expected %d, got %d (cryptsetup luksFormat --sector-size %d)", SectorSize, s.SectorSize, SectorSize)
	case s.IVTweak != "0":
		return 0, refuse(field("iv_tweak"), `expected "0", got %q`, s.IVTweak)
	case s.Size != "dynamic":
		return 0, refuse(field("size"), `expected "dynamic", got %q`, s.Size)
	}
	off, err := number(field("offset"), s.Offset)
	if err != nil {
		return 0, err
	}
	// Behind the data's beginning there is at least a superblock and a sector.
	if off%SectorSize != 0 || off < keyslots || off > size-2*SectorSize {
		return 0, refuse(field("offset"), "expected a multiple of %d from %d to %d, got %d", SectorSize, keyslots, size-2*SectorSize, off)
	}
	return off, nil
}

// validate returns where the key material is, between the headers and the end of
// the area of key slots.
func (k keyslot) validate(headers, keyslots int64, l Limits) (int64, error) {
	field := func(name string) string { return "keyslots.0." + name }
	switch {
	case k.Type != "luks2":
		return 0, refuse(field("type"), `expected "luks2", got %q`, k.Type)
	case k.KeySize != KeySize:
		return 0, refuse(field("key_size"), "expected %d, got %d", KeySize, k.KeySize)
	case k.AF.Type != "luks1":
		return 0, refuse(field("af.type"), `expected "luks1", got %q`, k.AF.Type)
	case k.AF.Stripes != stripes:
		return 0, refuse(field("af.stripes"), "expected %d, got %d", stripes, k.AF.Stripes)
	case hashes[k.AF.Hash] == nil:
		return 0, refuse(field("af.hash"), "expected sha256 or sha512, got %q", k.AF.Hash)
	case k.Area.Type != "raw":
		return 0, refuse(field("area.type"), `expected "raw", got %q`, k.Area.Type)
	case k.Area.Encryption != Encryption:
		return 0, refuse(field("area.encryption"), "expected %s, got %q", Encryption, k.Area.Encryption)
	case k.Area.KeySize != areaKeySize:
		return 0, refuse(field("area.key_size"), "expected %d, got %d", areaKeySize, k.Area.KeySize)
	}
	off, err := number(field("area.offset"), k.Area.Offset)
	if err != nil {
		return 0, err
	}
	size, err := number(field("area.size"), k.Area.Size)
	if err != nil {
		return 0, err
	}
	if off%4096 != 0 || off < headers || off > keyslots {
		return 0, refuse(field("area.offset"), "expected a multiple of 4096 from %d to %d, got %d", headers, keyslots, off)
	}
	if size < KeySize*stripes || size > keyslots-off {
		return 0, refuse(field("area.size"), "expected %d to %d, got %d", KeySize*stripes, keyslots-off, size)
	}
	return off, k.KDF.validate(l)
}

func (k kdf) validate(l Limits) error {
	field := func(name string) string { return "keyslots.0.kdf." + name }
	if err := salted(field("salt"), k.Salt); err != nil {
		return err
	}
	remedy := "cryptsetup luksConvertKey --pbkdf-memory and --pbkdf-force-iterations change it"
	switch k.Type {
	case "argon2id", "argon2i":
		switch {
		case k.Hash != "" || k.Iterations != 0:
			return refuse(field("hash"), "%s has no hash and no iterations", k.Type)
		case k.Time < 1 || k.Time > maxArgonTime:
			return refuse(field("time"), "expected 1 to %d, got %d (%s)", maxArgonTime, k.Time, remedy)
		case k.CPUs < 1 || k.CPUs > maxArgonThreads:
			return refuse(field("cpus"), "expected 1 to %d, got %d", maxArgonThreads, k.CPUs)
		case k.Memory < 8*k.CPUs || k.Memory > l.MemoryKiB:
			return refuse(field("memory"), "expected %d to %d KiB, got %d (%s)", 8*k.CPUs, l.MemoryKiB, k.Memory, remedy)
		}
	case "pbkdf2":
		switch {
		case k.Time != 0 || k.Memory != 0 || k.CPUs != 0:
			return refuse(field("time"), "pbkdf2 has no time, memory and cpus")
		case hashes[k.Hash] == nil:
			return refuse(field("hash"), "expected sha256 or sha512, got %q", k.Hash)
		case k.Iterations < minIterations || k.Iterations > maxIterations:
			return refuse(field("iterations"), "expected %d to %d, got %d (%s)", minIterations, maxIterations, k.Iterations, remedy)
		}
	default:
		return refuse(field("type"), "expected argon2id, argon2i or pbkdf2, got %q", k.Type)
	}
	return nil
}

func (d digest) validate() error {
	field := func(name string) string { return "digests.0." + name }
	switch {
	case d.Type != "pbkdf2":
		return refuse(field("type"), `expected "pbkdf2", got %q`, d.Type)
	case len(d.Keyslots) != 1 || d.Keyslots[0] != "0":
		return refuse(field("keyslots"), `expected ["0"], got %d entries`, len(d.Keyslots))
	case len(d.Segments) != 1 || d.Segments[0] != "0":
		return refuse(field("segments"), `expected ["0"], got %d entries`, len(d.Segments))
	case hashes[d.Hash] == nil:
		return refuse(field("hash"), "expected sha256 or sha512, got %q", d.Hash)
	case d.Iterations < minIterations || d.Iterations > maxIterations:
		return refuse(field("iterations"), "expected %d to %d, got %d", minIterations, maxIterations, d.Iterations)
	}
	if err := salted(field("salt"), d.Salt); err != nil {
		return err
	}
	sum, err := base64.StdEncoding.DecodeString(d.Digest)
	if want := hashes[d.Hash]().Size(); err != nil || len(sum) != want {
		return refuse(field("digest"), "expected base64 of %d bytes, got something else", want)
	}
	return nil
}

// salted checks a salt: base64 of 8 to 64 bytes.
func salted(field, s string) error {
	salt, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(salt) < 8 || len(salt) > 64 {
		return refuse(field, "expected base64 of 8 to 64 bytes, got something else")
	}
	return nil
}

// number reads LUKS2's 64-bit numbers, which are strings of digits in JSON
// (section 3.1).
func number(field, s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || n > math.MaxInt64/2 || strconv.FormatUint(n, 10) != s {
		return 0, refuse(field, "expected a number in decimal digits, got %q", s)
	}
	return int64(n), nil
}
