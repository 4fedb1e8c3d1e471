package signature

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// published are bundles of real logs, with the log's key.
var published = map[string]string{
	"intoto-bundle-v0.1.json":       "rekor-public-good.pem",
	"hashedrekord-bundle-v0.3.json": "rekor-scaffolding.pem",
}

// load reads a published bundle, its log's key, and the key that signed.
func load(t testing.TB, name string) (c *claim, log, signer *PublicKey) {
	t.Helper()
	c, err := parseBundle(testdata(t, name))
	if err != nil {
		t.Fatal(err)
	}
	if log, err = parseLogKey(testdata(t, published[name])); err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(c.certificates[0])
	if err != nil {
		t.Fatal(err)
	}
	if signer, err = NewPublicKey(leaf.PublicKey); err != nil {
		t.Fatal(err)
	}
	return c, log, signer
}

// Published bundles: signature, signed entry timestamp, checkpoint, inclusion
// proof, and what the entry is about.
func TestPublishedBundles(t *testing.T) {
	t.Parallel()
	for name := range published {
		c, log, signer := load(t, name)
		if !c.signedBy(signer) {
			t.Errorf("%s: the signature does not verify", name)
		}
		e := &c.entries[0]
		if err := e.verifyPromise(log); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := e.proof.verify(e.body, log); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := c.logged(signer, []*PublicKey{log}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is changed in an entry shows.
func TestChangedEntries(t *testing.T) {
	t.Parallel()
	for name := range published {
		for change, spoil := range map[string]func(e *logEntry){
			"body":       func(e *logEntry) { e.body = bytes.Clone(e.body); e.body[len(e.body)/2] ^= 1 },
			"time":       func(e *logEntry) { e.integratedTime++; e.proof = nil },
			"index":      func(e *logEntry) { e.index++; e.proof = nil },
			"log":        func(e *logEntry) { e.logID = bytes.Repeat([]byte{1}, 32); e.proof = nil },
			"no promise": func(e *logEntry) { e.promise, e.proof = nil, nil },
			"leaf":       func(e *logEntry) { e.promise = nil; e.proof.index-- },
			"path":       func(e *logEntry) { e.promise = nil; e.proof.hashes = e.proof.hashes[1:] },
			"longer":     func(e *logEntry) { e.promise = nil; e.proof.hashes = append(e.proof.hashes, e.proof.root) },
			"root":       func(e *logEntry) { e.promise = nil; e.proof.root = bytes.Repeat([]byte{1}, 32) },
			"size":       func(e *logEntry) { e.promise = nil; e.proof.size++ },
			"note":       func(e *logEntry) { e.promise = nil; e.proof.checkpoint = "x" + e.proof.checkpoint },
			"no note":    func(e *logEntry) { e.promise = nil; e.proof.checkpoint = "" },
		} {
			c, log, signer := load(t, name)
			spoil(&c.entries[0])
			if err := c.logged(signer, []*PublicKey{log}); err == nil {
				t.Errorf("%s: %s was changed, and it was accepted", name, change)
			}
		}
	}
}

// TestAttackSETOfAnotherLog: an entry that some other log signed is none.
func TestAttackSETOfAnotherLog(t *testing.T) {
	t.Parallel()
	c, _, signer := load(t, "intoto-bundle-v0.1.json")
	_, other, _ := load(t, "hashedrekord-bundle-v0.3.json")
	err := c.logged(signer, []*PublicKey{other})
	if err == nil || !strings.Contains(err.Error(), "is in no transparency log that the policy names") {
		t.Error(err)
	}
	c.entries[0].proof = nil
	err = c.logged(signer, []*PublicKey{other})
	if err == nil || !strings.Contains(err.Error(), "it is of the log c0d23d6ad406973f, not of the pinned one") {
		t.Error(err)
	}
	// A good entry, but of another signature.
	a, log, _ := load(t, "intoto-bundle-v0.1.json")
	b, _, bSigner := load(t, "hashedrekord-bundle-v0.3.json")
	b.entries = a.entries
	if err := b.logged(bSigner, []*PublicKey{log}); err == nil || !strings.Contains(err.Error(), "it is for another signature") {
		t.Error(err)
	}
}

// tree computes roots and paths the way RFC 6962 section 2.1 defines them.
func tree(leaves [][]byte) []byte {
	switch len(leaves) {
	case 0:
		sum := sha256.Sum256(nil)
		return sum[:]
	case 1:
		return nodeHash([]byte{0}, leaves[0])
	}
	k := largest(len(leaves))
	return nodeHash([]byte{1}, tree(leaves[:k]), tree(leaves[k:]))
}

func largest(n int) int {
	k := 1
	for k*2 < n {
		k *= 2
	}
	return k
}

func auditPath(m int, leaves [][]byte) [][]byte {
	if len(leaves) <= 1 {
		return nil
	}
	k := largest(len(leaves))
	if m < k {
		return append(auditPath(m, leaves[:k]), tree(leaves[k:]))
	}
	return append(auditPath(m-k, leaves[k:]), tree(leaves[:k]))
}

// Every leaf of every small tree, against the definition of RFC 6962.
func TestInclusion(t *testing.T) {
	t.Parallel()
	var leaves [][]byte
	for n := range 40 {
		leaves = append(leaves, binary.BigEndian.AppendUint32(nil, uint32(n)))
		root := tree(leaves)
		for m := range leaves {
			p := auditPath(m, leaves)
			if err := checkInclusion(leaves[m], int64(m), int64(len(leaves)), p, root); err != nil {
				t.Fatalf("leaf %d of %d: %v", m, len(leaves), err)
			}
			other := (m + 1) % len(leaves)
			if len(leaves) > 1 && checkInclusion(leaves[other], int64(m), int64(len(leaves)), p, root) == nil {
				t.Errorf("leaf %d of %d: another leaf was accepted", m, len(leaves))
			}
			if len(leaves) > 1 && checkInclusion(leaves[m], int64(other), int64(len(leaves)), p, root) == nil {
				t.Errorf("leaf %d of %d: another index was accepted", m, len(leaves))
			}
			if checkInclusion(leaves[m], int64(m), int64(len(leaves)), append(slices.Clone(p), root), root) == nil {
				t.Errorf("leaf %d of %d: a longer path was accepted", m, len(leaves))
			}
		}
	}
	for _, index := range []int64{-1, 40, 1 << 62} {
		if checkInclusion(leaves[0], index, 40, nil, nil) == nil {
			t.Errorf("index %d was accepted", index)
		}
	}
}

// The root of the test data of RFC 6962's implementation, for eight leaves
// (google/certificate-transparency, merkletree tests).
func TestKnownRoot(t *testing.T) {
	t.Parallel()
	var leaves [][]byte
	for _, s := range []string{"", "\x00", "\x10", "\x20\x21", "\x30\x31", "\x40\x41\x42\x43", "\x50\x51\x52\x53\x54\x55\x56\x57", "\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f"} {
		leaves = append(leaves, []byte(s))
	}
	if got := fmt.Sprintf("%x", tree(leaves)); got != "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328" {
		t.Error(got)
	}
}

// Notes of an Ed25519 log, as Rekor version 2 signs them.
func TestCheckpoints(t *testing.T) {
	t.Parallel()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	root := bytes.Repeat([]byte{7}, 32)
	text := "log.example\n42\n" + base64.StdEncoding.EncodeToString(root) + "\n"
	sig, _ := private.Sign(nil, []byte(text), crypto.Hash(0))
	line := "— log.example " + base64.StdEncoding.EncodeToString(append([]byte{1, 2, 3, 4}, sig...)) + "\n"
	size, got, err := openCheckpoint(text+"\n— witness.example AAAAAAAA\n"+line, k)
	if err != nil || size != 42 || !bytes.Equal(got, root) {
		t.Errorf("%d, %x, %v", size, got, err)
	}
	for name, note := range map[string]string{
		"no signature":  text + "\n",
		"another text":  strings.Replace(text, "42", "43", 1) + "\n" + line,
		"no empty line": text + line,
		"cut":           strings.TrimSuffix(text+"\n"+line, "\n"),
		"no note":       "x",
		"long":          strings.Repeat("x", maxCheckpoint+1),
	} {
		if _, _, err := openCheckpoint(note, k); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func FuzzParseBundle(f *testing.F) {
	for name := range published {
		f.Add(testdata(f, name))
	}
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"x"}},"dsseEnvelope":{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"AA=="}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseBundle(data)
		if (c == nil) == (err == nil) {
			t.Fatalf("%v, %v", c, err)
		}
		if err == nil && c.content == nil {
			t.Error("a claim without content")
		}
	})
}

func FuzzLogEntry(f *testing.F) {
	for name := range published {
		c, _, _ := load(f, name)
		f.Add(c.entries[0].body, c.entries[0].proof.checkpoint)
	}
	c, log, signer := load(f, "intoto-bundle-v0.1.json")
	good := c.entries[0].body
	f.Fuzz(func(t *testing.T, body []byte, note string) {
		e := &logEntry{body: body, logID: make([]byte, 32), proof: &inclusionProof{size: 1, checkpoint: note}}
		if e.about(c, signer) == nil && e.verify(log) == nil && !bytes.Equal(body, good) {
			t.Error("accepted")
		}
	})
}
