package signature

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

const (
	maxLogBody    = 128 << 10
	maxCheckpoint = 8 << 10
)

// logEntry is an entry of a transparency log (Rekor), not verified.
type logEntry struct {
	body           []byte
	integratedTime int64
	index          int64
	// logID is the sha256 of the log's public key in DER.
	logID []byte
	// promise is the log's signature of all that (signed entry timestamp);
	// may be empty.
	promise []byte
	// proof that the entry is in the log; may be nil.
	proof *inclusionProof
}

type inclusionProof struct {
	index, size int64
	root        []byte
	hashes      [][]byte
	// checkpoint is a signed note about the tree.
	checkpoint string
}

func parseLogID(s string) ([]byte, error) {
	id, err := hex.DecodeString(s)
	if err != nil || len(id) != sha256.Size {
		return nil, fmt.Errorf("logID: expected %d hexadecimal digits", 2*sha256.Size)
	}
	return id, nil
}

// parseLogKey reads a log's public key: ECDSA, or Ed25519 as Rekor version 2
// has it.
func parseLogKey(data []byte) (*PublicKey, error) {
	k, err := ParsePublicKey(data)
	if err != nil {
		return nil, err
	}
	switch k.key.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return k, nil
	default:
		return nil, errors.New("public key of a log: expected ECDSA or Ed25519")
	}
}

// verify says whether a log of the key has the entry: by the promise to take it
// in, or by the proof that it did.
func (e *logEntry) verify(k *PublicKey) error {
	problem := errors.New("the entry has neither a signed entry timestamp nor an inclusion proof")
	if len(e.promise) > 0 {
		if problem = e.verifyPromise(k); problem == nil {
			return nil
		}
	}
	if e.proof != nil {
		if problem = e.proof.verify(e.body, k); problem == nil {
			return nil
		}
	}
	return problem
}

// verifyPromise checks the signed entry timestamp: a signature of the entry in
// canonical JSON (RFC 8785; sigstore/rekor, openapi.yaml, "signedEntryTimestamp").
func (e *logEntry) verifyPromise(k *PublicKey) error {
	if id := sha256.Sum256(k.der); !bytes.Equal(id[:], e.logID) {
		return fmt.Errorf("signed entry timestamp: it is of the log %x, not of the pinned one %x", e.logID[:8], id[:8])
	}
	message := fmt.Appendf(nil, `{"body":%q,"integratedTime":%d,"logID":"%x","logIndex":%d}`,
		base64.StdEncoding.EncodeToString(e.body), e.integratedTime, e.logID, e.index)
	if !k.Verify(message, e.promise) {
		return errors.New("signed entry timestamp: it does not verify under the pinned key of the log")
	}
	return nil
}

func (p *inclusionProof) verify(body []byte, k *PublicKey) error {
	size, root, err := openCheckpoint(p.checkpoint, k)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if size != p.size || !bytes.Equal(root, p.root) {
		return errors.New("inclusion proof: it is for another tree than the checkpoint")
	}
	return checkInclusion(body, p.index, size, p.hashes, root)
}

// openCheckpoint verifies a signed note about a tree and returns its size and
// root (C2SP tlog-checkpoint and signed-note).
func openCheckpoint(note string, k *PublicKey) (size int64, root []byte, err error) {
	if len(note) > maxCheckpoint {
		return 0, nil, fmt.Errorf("longer than %d bytes", maxCheckpoint)
	}
	split := strings.LastIndex(note, "\n\n")
	if split < 0 || !strings.HasSuffix(note, "\n") {
		return 0, nil, errors.New("expected a text, an empty line, and signatures")
	}
	text, signatures := note[:split+1], strings.Split(strings.TrimSuffix(note[split+2:], "\n"), "\n")
	verified := false
	for _, line := range signatures {
		fields := strings.Split(line, " ")
		if len(fields) != 3 || fields[0] != "—" {
			return 0, nil, errors.New("a signature line is not — NAME SIGNATURE")
		}
		// Four bytes say which key it was; the pinned key is tried anyway.
		raw, err := base64.StdEncoding.DecodeString(fields[2])
		if err == nil && len(raw) > 4 && k.Verify([]byte(text), raw[4:]) {
			verified = true
		}
	}
	if !verified {
		return 0, nil, errors.New("it does not verify under the pinned key of the log")
	}
	lines := strings.Split(text, "\n")
	if len(lines) < 4 {
		return 0, nil, errors.New("expected an origin, a size and a root hash")
	}
	if size, err = strconv.ParseInt(lines[1], 10, 64); err != nil || size < 0 {
		return 0, nil, errors.New("the second line is not the size of the tree")
	}
	if root, err = base64.StdEncoding.DecodeString(lines[2]); err != nil || len(root) != sha256.Size {
		return 0, nil, errors.New("the third line is not a root hash of 32 bytes")
	}
	return size, root, nil
}
