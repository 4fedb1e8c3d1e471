package vtpm

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"slices"

	"github.com/coffer-project/coffer/tee/eventlog"
)

// summer hashes for several banks.
type summer struct{ algorithms []eventlog.Alg }

func newSummer(algorithms []eventlog.Alg) (*summer, error) {
	if algorithms == nil {
		algorithms = []eventlog.Alg{eventlog.SHA256, eventlog.SHA384}
	}
	s := &summer{algorithms}
	for i, a := range algorithms {
		if s.new(a) == nil || slices.Contains(algorithms[:i], a) {
			return nil, fmt.Errorf("vtpm: algorithm %s: is not known, or comes twice", a)
		}
	}
	return s, nil
}

func (s *summer) new(a eventlog.Alg) hash.Hash {
	switch a {
	case eventlog.SHA1:
		return sha1.New()
	case eventlog.SHA256:
		return sha256.New()
	case eventlog.SHA384:
		return sha512.New384()
	case eventlog.SHA512:
		return sha512.New()
	}
	return nil
}

func (s *summer) digests(data []byte) []eventlog.Digest {
	out := make([]eventlog.Digest, len(s.algorithms))
	for i, a := range s.algorithms {
		out[i] = eventlog.Digest{Alg: a, Value: s.extend(a, nil, data)}
	}
	return out
}

// extend is the hash of one after the other.
func (s *summer) extend(a eventlog.Alg, value, digest []byte) []byte {
	h := s.new(a)
	h.Write(value)
	h.Write(digest)
	return h.Sum(nil)
}
