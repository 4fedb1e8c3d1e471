// Package se reads and writes what IBM Secure Execution for Linux (IBM Z and
// LinuxONE) attests with: the tags of an image's header, the verifier's request
// with everything around it, and the evidence. The same package serves the guest
// and the verifier; severify makes requests and checks evidence.
//
// Layouts are those of s390-tools@c6649588 (rust/pv/src: brcb.rs, uvattest/) and
// of confidential-containers/trustee@78962cd4 (deps/verifier/src/se/ibmse.rs).
// All numbers are big-endian.
package se

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/tee"
)

// Sizes and limits in bytes.
const (
	// MaxEvidence is the greatest size of evidence JSON.
	MaxEvidence = 64 << 10
	// UserDataSize is that of the report data in the user data.
	UserDataSize = 64
	// MeasurementSize is that of an HMAC with SHA-512.
	MeasurementSize = 64
	// NonceSize is that of the nonce in the request.
	NonceSize = 16
	// HostKeyHashSize is that of the hash of a public host key.
	HostKeyHashSize = 32
	// CUIDSize is that of the configuration unique identifier.
	CUIDSize = 16

	tagsSize  = 3*64 + 16
	maxSealed = 4 << 10
)

// Version is that of attestation requests.
const Version = 0x0100

// Tags are the parts of an image's header that tell the image: digests of its
// pages, their addresses and their tweaks, and the authentication tag of the
// header, which covers them too.
type Tags struct {
	PageListDigest, AddressListDigest, TweakListDigest [64]byte
	Tag                                                [16]byte
}

// ParseTags reads the 208 bytes that [Tags.Bytes] writes.
func ParseTags(b []byte) (Tags, error) {
	if len(b) != tagsSize {
		return Tags{}, fmt.Errorf("se: image header tags: expected %d bytes, got %d", tagsSize, len(b))
	}
	return Tags{[64]byte(b), [64]byte(b[64:]), [64]byte(b[128:]), [16]byte(b[192:])}, nil
}

// Bytes returns the three digests and the tag, one after the other.
func (t *Tags) Bytes() []byte {
	out := make([]byte, 0, tagsSize)
	out = append(out, t.PageListDigest[:]...)
	out = append(out, t.AddressListDigest[:]...)
	out = append(out, t.TweakListDigest[:]...)
	return append(out, t.Tag[:]...)
}

// Where an image has its header (brcb.rs).
const (
	headerMagic   = "IBMSecEx"
	imageMagic    = "SeImgLnx"
	imageMetadata = 0xC000
	pageSize      = 4096
	searchedPages = 0x15
	headSize      = 0x1A0
	digestsAt     = 224
	headerVersion = 0x100
	maxHeader     = 64 << 10
)

// TagsOfImage finds the tags in an image, or in a header cut out of one.
func TagsOfImage(image []byte) (Tags, error) {
	header, err := findHeader(image)
	if err != nil {
		return Tags{}, err
	}
	be := binary.BigEndian
	if v := be.Uint32(header[8:]); v != headerVersion {
		return Tags{}, fmt.Errorf("se: image header: version: expected %#x, got %#x", headerVersion, v)
	}
	size := uint64(be.Uint32(header[12:]))
	if size < headSize+16 || size > maxHeader || size > uint64(len(header)) {
		return Tags{}, fmt.Errorf("se: image header: size: expected %d to %d bytes, of which %d are there, got %d", headSize+16, maxHeader, len(header), size)
	}
	return ParseTags(append(bytes.Clone(header[digestsAt:headSize]), header[size-16:size]...))
}

// findHeader returns what begins with the header: it is where the image's
// metadata say, or else at the start of one of the first pages.
func findHeader(image []byte) ([]byte, error) {
	starts := make([]uint64, 0, searchedPages)
	if len(image) >= imageMetadata+16 && bytes.HasPrefix(image[imageMetadata:], []byte(imageMagic)) {
		starts = append(starts, binary.BigEndian.Uint64(image[imageMetadata+8:]))
	} else {
		for page := range uint64(searchedPages) {
			starts = append(starts, page*pageSize)
		}
	}
	for _, at := range starts {
		if at < uint64(len(image)) && len(image[at:]) >= headSize && bytes.HasPrefix(image[at:], []byte(headerMagic)) {
			return image[at:], nil
		}
	}
	return nil, fmt.Errorf("se: image: expected a header that begins with %q", headerMagic)
}

// Measured returns what an attestation measurement is the HMAC of
// (uvattest/attest.rs). user is at most 256 bytes, nonce is 16 bytes or none.
func Measured(t *Tags, cuid [CUIDSize]byte, user, nonce, additional []byte) []byte {
	out := append(t.Bytes(), cuid[:]...)
	out = binary.BigEndian.AppendUint16(out, uint16(len(user)))
	out = append(out, 0, 0)
	out = binary.BigEndian.AppendUint32(out, uint32(len(additional)))
	out = append(append(out, user...), nonce...)
	return append(out, additional...)
}

// Request is what a guest gets as its challenge. Sealed fields are for the
// verifier alone; the guest returns them as they are.
type Request struct {
	Blob                 []byte // the attestation request control block
	MeasurementSize      uint32
	AdditionalSize       uint32
	SealedMeasurementKey []byte
	SealedNonce          []byte
	Tags                 Tags
}

