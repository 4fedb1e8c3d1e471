package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/coffer-project/coffer/secret"
)

// Headers of a delivery.
const (
	// SignatureHeader is "t=<Unix seconds>,v1=<hex>": HMAC-SHA-256 with the
	// webhook's secret over the seconds in decimal, a full stop and the body.
	SignatureHeader = "Coffer-Signature"
	// DeliveryHeader is the delivery's id.
	DeliveryHeader = "Coffer-Delivery"
)

// MinSecret is the shortest secret of a webhook, in bytes.
const MinSecret = 16

// Sign is the value of [SignatureHeader] for a body sent at a time.
func Sign(key secret.Bytes, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac(key, t, body))
}

func mac(key secret.Bytes, t string, body []byte) []byte {
	h := hmac.New(sha256.New, key.Expose())
	h.Write([]byte(t + "."))
	h.Write(body)
	return h.Sum(nil)
}

// maxSignature bounds the header, in bytes.
const maxSignature = 512

// Verify is what a receiver does: it checks the header against the body, and
// that it was signed no longer than tolerance ago or ahead of now.
func Verify(key secret.Bytes, header string, body []byte, now time.Time, tolerance time.Duration) error {
	if key.Len() < MinSecret {
		return fmt.Errorf("webhook: secret: expected at least %d bytes, got %d", MinSecret, key.Len())
	}
	if len(header) > maxSignature {
		return fmt.Errorf("webhook: %s: expected at most %d bytes, got %d", SignatureHeader, maxSignature, len(header))
	}
	t, sig, ok := strings.Cut(header, ",v1=")
	t, hasTime := strings.CutPrefix(t, "t=")
	seconds, err := strconv.ParseInt(t, 10, 64)
	if !ok || !hasTime || err != nil || strconv.FormatInt(seconds, 10) != t {
		return fmt.Errorf("webhook: %s: expected t=<seconds>,v1=<hex>", SignatureHeader)
	}
	got, err := hex.DecodeString(sig)
	if err != nil {
		return fmt.Errorf("webhook: %s: v1: expected hex", SignatureHeader)
	}
	if !hmac.Equal(got, mac(key, t, body)) {
		return errors.New("webhook: the signature is not that of the body: another secret, or it was altered")
	}
	if age := now.Sub(time.Unix(seconds, 0)); age > tolerance || age < -tolerance {
		return fmt.Errorf("webhook: signed at %s: expected within %s of now", time.Unix(seconds, 0).UTC().Format(time.RFC3339), tolerance)
	}
	return nil
}
