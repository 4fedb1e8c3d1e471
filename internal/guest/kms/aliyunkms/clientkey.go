package aliyunkms

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/crypto/pkcs12"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/secret"
)

// Constants of the protocol of dedicated instances (Alibaba Cloud, dkms-gcs
// SDKs: openapi client, request headers).
const (
	apiVersion      = "dkms-gcs-0.2"
	signatureMethod = "RSA_PKCS1_SHA_256"
	contentType     = "application/x-protobuf"
	// The third c is the protocol's.
	fieldKeyID = "x-kms-acccesskeyid"
)

// clientKey signs requests.
type clientKey struct {
	id  string
	key *rsa.PrivateKey
}

// readClientKey gets a client key and its password.
func readClientKey(ctx context.Context, get func(context.Context, string) (secret.Bytes, error), id string) (*clientKey, error) {
	name := "aliyun/clientKey_" + id + ".json"
	doc, err := get(ctx, name)
	if err != nil {
		return nil, err
	}
	defer doc.Clear()
	password, err := get(ctx, "aliyun/password_"+id+".json")
	if err != nil {
		return nil, err
	}
	defer password.Clear()
	k, err := parseClientKey(doc, password)
	if err != nil {
		return nil, fmt.Errorf("credential %s: %w", name, err)
	}
	return k, nil
}

// parseClientKey reads the document that Alibaba Cloud hands out, of which two
// members matter.
func parseClientKey(doc, password secret.Bytes) (*clientKey, error) {
	var d map[string]any
	if err := strictjson.Decode(doc.Expose(), &d, strictjson.Limits{Bytes: 64 << 10, Depth: 4}); err != nil {
		return nil, errors.New("expected a JSON object with KeyId and PrivateKeyData")
	}
	id, _ := d["KeyId"].(string)
	data, _ := d["PrivateKeyData"].(string)
	if id == "" || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("KeyId: expected printable ASCII")
	}
	der, err := base64.StdEncoding.DecodeString(data)
	if err != nil {
		return nil, errors.New("PrivateKeyData: expected padded base64")
	}
	defer clear(der)
	blocks, err := pkcs12.ToPEM(der, strings.TrimRight(string(password.Expose()), " \t\r\n"))
	if err != nil {
		return nil, errors.New("PrivateKeyData: is no PKCS #12, or the password is another's")
	}
	for _, b := range blocks {
		if b.Type != "PRIVATE KEY" {
			continue
		}
		defer clear(b.Bytes)
		// The package writes RSA keys as PKCS #1 under that name.
		key, err := x509.ParsePKCS1PrivateKey(b.Bytes)
		if err != nil {
			return nil, errors.New("PrivateKeyData: the private key is not an RSA key")
		}
		return &clientKey{id, key}, nil
	}
	return nil, errors.New("PrivateKeyData: holds no private key")
}

// header makes the fields of a request, the signature among them.
func (k *clientKey) header(api string, body []byte, now time.Time) (http.Header, error) {
	sum := sha256.Sum256(body)
	hash := strings.ToUpper(hex.EncodeToString(sum[:]))
	date := now.UTC().Format(http.TimeFormat)
	// In order, as they are signed.
	fields := [][2]string{
		{fieldKeyID, k.id}, {"x-kms-apiname", api}, {"x-kms-apiversion", apiVersion}, {"x-kms-signaturemethod", signatureMethod},
	}
	h := http.Header{"Accept": {contentType}, "Content-Type": {contentType}, "Date": {date}, "Content-Sha256": {hash}}
	text := "POST\n" + hash + "\n" + contentType + "\n" + date + "\n"
	for _, f := range fields {
		h.Set(f[0], f[1])
		text += f[0] + ":" + f[1] + "\n"
	}
	digest := sha256.Sum256([]byte(text + "/"))
	signature, err := rsa.SignPKCS1v15(nil, k.key, crypto.SHA256, digest[:])
	if err != nil {
		return nil, fmt.Errorf("aliyun kms: sign: %w", err)
	}
	h.Set("Authorization", "Bearer "+base64.StdEncoding.EncodeToString(signature))
	return h, nil
}