type wireRequest struct {
	Blob            string `json:"request_blob"`
	MeasurementSize uint32 `json:"measurement_size"`
	AdditionalSize  uint32 `json:"additional_size"`
	MeasurementKey  string `json:"encr_measurement_key"`
	Nonce           string `json:"encr_request_nonce"`
	Tags            string `json:"image_hdr_tags"`
}

// JSON encodes the request; it is the nonce of the KBS protocol.
func (r *Request) JSON() (string, error) {
	b64 := base64.StdEncoding.EncodeToString
	data, err := json.Marshal(wireRequest{b64(r.Blob), r.MeasurementSize, r.AdditionalSize, b64(r.SealedMeasurementKey), b64(r.SealedNonce), b64(r.Tags.Bytes())})
	return string(data), err
}

// Evidence is what a guest answers.
type Evidence struct {
	Measurement    []byte // 64 bytes
	AdditionalData []byte
	UserData       []byte // 64 bytes: report data
	CUID           [CUIDSize]byte
	// SealedMeasurementKey and SealedNonce are the request's.
	SealedMeasurementKey []byte
	SealedNonce          []byte
	Tags                 Tags
}

type wireEvidence struct {
	Measurement    string `json:"measurement"`
	AdditionalData string `json:"additional_data"`
	UserData       string `json:"user_data"`
	CUID           string `json:"cuid"`
	MeasurementKey string `json:"encr_measurement_key"`
	Nonce          string `json:"encr_request_nonce"`
	Tags           string `json:"image_hdr_tags"`
}

// ParseEvidence decodes evidence JSON: byte strings are in standard base64.
func ParseEvidence(data json.RawMessage) (*Evidence, error) {
	var w wireEvidence
	if err := strictjson.Decode(data, &w, strictjson.Limits{Bytes: MaxEvidence, Depth: 1}); err != nil {
		return nil, fmt.Errorf("se: evidence: %w", err)
	}
	var all error
	field := func(name, text string, least, most int) []byte {
		b, err := base64.StdEncoding.Strict().DecodeString(text)
		if err == nil && (len(b) < least || len(b) > most) {
			err = fmt.Errorf("expected %d to %d bytes, got %d", least, most, len(b))
		}
		if err != nil {
			all = errors.Join(all, fmt.Errorf("se: evidence: %s: %w", name, err))
			return make([]byte, least)
		}
		return b
	}
	e := &Evidence{
		Measurement: field("measurement", w.Measurement, MeasurementSize, MeasurementSize), AdditionalData: field("additional_data", w.AdditionalData, 0, maxSealed),
		UserData: field("user_data", w.UserData, UserDataSize, UserDataSize), CUID: [CUIDSize]byte(field("cuid", w.CUID, CUIDSize, CUIDSize)),
		SealedMeasurementKey: field("encr_measurement_key", w.MeasurementKey, 1, maxSealed), SealedNonce: field("encr_request_nonce", w.Nonce, 1, maxSealed),
	}
	tags := field("image_hdr_tags", w.Tags, tagsSize, tagsSize)
	if all != nil {
		return nil, all
	}
	var err error
	e.Tags, err = ParseTags(tags)
	return e, err
}

// JSON encodes the evidence.
func (e *Evidence) JSON() (json.RawMessage, error) {
	b64 := base64.StdEncoding.EncodeToString
	return json.Marshal(wireEvidence{
		b64(e.Measurement), b64(e.AdditionalData), b64(e.UserData), b64(e.CUID[:]), b64(e.SealedMeasurementKey), b64(e.SealedNonce), b64(e.Tags.Bytes()),
	})
}

// HostKeyHashes splits additional data that was asked for with the flags for both
// hashes and no others: the host key that unpacked the image, and the one that
// unpacked the request (uvattest/additional.rs).
func (e *Evidence) HostKeyHashes() (image, attestation []byte, err error) {
	if len(e.AdditionalData) != 2*HostKeyHashSize {
		return nil, nil, fmt.Errorf("se: additional_data: expected %d bytes, got %d", 2*HostKeyHashSize, len(e.AdditionalData))
	}
	return e.AdditionalData[:HostKeyHashSize], e.AdditionalData[HostKeyHashSize:], nil
}

// Claims returns the evidence's claims, unverified, as severify documents them.
func (e *Evidence) Claims() map[string]any {
	h := hex.EncodeToString
	m := map[string]any{
		"cuid": h(e.CUID[:]), "version": Version, "tag": h(e.Tags.Tag[:]), "report_data": h(e.UserData), "page_list_digest": h(e.Tags.PageListDigest[:]),
		"address_list_digest": h(e.Tags.AddressListDigest[:]), "tweak_list_digest": h(e.Tags.TweakListDigest[:]),
	}
	if image, attestation, err := e.HostKeyHashes(); err == nil {
		m["image_phkh"], m["attestation_phkh"] = h(image), h(attestation)
	}
	return m
}

// FromRaw refuses: this evidence has no form but the JSON one, since the verifier's
// secrets are part of it.
func FromRaw([]byte) (json.RawMessage, error) {
	return nil, errors.New("se: expected evidence JSON: evidence of IBM Secure Execution has no binary form")
}

// Inspect decodes evidence JSON without verifying it.
func Inspect(data []byte) (*tee.Inspection, error) {
	e, err := ParseEvidence(data)
	if err != nil {
		return nil, err
	}
	out := &tee.Inspection{TEE: tee.SE, Format: "IBM Secure Execution evidence JSON", Fields: e.Claims()}
	if _, _, err := e.HostKeyHashes(); err != nil {
		out.Odd = append(out.Odd, err.Error())
	}
	return out, nil
}
