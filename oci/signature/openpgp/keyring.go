package openpgp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Limits on a keyring.
const (
	// MaxKeyring is the greatest size of a keyring, in bytes.
	MaxKeyring = 1 << 20

	maxKeys    = 64
	maxSubkeys = 64
	maxPackets = 8192
)

// Keyring is a set of public keys. It is immutable.
type Keyring struct {
	signers []*signer
}

var errNotForSigning = errors.New("it is not for signing")

// signer is a key that may sign, or the reason why it may not.
type signer struct {
	key     *publicKey
	primary *publicKey
	// validFrom and validUntil bound both when it signed and when that is
	// verified.
	validFrom, validUntil time.Time
	problem               error
}

// ParseKeyring reads transferable public keys (RFC 9580 section 10.1), armored
// or binary. Keys that cannot sign here are left out; it is an error if none
// is left, or if there is a private key.
func ParseKeyring(data []byte) (*Keyring, error) {
	k, err := parseKeyring(data)
	if err != nil {
		return nil, fmt.Errorf("OpenPGP keyring: %w", err)
	}
	return k, nil
}

func parseKeyring(data []byte) (*Keyring, error) {
	if len(data) > MaxKeyring {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(data), MaxKeyring)
	}
	data, err := dearmor(data, "PUBLIC KEY BLOCK")
	if err != nil {
		return nil, err
	}
	blocks, err := splitKeys(data)
	if err != nil {
		return nil, err
	}
	k := &Keyring{}
	var problems []error
	for _, b := range blocks {
		signers, err := b.signers()
		if err != nil {
			problems = append(problems, err)
			continue
		}
		k.signers = append(k.signers, signers...)
	}
	if len(k.signers) == 0 {
		return nil, errors.Join(append([]error{errors.New("there is no key that can verify signatures")}, problems...)...)
	}
	return k, nil
}

// keyBlock is a primary key with all that belongs to it.
type keyBlock struct {
	packets []packet
}

// splitKeys splits a keyring at its primary keys.
func splitKeys(data []byte) ([]*keyBlock, error) {
	var blocks []*keyBlock
	for count := 0; len(data) > 0; count++ {
		if count == maxPackets {
			return nil, fmt.Errorf("more than %d packets", maxPackets)
		}
		p, rest, err := nextPacket(data)
		if err != nil {
			return nil, err
		}
		data = rest
		switch p.tag {
		case tagSecretKey, tagSecretSubkey:
			return nil, errors.New("there is a private key in it: give the public key only (gpg --export)")
		case tagMarker, tagTrust, tagPadding:
			continue
		case tagPublicKey:
			if len(blocks) == maxKeys {
				return nil, fmt.Errorf("more than %d keys", maxKeys)
			}
			blocks = append(blocks, &keyBlock{})
		case tagSignature, tagUserID, tagUserAttribute, tagPublicSubkey:
			if len(blocks) == 0 {
				return nil, errors.New("it does not begin with a public key")
			}
		default:
			return nil, fmt.Errorf("a packet of type %d does not belong into a keyring", p.tag)
		}
		last := blocks[len(blocks)-1]
		last.packets = append(last.packets, p)
	}
	if len(blocks) == 0 {
		return nil, errors.New("expected public keys, found none")
	}
	return blocks, nil
}

// component is a key, user ID or subkey with the signatures that follow it.
type component struct {
	packet
	signatures [][]byte
}

func (b *keyBlock) components() []component {
	var out []component
	for _, p := range b.packets {
		if p.tag == tagSignature {
			last := &out[len(out)-1]
			last.signatures = append(last.signatures, p.body)
			continue
		}
		out = append(out, component{packet: p})
	}
	return out
}

// signers settles what the primary key and its subkeys may do.
func (b *keyBlock) signers() ([]*signer, error) {
	parts := b.components()
	primary, err := parsePublicKey(parts[0].body)
	if err != nil {
		return nil, err
	}
	self := selfSignatures{key: primary, revoked: revokes(parts, sigKeyRevocation, 0)}
	self.direct(parts[0])
	for _, c := range parts[1:] {
		if c.tag == tagUserID {
			self.userID(c)
		}
	}
	main := self.signer()
	// One that stands elsewhere could be of any subkey.
	noSubkeys := self.revoked || revokes(parts, sigSubkeyRevocation, tagPublicSubkey)
	out := []*signer{main}
	for _, c := range parts[1:] {
		if c.tag != tagPublicSubkey {
			continue
		}
		if len(out) > maxSubkeys {
			return nil, fmt.Errorf("key %s: more than %d subkeys", primary.id(), maxSubkeys)
		}
		key, err := parsePublicKey(c.body)
		if err != nil {
			continue // most often an encryption key, which has no signatures to verify
		}
		out = append(out, subkey(main, key, noSubkeys, c))
	}
	return out, nil
}

// isRevocation says whether a signature packet is a revocation, whatever its
// version and digest and whoever made it. It is not verified: what is in the
// keyring is the owner's, and a revocation that cannot be verified (by a
// designated revoker, or with SHA-1) must not be lost.
func isRevocation(body []byte, kind byte) bool {
	switch {
	case len(body) > 1 && body[0] >= 4:
		return body[1] == kind
	case len(body) > 2: // version 3: a length comes first
		return body[2] == kind
	default:
		return false
	}
}

