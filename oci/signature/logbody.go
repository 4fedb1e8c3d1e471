package signature

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/coffer-project/coffer/internal/strictjson"
)

// The bodies of entries (sigstore/rekor, pkg/types/…/*_schema.json, and
// sigstore/rekor-tiles, rekor/v2/*.proto). What an entry holds of signatures
// is compared with the claim, byte for byte.
type (
	entryHead struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	entryHash struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"value"`
	}
	hashedRekordBody struct {
		entryHead
		Spec struct {
			Data struct {
				Hash entryHash `json:"hash"`
			} `json:"data"`
			Signature struct {
				Content   []byte `json:"content"`
				PublicKey struct {
					Content []byte `json:"content"`
				} `json:"publicKey"`
			} `json:"signature"`
		} `json:"spec"`
	}
	dsseBody struct {
		entryHead
		Spec struct {
			EnvelopeHash entryHash `json:"envelopeHash"`
			PayloadHash  entryHash `json:"payloadHash"`
			Signatures   []struct {
				Signature []byte `json:"signature"`
				Verifier  []byte `json:"verifier"`
			} `json:"signatures"`
		} `json:"spec"`
	}
	inTotoBody struct {
		entryHead
		Spec struct {
			Content struct {
				Envelope struct {
					PayloadType string `json:"payloadType"`
					Signatures  []struct {
						KeyID     string `json:"keyid"`
						PublicKey []byte `json:"publicKey"`
						Signature []byte `json:"sig"` // base64 once more
					} `json:"signatures"`
				} `json:"envelope"`
				Hash        entryHash `json:"hash"`
				PayloadHash entryHash `json:"payloadHash"`
			} `json:"content"`
		} `json:"spec"`
	}
	hashedRekord2Body struct {
		entryHead
		Spec struct {
			Entry struct {
				Data struct {
					Algorithm string `json:"algorithm"`
					Digest    []byte `json:"digest"`
				} `json:"data"`
				Signature struct {
					Content  []byte `json:"content"`
					Verifier struct {
						KeyDetails  string          `json:"keyDetails"`
						PublicKey   *rawCertificate `json:"publicKey"`
						Certificate *rawCertificate `json:"x509Certificate"`
					} `json:"verifier"`
				} `json:"signature"`
			} `json:"hashedRekordV002"`
		} `json:"spec"`
	}
)

// entryContent is what an entry says was signed, with which signature, and by
// which key or certificate (PEM, or DER in der).
type entryContent struct {
	hash      crypto.Hash
	sum       []byte
	payload   bool // sum is of the envelope's payload, not of what was signed
	signature []byte
	pem, der  []byte
}

// about says whether the entry is about the claim, made by k.
func (e *logEntry) about(c *claim, k *PublicKey) error {
	contents, err := decodeEntry(e.body)
	if err != nil {
		return fmt.Errorf("log entry: %w", err)
	}
	for _, x := range contents {
		der := x.der
		if der == nil {
			block, rest := pem.Decode(x.pem)
			if block == nil || len(bytes.TrimSpace(rest)) > 0 || (block.Type != "PUBLIC KEY" && block.Type != "CERTIFICATE") {
				continue
			}
			der = block.Bytes
		}
		want := c.sumFor(x.hash)
		if x.payload {
			want = nil
			if st, ok := c.content.(statementContent); ok {
				want = sumOf(x.hash, st)
			}
		}
		if want != nil && bytes.Equal(x.sum, want) && bytes.Equal(x.signature, c.signature) && c.signer(k, der) {
			return nil
		}
	}
	return errors.New("log entry: it is for another signature")
}

func decodeEntry(body []byte) ([]entryContent, error) {
	var head entryHead
	loose := map[string]any{}
	limits := strictjson.Limits{Bytes: maxLogBody, Depth: 12}
	if err := strictjson.Decode(body, &loose, limits); err != nil {
		return nil, err
	}
	head.Kind, _ = loose["kind"].(string)
	head.APIVersion, _ = loose["apiVersion"].(string)
	switch head.Kind + " " + head.APIVersion {
	case "hashedrekord 0.0.1":
		var b hashedRekordBody
		if err := strictjson.Decode(body, &b, limits); err != nil {
			return nil, err
		}
		x := entryContent{signature: b.Spec.Signature.Content, pem: b.Spec.Signature.PublicKey.Content}
		var err error
		x.hash, x.sum, err = b.Spec.Data.Hash.decode()
		return []entryContent{x}, err
	case "hashedrekord 0.0.2":
		return decodeHashedRekord2(body, limits)
	case "dsse 0.0.1":
		var b dsseBody
		if err := strictjson.Decode(body, &b, limits); err != nil {
			return nil, err
		}
		var out []entryContent
		for _, s := range b.Spec.Signatures {
			out = append(out, entryContent{payload: true, signature: s.Signature, pem: s.Verifier})
		}
		return b.Spec.PayloadHash.all(out)
	case "intoto 0.0.2":
		var b inTotoBody
		if err := strictjson.Decode(body, &b, limits); err != nil {
			return nil, err
		}
		var out []entryContent
		for _, s := range b.Spec.Content.Envelope.Signatures {
			sig, err := base64.StdEncoding.DecodeString(string(s.Signature))
			if err != nil {
				return nil, fmt.Errorf("sig: %w", err)
			}
			out = append(out, entryContent{payload: true, signature: sig, pem: s.PublicKey})
		}
		return b.Spec.Content.PayloadHash.all(out)
	default:
		return nil, fmt.Errorf("expected hashedrekord 0.0.1 or 0.0.2, dsse 0.0.1 or intoto 0.0.2, got %q", clip(head.Kind+" "+head.APIVersion))
	}
}

func decodeHashedRekord2(body []byte, limits strictjson.Limits) ([]entryContent, error) {
	var b hashedRekord2Body
	if err := strictjson.Decode(body, &b, limits); err != nil {
		return nil, err
	}
	x := entryContent{sum: b.Spec.Entry.Data.Digest, signature: b.Spec.Entry.Signature.Content}
	switch b.Spec.Entry.Data.Algorithm {
	case "SHA2_256":
		x.hash = crypto.SHA256
	case "SHA2_384":
		x.hash = crypto.SHA384
	case "SHA2_512":
		x.hash = crypto.SHA512
	default:
		return nil, fmt.Errorf("algorithm %q: expected SHA2_256, SHA2_384 or SHA2_512", clip(b.Spec.Entry.Data.Algorithm))
	}
	switch v := b.Spec.Entry.Signature.Verifier; {
	case v.PublicKey != nil && v.Certificate == nil:
		x.der = v.PublicKey.RawBytes
	case v.Certificate != nil && v.PublicKey == nil:
		x.der = v.Certificate.RawBytes
	default:
		return nil, errors.New("verifier: expected publicKey or x509Certificate")
	}
	return []entryContent{x}, nil
}

func (h entryHash) decode() (crypto.Hash, []byte, error) {
	hash, ok := map[string]crypto.Hash{"sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512}[h.Algorithm]
	sum, err := hex.DecodeString(h.Value)
	if !ok || err != nil {
		return 0, nil, fmt.Errorf("hash: expected sha256, sha384 or sha512 in hexadecimal, got algorithm %q", clip(h.Algorithm))
	}
	return hash, sum, nil
}

// all gives the hash to each of list.
func (h entryHash) all(list []entryContent) ([]entryContent, error) {
	hash, sum, err := h.decode()
	for i := range list {
		list[i].hash, list[i].sum = hash, sum
	}
	return list, err
}
