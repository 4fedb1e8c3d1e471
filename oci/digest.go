package oci

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strings"
)

// Digest is a content digest in the form ALGORITHM:HEX, lower case, as in
// "sha256:e3b0…". Algorithms are sha256 and sha512, the two that the OCI image
// specification registers. A Digest from outside is made by [ParseDigest]; the
// zero value is no digest.
type Digest string

// ParseDigest checks the form of s.
func ParseDigest(s string) (Digest, error) {
	alg, hexa, found := strings.Cut(s, ":")
	if !found {
		return "", fmt.Errorf("digest %q: expected ALGORITHM:HEX, as in sha256:<64 hexadecimal digits>", clip(s))
	}
	var want int
	switch alg {
	case "sha256":
		want = sha256.Size * 2
	case "sha512":
		want = sha512.Size * 2
	default:
		return "", fmt.Errorf("digest %q: algorithm %q is not supported; expected sha256 or sha512", clip(s), clip(alg))
	}
	if len(hexa) != want {
		return "", fmt.Errorf("digest %q: expected %d hexadecimal digits, got %d", clip(s), want, len(hexa))
	}
	for i := range len(hexa) {
		if c := hexa[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", fmt.Errorf("digest %q: character %q is not a lower-case hexadecimal digit", clip(s), c)
		}
	}
	return Digest(s), nil
}

// FromBytes is the sha256 digest of b.
func FromBytes(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// FromHash is the digest that h, a SHA-256 hash, has reached.
func FromHash(h hash.Hash) Digest {
	return Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
}

// String implements fmt.Stringer.
func (d Digest) String() string { return string(d) }

// Algorithm is the part before the colon.
func (d Digest) Algorithm() string {
	alg, _, _ := strings.Cut(string(d), ":")
	return alg
}

// Hex is the part after the colon.
func (d Digest) Hex() string {
	_, hexa, _ := strings.Cut(string(d), ":")
	return hexa
}

// Short is the digest cut for progress lines.
func (d Digest) Short() string {
	h := d.Hex()
	return d.Algorithm() + ":" + h[:min(12, len(h))]
}

// UnmarshalText implements encoding.TextUnmarshaler through [ParseDigest].
func (d *Digest) UnmarshalText(text []byte) error {
	parsed, err := ParseDigest(string(text))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}

// newHash is the hash that d names, or an error if d was never parsed.
func (d Digest) newHash() (hash.Hash, error) {
	if _, err := ParseDigest(string(d)); err != nil {
		return nil, err
	}
	if d.Algorithm() == "sha512" {
		return sha512.New(), nil
	}
	return sha256.New(), nil
}

// MismatchError is content that is not what its descriptor says.
type MismatchError struct {
	// Expected and Got are the digests, or the sizes if those differ.
	Expected, Got string
	// Size says that the sizes differ.
	Size bool
}

// Error implements error.
func (e *MismatchError) Error() string {
	if e.Size {
		return fmt.Sprintf("size differs: expected %s bytes, got %s: the content was cut off or replaced", e.Expected, e.Got)
	}
	return fmt.Sprintf("digest differs: expected %s, got %s: the content was changed on the way or in the registry", e.Expected, e.Got)
}

// Verifier is a writer that checks content against a digest and a size. It is
// for one goroutine.
type Verifier struct {
	want Digest
	size int64
	n    int64
	hash hash.Hash
}

// NewVerifier makes a verifier for the digest and size of d.
func NewVerifier(d Descriptor) (*Verifier, error) {
	h, err := d.Digest.newHash()
	if err != nil {
		return nil, err
	}
	if d.Size < 0 {
		return nil, fmt.Errorf("size of %s: expected a number of bytes, got %d", d.Digest, d.Size)
	}
	return &Verifier{want: d.Digest, size: d.Size, hash: h}, nil
}

// Write implements io.Writer. It fails with a [*MismatchError] as soon as
// there are more bytes than the descriptor says.
func (v *Verifier) Write(p []byte) (int, error) {
	if int64(len(p)) > v.size-v.n {
		return 0, &MismatchError{Size: true, Expected: fmt.Sprint(v.size), Got: "more"}
	}
	v.n += int64(len(p))
	return v.hash.Write(p)
}

// Verify says whether everything written is what the descriptor says. Its
// error is a [*MismatchError].
func (v *Verifier) Verify() error {
	if v.n != v.size {
		return &MismatchError{Size: true, Expected: fmt.Sprint(v.size), Got: fmt.Sprint(v.n)}
	}
	got := v.want.Algorithm() + ":" + hex.EncodeToString(v.hash.Sum(nil))
	if got != string(v.want) {
		return &MismatchError{Expected: string(v.want), Got: got}
	}
	return nil
}

// VerifyReader passes r through and checks it against d: the last read returns
// io.EOF only if everything that was read is what d says.
func VerifyReader(r io.Reader, d Descriptor) (io.Reader, error) {
	v, err := NewVerifier(d)
	if err != nil {
		return nil, err
	}
	return &verifyReader{r: r, v: v}, nil
}

type verifyReader struct {
	r   io.Reader
	v   *Verifier
	err error
}

func (r *verifyReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.r.Read(p)
	if _, werr := r.v.Write(p[:n]); werr != nil {
		r.err = werr
		return 0, werr
	}
	if err == io.EOF {
		if verr := r.v.Verify(); verr != nil {
			err = verr
		}
	}
	r.err = err
	return n, err
}

// clip shortens text of the other side for an error message.
func clip(s string) string {
	const most = 128
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
