package tpmattest

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

const (
	// maxNV is the greatest index that is read, in bytes.
	maxNV = 16 << 10
	// nvChunk is how much is moved at once: no TPM takes less (TCG PC Client
	// Platform TPM Profile 1.05, §4.5, MAX_NV_BUFFER_SIZE).
	nvChunk = 512
)

// nvIndex is an index with what is needed to use it.
type nvIndex struct {
	handle tpm2.NamedHandle
	public *tpm2.TPMSNVPublic
}

func readNVPublic(t transport.TPM, index uint32) (*nvIndex, error) {
	r, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("tpmattest: NV index %#x: %w", index, err)
	}
	public, err := r.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("tpmattest: NV index %#x: public part: %w", index, err)
	}
	return &nvIndex{handle: tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: r.NVName}, public: public}, nil
}

// auth is the authorization for an index: the owner's where that is allowed,
// else the index's own, with an empty password.
func (x *nvIndex) auth(owner, own bool) (tpm2.AuthHandle, error) {
	switch {
	case owner:
		return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, nil
	case own:
		return tpm2.AuthHandle{Handle: x.handle.Handle, Name: x.handle.Name, Auth: tpm2.PasswordAuth(nil)}, nil
	}
	return tpm2.AuthHandle{}, fmt.Errorf("tpmattest: NV index %#x: neither the owner nor its own password may use it so", uint32(x.handle.Handle))
}

// ReadNV reads a whole NV index. Where there is none, the error matches
// tpm2.TPMRCHandle.
func ReadNV(t transport.TPM, index uint32) ([]byte, error) {
	x, err := readNVPublic(t, index)
	if err != nil {
		return nil, err
	}
	size := int(x.public.DataSize)
	if size > maxNV {
		return nil, fmt.Errorf("tpmattest: NV index %#x: expected at most %d bytes, got %d", index, maxNV, size)
	}
	auth, err := x.auth(x.public.Attributes.OwnerRead, x.public.Attributes.AuthRead)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, size)
	for len(out) < size {
		n := min(nvChunk, size-len(out))
		r, err := tpm2.NVRead{AuthHandle: auth, NVIndex: x.handle, Size: uint16(n), Offset: uint16(len(out))}.Execute(t)
		if err != nil {
			return nil, fmt.Errorf("tpmattest: NV index %#x: reading %d bytes at %d: %w", index, n, len(out), err)
		}
		if len(r.Data.Buffer) != n {
			return nil, fmt.Errorf("tpmattest: NV index %#x: at %d: expected %d bytes, got %d", index, len(out), n, len(r.Data.Buffer))
		}
		out = append(out, r.Data.Buffer...)
	}
	return out, nil
}

// WriteNV writes all of an NV index of exactly len(data) bytes. Where there is
// none, or one of another size, it is defined first, for the owner and for its
// own empty password.
func WriteNV(t transport.TPM, index uint32, data []byte) error {
	if len(data) == 0 || len(data) > maxNV {
		return fmt.Errorf("tpmattest: NV index %#x: expected 1 to %d bytes to write, got %d", index, maxNV, len(data))
	}
	x, err := readNVPublic(t, index)
	switch {
	case errors.Is(err, tpm2.TPMRCHandle):
		x, err = defineNV(t, index, len(data))
	case err == nil && int(x.public.DataSize) != len(data):
		if err := UndefineNV(t, index); err != nil {
			return err
		}
		x, err = defineNV(t, index, len(data))
	}
	if err != nil {
		return err
	}
	auth, err := x.auth(x.public.Attributes.OwnerWrite, x.public.Attributes.AuthWrite)
	if err != nil {
		return err
	}
	for at := 0; at < len(data); {
		chunk := data[at:min(at+nvChunk, len(data))]
		// The first write changes the attributes, and with them the name;
		// authorization by password does not depend on it.
		_, err := tpm2.NVWrite{AuthHandle: auth, NVIndex: x.handle, Data: tpm2.TPM2BMaxNVBuffer{Buffer: chunk}, Offset: uint16(at)}.Execute(t)
		if err != nil {
			return fmt.Errorf("tpmattest: NV index %#x: writing %d bytes at %d: %w", index, len(chunk), at, err)
		}
		at += len(chunk)
	}
	return nil
}

func defineNV(t transport.TPM, index uint32, size int) (*nvIndex, error) {
	_, err := tpm2.NVDefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex:    tpm2.TPMHandle(index),
			NameAlg:    tpm2.TPMAlgSHA256,
			Attributes: tpm2.TPMANV{OwnerRead: true, OwnerWrite: true, AuthRead: true, AuthWrite: true, NT: tpm2.TPMNTOrdinary},
			DataSize:   uint16(size),
		}),
	}.Execute(t)
	if err != nil {
		return nil, fmt.Errorf("tpmattest: NV index %#x: defining %d bytes: %w", index, size, err)
	}
	return readNVPublic(t, index)
}

// UndefineNV removes an NV index that the owner defined. Where there is none,
// the error matches tpm2.TPMRCHandle.
func UndefineNV(t transport.TPM, index uint32) error {
	x, err := readNVPublic(t, index)
	if err != nil {
		return err
	}
	_, err = tpm2.NVUndefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, NVIndex: x.handle,
	}.Execute(t)
	if err != nil {
		return fmt.Errorf("tpmattest: NV index %#x: undefining: %w", index, err)
	}
	return nil
}
