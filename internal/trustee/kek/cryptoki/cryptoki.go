// Package cryptoki keeps sessions with a PKCS#11 token: logged in, replaced
// when the token forgets them, few at a time, and never waited for longer than
// the caller wishes.
//
// A module is a shared library in our own address space: it is trusted not to
// corrupt memory. That it hangs, fails, loses its sessions or answers nonsense
// is provided for. A program built without cgo cannot load one: [Load] says so.
//
// Names and numbers are those of the OASIS standard "PKCS #11 Cryptographic
// Token Interface", versions 2.40 and 3.0.
package cryptoki

import (
	"errors"
	"fmt"
)

// Errors; test with errors.Is.
var (
	// ErrUnavailable: the token is not there or does not work at the moment;
	// the same call may succeed later.
	ErrUnavailable = errors.New("the PKCS#11 token is not available")
	// ErrPIN: the token refused the PIN. It is not tried again before it
	// changes, since a token locks itself after some wrong ones.
	ErrPIN = errors.New("the PKCS#11 token refused the PIN")
	// ErrNoCgo: this program was built without cgo.
	ErrNoCgo = errors.New("built without cgo: PKCS#11 is not available; build with CGO_ENABLED=1")
)

// Code is a CKR_ return value of a module.
type Code uint

// The return values that mean something to us (PKCS#11 2.40, section 11.1).
const (
	GeneralError             Code = 0x05
	FunctionFailed           Code = 0x06
	AttributeTypeInvalid     Code = 0x12
	DeviceError              Code = 0x30
	DeviceMemory             Code = 0x31
	DeviceRemoved            Code = 0x32
	EncryptedDataInvalid     Code = 0x40
	ObjectHandleInvalid      Code = 0x82
	PINIncorrect             Code = 0xa0
	PINInvalid               Code = 0xa1
	PINLenRange              Code = 0xa2
	PINLocked                Code = 0xa4
	SessionClosed            Code = 0xb0
	SessionCount             Code = 0xb1
	SessionHandleInvalid     Code = 0xb3
	SlotIDInvalid            Code = 0x03
	TokenNotPresent          Code = 0xe0
	TokenNotRecognized       Code = 0xe1
	UserAlreadyLoggedIn      Code = 0x100
	UserNotLoggedIn          Code = 0x101
	CryptokiNotInitialized   Code = 0x190
	CryptokiAlreadyInitialed Code = 0x191
)

var names = map[Code]string{
	GeneralError: "CKR_GENERAL_ERROR", FunctionFailed: "CKR_FUNCTION_FAILED", AttributeTypeInvalid: "CKR_ATTRIBUTE_TYPE_INVALID",
	DeviceError: "CKR_DEVICE_ERROR", DeviceMemory: "CKR_DEVICE_MEMORY", DeviceRemoved: "CKR_DEVICE_REMOVED",
	EncryptedDataInvalid: "CKR_ENCRYPTED_DATA_INVALID", ObjectHandleInvalid: "CKR_OBJECT_HANDLE_INVALID",
	PINIncorrect: "CKR_PIN_INCORRECT", PINInvalid: "CKR_PIN_INVALID", PINLenRange: "CKR_PIN_LEN_RANGE", PINLocked: "CKR_PIN_LOCKED",
	SessionClosed: "CKR_SESSION_CLOSED", SessionCount: "CKR_SESSION_COUNT", SessionHandleInvalid: "CKR_SESSION_HANDLE_INVALID",
	SlotIDInvalid: "CKR_SLOT_ID_INVALID", TokenNotPresent: "CKR_TOKEN_NOT_PRESENT", TokenNotRecognized: "CKR_TOKEN_NOT_RECOGNIZED",
	UserAlreadyLoggedIn: "CKR_USER_ALREADY_LOGGED_IN", UserNotLoggedIn: "CKR_USER_NOT_LOGGED_IN",
	CryptokiNotInitialized: "CKR_CRYPTOKI_NOT_INITIALIZED", CryptokiAlreadyInitialed: "CKR_CRYPTOKI_ALREADY_INITIALIZED",
}

// Error implements error.
func (c Code) Error() string {
	if name, ok := names[c]; ok {
		return name
	}
	return fmt.Sprintf("CKR 0x%x", uint(c))
}

// The constants that templates are made of (PKCS#11 2.40, sections 4 and 10,
// and "Current Mechanisms", section 2.8 ff.).
const (
	AttrClass       = 0x000
	AttrToken       = 0x001
	AttrPrivate     = 0x002
	AttrLabel       = 0x003
	AttrApplication = 0x010
	AttrValue       = 0x011
	AttrObjectID    = 0x012
	AttrKeyType     = 0x100
	AttrSensitive   = 0x103
	AttrEncrypt     = 0x104
	AttrDecrypt     = 0x105
	AttrWrap        = 0x106
	AttrUnwrap      = 0x107
	AttrValueLen    = 0x161
	AttrExtractable = 0x162
	AttrModifiable  = 0x170

	ClassData      = 0
	ClassSecretKey = 4

	KeyGenericSecret = 0x10
	KeyAES           = 0x1f

	MechAESKeyGen     = 0x1080
	MechAESGCM        = 0x1087
	MechAESKeyWrapPad = 0x210a

	// CanEncrypt and the like are flags of a mechanism.
	CanEncrypt = 0x0100
	CanDecrypt = 0x0200
	CanWrap    = 0x20000
	CanUnwrap  = 0x40000
)

// Attribute is one line of a template; see [Bool], [Number] and [Bytes].
type Attribute struct {
	Type  uint
	Value any // bool, uint or []byte
}

// Object is a handle, good within one call of [Token.Do].
type Object uint

// Session is what a [Token] lends out: a logged-in session, for one goroutine.
type Session interface {
	// Find returns the objects that match, at most limit; more are an error.
	Find(template []Attribute, limit int) ([]Object, error)
	// Attributes returns the raw values; what the object does not have is nil
	// or CKR_ATTRIBUTE_TYPE_INVALID, as the module likes.
	Attributes(o Object, types ...uint) ([][]byte, error)
	Create(template []Attribute) (Object, error)
	Destroy(o Object) error
	// Mechanism returns a mechanism's flags, 0 where the token lacks it.
	Mechanism(mechanism uint) (uint, error)
	GenerateKey(mechanism uint, template []Attribute) (Object, error)
	// EncryptGCM returns the ciphertext with its 16-byte tag, and the
	// initialization vector, which some tokens choose themselves.
	EncryptGCM(key Object, iv, aad, plain []byte) (sealed, usedIV []byte, err error)
	DecryptGCM(key Object, iv, aad, sealed []byte) ([]byte, error)
	WrapKey(mechanism uint, wrapping, key Object) ([]byte, error)
	UnwrapKey(mechanism uint, wrapping Object, wrapped []byte, template []Attribute) (Object, error)
}

// module is a loaded library; the cgo driver implements it, and the tests do.
// The session is a handle that the methods of Session take first.
type module interface {
	Initialize() error
	Finalize() error
	// Unload is the last call.
	Unload()
	Slots() ([]uint, error)
	TokenLabel(slot uint) (string, error)
	OpenSession(slot uint, write bool) (uint, error)
	CloseSession(session uint) error
	Login(session uint, pin []byte) error
	Session(session, slot uint) Session
}
