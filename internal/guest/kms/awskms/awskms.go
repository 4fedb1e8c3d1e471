// Package awskms gets secrets from Amazon's cloud for sealed secrets of the
// provider aws: Secrets Manager keeps those of type vault, KMS decrypts the
// keys of envelopes.
//
// The credential is the resource that takes the place of the guest components'
// file kms-credential/aws/credential.json. Requests are signed with Signature
// Version 4, whose published examples the tests repeat. No request of this
// package has been sent to Amazon yet: the tests' services are local.
package awskms

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/coffer-project/coffer/internal/guest/kms"
	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/secret"
	"github.com/coffer-project/coffer/secret/sealed"
)

// credentialName is the credential below the guest components' directory.
const credentialName = "aws/credential.json"

// Services by the names that requests are signed for, and their operations
// (AWS API references: X-Amz-Target).
const (
	serviceKMS     = "kms"
	serviceSecrets = "secretsmanager"
	targetDecrypt  = "TrentService.Decrypt"
	targetSecret   = "secretsmanager.GetSecretValue"
)

// Options configure a [Provider].
type Options struct {
	// Client sends requests; nil: kms.Client with the system's roots. It must
	// not follow redirects.
	Client *http.Client
	// Endpoint returns a service's base URL in a region; nil: Amazon's.
	Endpoint func(service, region string) string
	// Now is the clock that signatures carry; nil: time.Now.
	Now func() time.Time
}

// Provider is Amazon's services.
type Provider struct{ o Options }

var _ kms.Provider = (*Provider)(nil)

// New returns a provider. It opens no connection.
func New(o Options) *Provider {
	if o.Client == nil {
		o.Client = kms.Client(nil)
	}
	if o.Endpoint == nil {
		o.Endpoint = endpoint
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Provider{o}
}

// endpoint is a service's address (AWS General Reference, service endpoints).
func endpoint(service, region string) string {
	suffix := ".amazonaws.com"
	if strings.HasPrefix(region, "cn-") {
		suffix += ".cn"
	}
	return "https://" + service + "." + region + suffix
}

// credential is an access key.
type credential struct {
	ID    string `json:"access_key_id"`
	Key   string `json:"secret_access_key"`
	Token string `json:"session_token"`
}

// Secret asks Secrets Manager.
func (p *Provider) Secret(ctx context.Context, r kms.Request) (secret.Bytes, error) {
	var a struct {
		VersionID    string `json:"version_id"`
		VersionStage string `json:"version_stage"`
	}
	if err := sealed.Into(r.Annotations, "annotations", &a); err != nil {
		return secret.Bytes{}, err
	}
	answer, err := p.call(ctx, r, serviceSecrets, targetSecret, struct {
		SecretID     string `json:"SecretId"`
		VersionID    string `json:"VersionId,omitempty"`
		VersionStage string `json:"VersionStage,omitempty"`
	}{r.Name, a.VersionID, a.VersionStage})
	if err != nil {
		return secret.Bytes{}, err
	}
	if text, ok := answer["SecretString"]; ok {
		var s string
		if json.Unmarshal(text, &s) == nil && string(text) != "null" {
			return secret.New([]byte(s)), nil
		}
	}
	return answer.bytes(serviceSecrets, "SecretBinary")
}

// Decrypt asks KMS.
func (p *Provider) Decrypt(ctx context.Context, r kms.Request) (secret.Bytes, error) {
	var a struct {
		Context map[string]string `json:"encryption_context"`
	}
	if err := sealed.Into(r.Annotations, "annotations", &a); err != nil {
		return secret.Bytes{}, err
	}
	answer, err := p.call(ctx, r, serviceKMS, targetDecrypt, struct {
		Blob    []byte            `json:"CiphertextBlob"`
		KeyID   string            `json:"KeyId"`
		Context map[string]string `json:"EncryptionContext,omitempty"`
	}{r.Ciphertext, r.Name, a.Context})
	if err != nil {
		return secret.Bytes{}, err
	}
	return answer.bytes(serviceKMS, "Plaintext")
}

// answer is the object that a service answered.
type answer map[string]json.RawMessage

func (a answer) bytes(service, name string) (secret.Bytes, error) {
	var s string
	if json.Unmarshal(a[name], &s) != nil || len(a[name]) == 0 || string(a[name]) == "null" {
		return secret.Bytes{}, fmt.Errorf("aws %s: the answer has no member %s", service, name)
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return secret.Bytes{}, fmt.Errorf("aws %s: the answer's member %s is not base64", service, name)
	}
	return secret.New(b), nil
}

func (p *Provider) call(ctx context.Context, r kms.Request, service, target string, body any) (answer, error) {
	var settings struct {
		Region string `json:"region"`
	}
	if err := sealed.Into(r.Settings, "provider_settings", &settings); err != nil {
		return nil, err
	}
	// The region becomes part of a host name.
	if s := settings.Region; s == "" || len(s) > 32 || strings.TrimLeft(s, regionBytes) != "" {
		return nil, fmt.Errorf("payload.provider_settings.region: expected a region such as eu-west-1, got %.64q", s)
	}
	doc, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	held, err := r.Credential(ctx, credentialName)
	if err != nil {
		return nil, err
	}
	defer held.Clear()
	var c credential
	if err := strictjson.Decode(held.Expose(), &c, strictjson.Limits{Bytes: 16 << 10, Depth: 1}); err != nil {
		return nil, fmt.Errorf("credential %s: %w", credentialName, err)
	}
	if !printable(c.ID) || !printable(c.Key) || c.Token != "" && !printable(c.Token) {
		return nil, fmt.Errorf("credential %s: access_key_id and secret_access_key must be set, in printable ASCII", credentialName)
	}
	url := p.o.Endpoint(service, settings.Region)
	header := http.Header{"Content-Type": {"application/x-amz-json-1.1"}, "X-Amz-Target": {target}}
	if err := sign(signing{
		method: http.MethodPost, url: url + "/", header: header, body: doc,
		now: p.o.Now(), region: settings.Region, service: service, credential: c,
	}); err != nil {
		return nil, err
	}
	status, text, err := kms.Do(ctx, p.o.Client, url+"/", header, doc)
	if err != nil {
		return nil, fmt.Errorf("aws %s: %w", service, err)
	}
	if status != http.StatusOK {
		return nil, refusal(service, status, text)
	}
	var a answer
	if err := strictjson.Decode(text, &a, strictjson.Limits{Depth: 16}); err != nil {
		return nil, fmt.Errorf("aws %s: the answer is not a JSON object", service)
	}
	return a, nil
}

const regionBytes = "abcdefghijklmnopqrstuvwxyz0123456789-"

func printable(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// refusal is an error that a service answered: its kind, and its words if they
// are text.
func refusal(service string, status int, text []byte) error {
	var e struct {
		Type     string `json:"__type"`
		Message  string `json:"message"`
		Message2 string `json:"Message"`
	}
	if json.Unmarshal(text, &e) != nil {
		return fmt.Errorf("aws %s: status %d", service, status)
	}
	if e.Message == "" {
		e.Message = e.Message2
	}
	return errors.New(strings.TrimSuffix(fmt.Sprintf("aws %s: status %d: %.128q: %.512q", service, status, e.Type, e.Message), `: ""`))
}
