// Package aliyunkms gets secrets from a dedicated instance of Alibaba Cloud's
// key management service, for sealed secrets of the provider aliyun: the
// instance keeps those of type vault, and decrypts the keys of envelopes.
//
// It speaks for a client key (client_type "client_key"), whose three files are
// resources that take the place of the guest components'
// kms-credential/aliyun/{PrivateKmsCA_I.pem,password_K.json,clientKey_K.json}.
// No request of this package has been sent to Alibaba Cloud yet: the tests'
// instance is local.
//
// A client key is a PKCS #12 file, which keeps it by ciphers that are broken.
// They protect nothing here: key and password come together, from the trustee.
package aliyunkms

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/coffer-project/coffer/initdata/guestconfig"
	"github.com/coffer-project/coffer/internal/guest/kms"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/secret/sealed"
)

// clientType is the only kind of credential that is spoken for.
const clientType = "client_key"

// algorithm is what instances encrypt with.
const algorithm = "AES_GCM"

// Options configure a [Provider].
type Options struct {
	// Host returns the host[:port] of an instance; nil: Alibaba Cloud's.
	Host func(instance string) string
	// Now is the clock that requests carry and certificates are judged by;
	// nil: time.Now.
	Now func() time.Time
}

// Provider is the key management service.
type Provider struct{ o Options }

var _ kms.Provider = (*Provider)(nil)

// New returns a provider. It opens no connection.
func New(o Options) *Provider {
	if o.Host == nil {
		o.Host = func(instance string) string { return instance + ".cryptoservice.kms.aliyuncs.com" }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Provider{o}
}

// Secret asks for a secret (GetSecretValue).
func (p *Provider) Secret(ctx context.Context, r kms.Request) (secret.Bytes, error) {
	var a struct {
		VersionStage string `json:"version_stage"`
		VersionID    string `json:"version_id"`
	}
	if err := sealed.Into(r.Annotations, "annotations", &a); err != nil {
		return secret.Bytes{}, err
	}
	// dkms_api.GetSecretValueRequest: SecretName, VersionStage, VersionId,
	// FetchExtendedConfig.
	body := field(nil, 1, r.Name)
	body = field(body, 2, a.VersionStage)
	body = field(body, 3, a.VersionID)
	body = protowire.AppendVarint(protowire.AppendTag(body, 4, protowire.VarintType), 1)
	// dkms_api.GetSecretValueResponse: SecretData is the third.
	return p.call(ctx, r, "GetSecretValue", body, 3)
}

// Decrypt has a key decrypted.
func (p *Provider) Decrypt(ctx context.Context, r kms.Request) (secret.Bytes, error) {
	var a struct {
		IV string `json:"iv"`
	}
	if err := sealed.Into(r.Annotations, "annotations", &a); err != nil {
		return secret.Bytes{}, err
	}
	iv, err := base64.StdEncoding.Strict().DecodeString(a.IV)
	if err != nil {
		return secret.Bytes{}, errors.New("payload.annotations.iv: expected padded base64")
	}
	// dkms_api.DecryptRequest: CiphertextBlob, KeyId, Algorithm, Aad, Iv.
	body := field(nil, 1, string(r.Ciphertext))
	body = field(body, 2, r.Name)
	body = field(body, 3, algorithm)
	body = field(body, 5, string(iv))
	// dkms_api.DecryptResponse: Plaintext is the second.
	return p.call(ctx, r, "Decrypt", body, 2)
}

// field appends a string or bytes; empty ones are left out, as proto3 does.
func field(b []byte, n protowire.Number, v string) []byte {
	if v == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), v)
}

// call sends a request and returns one field of the answer.
func (p *Provider) call(ctx context.Context, r kms.Request, api string, body []byte, result protowire.Number) (secret.Bytes, error) {
	var settings struct {
		Type     string `json:"client_type"`
		Key      string `json:"client_key_id"`
		Instance string `json:"kms_instance_id"`
	}
	if err := sealed.Into(r.Settings, "provider_settings", &settings); err != nil {
		return secret.Bytes{}, err
	}
	if t := settings.Type; t != "" && t != clientType {
		return secret.Bytes{}, fmt.Errorf("payload.provider_settings.client_type: expected %s, got %.32q", clientType, t)
	}
	if !guestconfig.CheckCredentialID(settings.Key) {
		return secret.Bytes{}, fmt.Errorf("payload.provider_settings.client_key_id: expected letters, digits, dots and dashes, got %.64q", settings.Key)
	}
	if s := settings.Instance; s == "" || len(s) > 63 || strings.TrimLeft(s, instanceBytes) != "" {
		return secret.Bytes{}, fmt.Errorf("payload.provider_settings.kms_instance_id: expected letters, digits and dashes, got %.64q", s)
	}
	k, err := readClientKey(ctx, r.Credential, settings.Key)
	if err != nil {
		return secret.Bytes{}, err
	}
	client, err := p.client(ctx, r.Credential, settings.Instance)
	if err != nil {
		return secret.Bytes{}, err
	}
	defer client.CloseIdleConnections()
	header, err := k.header(api, body, p.o.Now())
	if err != nil {
		return secret.Bytes{}, err
	}
	status, answer, err := kms.Do(ctx, client, "https://"+p.o.Host(settings.Instance)+"/", header, body)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("aliyun kms: %w", err)
	}
	if status != http.StatusOK {
		return secret.Bytes{}, refusal(status, answer)
	}
	value, ok := find(answer, result)
	clear(answer)
	if !ok {
		return secret.Bytes{}, fmt.Errorf("aliyun kms: %s: the answer has no result", api)
	}
	return secret.New(value), nil
}

const instanceBytes = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-"

// client trusts the instance's own authority and no other.
func (p *Provider) client(ctx context.Context, get func(context.Context, string) (secret.Bytes, error), instance string) (*http.Client, error) {
	name := "aliyun/PrivateKmsCA_" + instance + ".pem"
	ca, err := get(ctx, name)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca.Expose()) {
		return nil, fmt.Errorf("credential %s: holds no certificate in PEM", name)
	}
	return kms.Client(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Time: p.o.Now}), nil
}

// find returns a copy of a string or bytes field, the last one as protobuf has
// it.
func find(b []byte, want protowire.Number) (value []byte, ok bool) {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return nil, false
		}
		b = b[size:]
		if n == want && kind == protowire.BytesType {
			v, size := protowire.ConsumeBytes(b)
			if size < 0 {
				return nil, false
			}
			value, ok, b = append([]byte{}, v...), true, b[size:]
			continue
		}
		if size = protowire.ConsumeFieldValue(n, kind, b); size < 0 {
			return nil, false
		}
		b = b[size:]
	}
	return value, ok
}

// refusal is dkms_api.Error: StatusCode, ErrorCode, ErrorMessage, RequestId.
func refusal(status int, answer []byte) error {
	code, _ := find(answer, 2)
	message, _ := find(answer, 3)
	return fmt.Errorf("aliyun kms: status %d: %.128q: %.512q", status, code, message)
}
