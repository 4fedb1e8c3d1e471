//go:build cgo

package cryptoki

import (
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/pkcs11"
)

const gcmTagBits = 128

// loadDriver opens the library.
func loadDriver(path string) (module, error) {
	c := pkcs11.New(path)
	if c == nil {
		return nil, fmt.Errorf("%s cannot be loaded as a PKCS#11 module", path)
	}
	return driver{c}, nil
}

type driver struct{ c *pkcs11.Ctx }

// code turns the library's errors into ours.
func code(err error) error {
	if e, ok := errors.AsType[pkcs11.Error](err); ok {
		return Code(e)
	}
	return err
}

func (d driver) Initialize() error      { return code(d.c.Initialize()) }
func (d driver) Finalize() error        { return code(d.c.Finalize()) }
func (d driver) Unload()                { d.c.Destroy() }
func (d driver) Slots() ([]uint, error) { s, err := d.c.GetSlotList(true); return s, code(err) }
func (d driver) TokenLabel(slot uint) (string, error) {
	info, err := d.c.GetTokenInfo(slot)
	// Labels are padded with blanks to 32 bytes; some tokens use NUL.
	return strings.TrimRight(info.Label, " \x00"), code(err)
}

func (d driver) OpenSession(slot uint, write bool) (uint, error) {
	flags := uint(pkcs11.CKF_SERIAL_SESSION)
	if write {
		flags |= pkcs11.CKF_RW_SESSION
	}
	s, err := d.c.OpenSession(slot, flags)
	return uint(s), code(err)
}

func (d driver) CloseSession(s uint) error {
	return code(d.c.CloseSession(pkcs11.SessionHandle(s)))
}

func (d driver) Login(s uint, pin []byte) error {
	return code(d.c.Login(pkcs11.SessionHandle(s), pkcs11.CKU_USER, string(pin)))
}

func (d driver) Session(s, slot uint) Session {
	return session{d.c, pkcs11.SessionHandle(s), slot}
}

type session struct {
	c    *pkcs11.Ctx
	h    pkcs11.SessionHandle
	slot uint
}

func attributes(template []Attribute) []*pkcs11.Attribute {
	out := make([]*pkcs11.Attribute, len(template))
	for i, a := range template {
		out[i] = pkcs11.NewAttribute(a.Type, a.Value)
	}
	return out
}

func (s session) Find(template []Attribute, limit int) (out []Object, err error) {
	if err := s.c.FindObjectsInit(s.h, attributes(template)); err != nil {
		return nil, code(err)
	}
	defer func() { err = errors.Join(err, code(s.c.FindObjectsFinal(s.h))) }()
	for {
		page, _, err := s.c.FindObjects(s.h, 256)
		if err != nil {
			return nil, code(err)
		}
		if len(page) == 0 {
			return out, nil
		}
		for _, o := range page {
			out = append(out, Object(o))
		}
		if len(out) > limit {
			return nil, tooMany(limit)
		}
	}
}

func (s session) Attributes(o Object, types ...uint) ([][]byte, error) {
	query := make([]*pkcs11.Attribute, len(types))
	for i, t := range types {
		query[i] = &pkcs11.Attribute{Type: t}
	}
	got, err := s.c.GetAttributeValue(s.h, pkcs11.ObjectHandle(o), query)
	if err != nil {
		return nil, code(err)
	}
	if len(got) != len(types) {
		return nil, fmt.Errorf("expected %d attributes, got %d", len(types), len(got))
	}
	out := make([][]byte, len(got))
	for i, a := range got {
		out[i] = a.Value
	}
	return out, nil
}

func (s session) Create(template []Attribute) (Object, error) {
	o, err := s.c.CreateObject(s.h, attributes(template))
	return Object(o), code(err)
}

func (s session) Destroy(o Object) error {
	return code(s.c.DestroyObject(s.h, pkcs11.ObjectHandle(o)))
}

func (s session) Mechanism(mechanism uint) (uint, error) {
	info, err := s.c.GetMechanismInfo(s.slot, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)})
	if e, ok := errors.AsType[pkcs11.Error](err); ok && e == pkcs11.CKR_MECHANISM_INVALID {
		return 0, nil
	}
	return info.Flags, code(err)
}

func (s session) GenerateKey(mechanism uint, template []Attribute) (Object, error) {
	o, err := s.c.GenerateKey(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, attributes(template))
	return Object(o), code(err)
}

func (s session) EncryptGCM(key Object, iv, aad, plain []byte) (sealed, usedIV []byte, err error) {
	params := pkcs11.NewGCMParams(iv, aad, gcmTagBits)
	defer params.Free()
	if err := s.c.EncryptInit(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, pkcs11.ObjectHandle(key)); err != nil {
		return nil, nil, code(err)
	}
	sealed, err = s.c.Encrypt(s.h, plain)
	return sealed, params.IV(), code(err)
}

func (s session) DecryptGCM(key Object, iv, aad, sealed []byte) ([]byte, error) {
	params := pkcs11.NewGCMParams(iv, aad, gcmTagBits)
	defer params.Free()
	if err := s.c.DecryptInit(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(pkcs11.CKM_AES_GCM, params)}, pkcs11.ObjectHandle(key)); err != nil {
		return nil, code(err)
	}
	plain, err := s.c.Decrypt(s.h, sealed)
	return plain, code(err)
}

func (s session) WrapKey(mechanism uint, wrapping, key Object) ([]byte, error) {
	out, err := s.c.WrapKey(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, pkcs11.ObjectHandle(wrapping), pkcs11.ObjectHandle(key))
	return out, code(err)
}

func (s session) UnwrapKey(mechanism uint, wrapping Object, wrapped []byte, template []Attribute) (Object, error) {
	if len(wrapped) == 0 {
		return 0, errors.New("expected a wrapped key, got nothing")
	}
	o, err := s.c.UnwrapKey(s.h, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, pkcs11.ObjectHandle(wrapping), wrapped, attributes(template))
	return Object(o), code(err)
}

func tooMany(limit int) error {
	return fmt.Errorf("expected at most %d objects that match, got more", limit)
}
