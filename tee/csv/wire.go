package csv

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/tee/internal/numbers"
)

// The JSON forms of certificates are the fields of csv-rs, one by one.

type wirePoint struct {
	Curve uint32        `json:"g"`
	X     numbers.Bytes `json:"x"`
	Y     numbers.Bytes `json:"y"`
}

type wireSignature struct {
	R numbers.Bytes `json:"r"`
	S numbers.Bytes `json:"s"`
}

type wireCA struct {
	Body struct {
		Preamble struct {
			Version uint32 `json:"ver"`
			Data    struct {
				KeyID    numbers.Bytes `json:"kid"`
				SignerID numbers.Bytes `json:"sid"`
				Usage    uint32        `json:"usage"`
				Reserved numbers.Bytes `json:"reserved"`
			} `json:"data"`
		} `json:"preamble"`
		Key      wirePoint     `json:"pubkey"`
		UIDSize  uint16        `json:"uid_size"`
		UserID   numbers.Bytes `json:"user_id"`
		Reserved numbers.Bytes `json:"reserved"`
	} `json:"body"`
	Signature wireSignature `json:"signature"`
	Reserved  numbers.Bytes `json:"_reserved"`
}

type wireSlot struct {
	Usage     uint32        `json:"usage"`
	Algorithm uint32        `json:"algo"`
	Signature wireSignature `json:"signature"`
	Reserved  numbers.Bytes `json:"_reserved"`
}

type wireCertificate struct {
	Body struct {
		Version uint32 `json:"ver"`
		Data    struct {
			Firmware struct {
				Major uint8 `json:"major"`
				Minor uint8 `json:"minor"`
			} `json:"firmware"`
			Reserved1 uint16 `json:"reserved1"`
			Key       struct {
				Usage     uint32    `json:"usage"`
				Algorithm uint32    `json:"algo"`
				Key       wirePoint `json:"key"`
			} `json:"pubkey"`
			UIDSize   uint16        `json:"uid_size"`
			UserID    numbers.Bytes `json:"user_id"`
			SignerID  numbers.Bytes `json:"sid"`
			Reserved2 numbers.Bytes `json:"reserved2"`
		} `json:"data"`
	} `json:"body"`
	Slots [2]wireSlot `json:"sigs"`
}

// layout walks over the fields of a certificate, either way.
type layout struct {
	// out is what was written so far; in is what is left to read. One of them
	// is nil.
	out, in []byte
	err     error
}

func (l *layout) u8(v *uint8) {
	if l.in != nil {
		*v, l.in = l.in[0], l.in[1:]
		return
	}
	l.out = append(l.out, *v)
}

func (l *layout) u16(v *uint16) {
	if l.in != nil {
		*v, l.in = binary.LittleEndian.Uint16(l.in), l.in[2:]
		return
	}
	l.out = binary.LittleEndian.AppendUint16(l.out, *v)
}

func (l *layout) u32(v *uint32) {
	if l.in != nil {
		*v, l.in = binary.LittleEndian.Uint32(l.in), l.in[4:]
		return
	}
	l.out = binary.LittleEndian.AppendUint32(l.out, *v)
}

func (l *layout) bytes(name string, v *numbers.Bytes, size int) {
	if l.in != nil {
		*v, l.in = numbers.Bytes(l.in[:size:size]), l.in[size:]
		return
	}
	if len(*v) != size {
		l.err = errors.Join(l.err, fmt.Errorf("%s: expected %d bytes, got %d", name, size, len(*v)))
	}
	l.out = append(l.out, *v...)
}

func (l *layout) point(p *wirePoint) {
	l.u32(&p.Curve)
	l.bytes("pubkey: x", &p.X, coordinate)
	l.bytes("pubkey: y", &p.Y, coordinate)
}

func (l *layout) signature(s *wireSignature) {
	l.bytes("signature: r", &s.R, coordinate)
	l.bytes("signature: s", &s.S, coordinate)
}

func (w *wireCA) walk(l *layout) {
	b := &w.Body
	d := &b.Preamble.Data
	l.u32(&b.Preamble.Version)
	l.bytes("kid", &d.KeyID, keyIDSize)
	l.bytes("sid", &d.SignerID, keyIDSize)
	l.u32(&d.Usage)
	l.bytes("reserved", &d.Reserved, 24)
	l.point(&b.Key)
	l.u16(&b.UIDSize)
	l.bytes("user_id", &b.UserID, maxUserID)
	l.bytes("reserved", &b.Reserved, 108)
	l.signature(&w.Signature)
	l.bytes("_reserved", &w.Reserved, 112)
}

func (w *wireCertificate) walk(l *layout) {
	d := &w.Body.Data
	l.u32(&w.Body.Version)
	l.u8(&d.Firmware.Major)
	l.u8(&d.Firmware.Minor)
	l.u16(&d.Reserved1)
	l.u32(&d.Key.Usage)
	l.u32(&d.Key.Algorithm)
	l.point(&d.Key.Key)
	l.u16(&d.UIDSize)
	l.bytes("user_id", &d.UserID, maxUserID)
	l.bytes("sid", &d.SignerID, keyIDSize)
	l.bytes("reserved2", &d.Reserved2, 608)
	for i := range w.Slots {
		s := &w.Slots[i]
		l.u32(&s.Usage)
		l.u32(&s.Algorithm)
		l.signature(&s.Signature)
		l.bytes("_reserved", &s.Reserved, slotPadding)
	}
}

// binary returns the certificate's bytes.
func (w *wireCA) binary() ([]byte, error) {
	l := &layout{out: make([]byte, 0, CACertificateSize)}
	w.walk(l)
	return l.out, l.err
}

func (w *wireCertificate) binary() ([]byte, error) {
	l := &layout{out: make([]byte, 0, CertificateSize)}
	w.walk(l)
	return l.out, l.err
}

// newWireCA takes the bytes apart, which are as many as they have to be.
func newWireCA(raw []byte) *wireCA {
	w := new(wireCA)
	w.walk(&layout{in: raw})
	return w
}

func newWireCertificate(raw []byte) *wireCertificate {
	w := new(wireCertificate)
	w.walk(&layout{in: raw})
	return w
}