// revokes says whether there is a revocation of that kind anywhere but with
// components of type except.
func revokes(parts []component, kind, except byte) bool {
	return slices.ContainsFunc(parts, func(c component) bool {
		return c.tag != except && slices.ContainsFunc(c.signatures, func(body []byte) bool { return isRevocation(body, kind) })
	})
}

// selfSignatures are the primary key's statements about itself.
type selfSignatures struct {
	key     *publicKey
	revoked bool
	// newest statement on the key itself, and of all on its user IDs.
	onKey, onUser *signature
	problem       error
}

func (s *selfSignatures) direct(c component) {
	for _, body := range c.signatures {
		if sig := s.own(body, sigDirectKey, sigDirectKey, s.key.hashed); sig != nil && newer(sig, s.onKey) {
			s.onKey = sig
		}
	}
}

func (s *selfSignatures) userID(c component) {
	id := append(binary.BigEndian.AppendUint32([]byte{0xb4}, uint32(len(c.body))), c.body...)
	var cert, revocation *signature
	for _, body := range c.signatures {
		if sig := s.own(body, sigCertFirst, sigCertLast, s.key.hashed, id); sig != nil && newer(sig, cert) {
			cert = sig
		}
		if sig := s.own(body, sigCertRevocation, sigCertRevocation, s.key.hashed, id); sig != nil && newer(sig, revocation) {
			revocation = sig
		}
	}
	switch {
	case cert == nil:
	case revocation != nil && !revocation.created.Before(cert.created):
		s.problem = errors.New("its user ID was revoked")
	case newer(cert, s.onUser):
		s.onUser = cert
	}
}

// own is the signature, if it is one of the key's own of that kind and
// verifies. Those of others say nothing to us.
func (s *selfSignatures) own(body []byte, first, last byte, parts ...[]byte) *signature {
	if len(body) < 2 || body[1] < first || body[1] > last {
		return nil
	}
	sig, err := parseSignature(body, false)
	if err != nil {
		s.problem = err
		return nil
	}
	if !sig.by(s.key) {
		return nil
	}
	if err := sig.verify(s.key, parts...); err != nil {
		s.problem = err
		return nil
	}
	return sig
}

func newer(s, than *signature) bool { return than == nil || s.created.After(than.created) }

// signer is the primary key as a signer: valid until the first of what its
// newest statements say.
func (s *selfSignatures) signer() *signer {
	out := &signer{key: s.key, primary: s.key, validFrom: s.key.created, validUntil: after(s.key.created, 0)}
	var newest *signature
	for _, sig := range []*signature{s.onKey, s.onUser} {
		if sig == nil {
			continue
		}
		if newer(sig, newest) {
			newest = sig
		}
		out.validUntil = earliest(out.validUntil, after(s.key.created, sig.keyLifetime), after(sig.created, sig.lifetime))
	}
	switch {
	case s.revoked:
		out.problem = errors.New("it was revoked")
	case newest == nil && s.problem != nil:
		out.problem = fmt.Errorf("no signature of its own on itself counts: %w", s.problem)
	case newest == nil:
		out.problem = errors.New("it has no signature of its own on itself")
	case newest.hasFlags && newest.flags&flagSign == 0:
		out.problem = errNotForSigning
	}
	return out
}

// subkey is a subkey as a signer. It lives no longer than the primary key.
func subkey(main *signer, key *publicKey, revoked bool, c component) *signer {
	out := &signer{key: key, primary: main.key, validFrom: key.created}
	var binding *signature
	var problem error
	for _, body := range c.signatures {
		if isRevocation(body, sigSubkeyRevocation) {
			revoked = true
		}
		if len(body) < 2 || body[1] != sigSubkeyBinding {
			continue
		}
		sig, err := parseSignature(body, false)
		if err == nil && !sig.by(main.key) {
			continue
		}
		if err == nil {
			err = sig.verify(main.key, main.key.hashed, key.hashed)
		}
		if err != nil {
			problem = err
		} else if newer(sig, binding) {
			binding = sig
		}
	}
	// A primary key that only certifies is as good as any for this.
	certifies := main.problem == nil || main.problem == errNotForSigning
	switch {
	case revoked:
		out.problem = errors.New("it was revoked")
	case !certifies:
		out.problem = fmt.Errorf("its primary key %s: %w", main.key.id(), main.problem)
	case binding == nil && problem != nil:
		out.problem = fmt.Errorf("no binding to its primary key counts: %w", problem)
	case binding == nil:
		out.problem = errors.New("it is not bound to its primary key")
	case !binding.hasFlags || binding.flags&flagSign == 0:
		out.problem = errNotForSigning
	case binding.embedded == nil || binding.embedded.kind != sigPrimaryBinding:
		out.problem = errors.New("it did not sign its primary key, which could be another's")
	default:
		if err := binding.embedded.verify(key, main.key.hashed, key.hashed); err != nil {
			out.problem = fmt.Errorf("its signature of its primary key: %w", err)
		}
		out.validUntil = earliest(main.validUntil, after(key.created, binding.keyLifetime), after(binding.created, binding.lifetime))
	}
	return out
}

func earliest(t time.Time, more ...time.Time) time.Time {
	for _, m := range more {
		if m.Before(t) {
			t = m
		}
	}
	return t
}
