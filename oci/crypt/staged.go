package crypt

import (
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"hash"
	"io"
	"sync"
)

const (
	// stagedBlock is how much ciphertext is read at once, in bytes.
	stagedBlock = 128 << 10
	// stagedInline is how much of a layer goes without a second goroutine.
	stagedInline = 4 * stagedBlock
	stagedBlocks = 4
)

// Staged is a plaintext that is not yet authenticated; see [Layer.OpenStaged].
// It is for one goroutine. The MAC of a long layer is computed on another, since
// it takes twice as long as decryption.
type Staged struct {
	src    io.Reader
	stream cipher.Stream
	mac    hash.Hash
	want   []byte

	rest  []byte // of the block that was read last
	block []byte
	n     int64
	err   error // behind rest

	made int
	free chan []byte // blocks whose MAC has been computed
	work chan []byte // blocks whose MAC is to be computed; nil unless started
	wg   sync.WaitGroup
}

// OpenStaged decrypts a ciphertext that is read once. Its plaintext has been
// authenticated only when a read has returned io.EOF: before that, the host may
// have chosen any bit of it. It is for a consumer that puts what it makes from
// it where nobody sees it, and throws that away unless the end comes. The
// caller closes it.
func (l *Layer) OpenStaged(ciphertext io.Reader) (*Staged, error) {
	stream, err := l.stream()
	if err != nil {
		return nil, err
	}
	return &Staged{src: ciphertext, stream: stream, mac: hmac.New(sha256.New, l.key.Expose()), want: l.mac[:]}, nil
}

// Read implements io.Reader. It returns io.EOF only if the MAC of the whole
// ciphertext is right, and [ErrMAC] at the end of another.
func (s *Staged) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(s.rest) == 0 {
		if s.err != nil {
			return 0, s.verdict()
		}
		s.advance()
	}
	n := min(len(p), len(s.rest))
	s.stream.XORKeyStream(p[:n], s.rest[:n])
	s.rest = s.rest[n:]
	return n, nil
}

// advance reads a block and has its MAC computed.
func (s *Staged) advance() {
	inline := s.n < stagedInline
	if inline && s.block == nil || !inline {
		s.block = s.buffer()
	}
	n := 0
	for n < len(s.block) && s.err == nil {
		var k int
		k, s.err = s.src.Read(s.block[n:])
		n += k
	}
	s.rest = s.block[:n]
	s.n += int64(n)
	if inline {
		_, _ = s.mac.Write(s.rest)
	} else {
		s.work <- s.rest
	}
}

// buffer gives a block that nobody uses. The first after those that went inline
// starts the goroutine.
func (s *Staged) buffer() []byte {
	if s.n >= stagedInline && s.work == nil {
		s.work, s.free = make(chan []byte, stagedBlocks), make(chan []byte, stagedBlocks)
		s.wg.Go(s.authenticate)
	}
	if s.made < stagedBlocks {
		s.made++
		return make([]byte, stagedBlock)
	}
	b := <-s.free
	return b[:stagedBlock]
}

func (s *Staged) authenticate() {
	for b := range s.work {
		_, _ = s.mac.Write(b)
		s.free <- b // there is room for all blocks
	}
}

// verdict is the error behind the last byte.
func (s *Staged) verdict() error {
	s.Close()
	if s.err == io.EOF && s.mac != nil {
		if !hmac.Equal(s.mac.Sum(nil), s.want) {
			s.err = ErrMAC
		}
		s.mac = nil
	}
	return s.err
}

// Close ends what Read has started. Reading on gives no io.EOF that Read has not
// given before.
func (s *Staged) Close() {
	if s.work != nil {
		close(s.work)
		s.wg.Wait()
		s.work = nil
	}
	if s.err == nil {
		s.err = io.ErrClosedPipe
	}
}
