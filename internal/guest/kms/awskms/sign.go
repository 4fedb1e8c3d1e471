package awskms

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// signing is a request to sign with Signature Version 4 (AWS Signature Version
// 4 for API requests, "Create a signed AWS API request").
type signing struct {
	method, url     string
	header          http.Header
	body            []byte
	now             time.Time
	region, service string
	credential      credential
}

const algorithm = "AWS4-HMAC-SHA256"

// sign adds the date, the session's token and the signature to the header. All
// fields of the header are signed, and the host. The URL's path must need no
// escaping, and its query must be empty.
func sign(s signing) error {
	u, err := url.Parse(s.url)
	if err != nil || u.Host == "" || u.RawQuery != "" {
		return fmt.Errorf("aws: cannot sign a request to %.128q", s.url)
	}
	stamp := s.now.UTC().Format("20060102T150405Z")
	s.header.Set("X-Amz-Date", stamp)
	if s.credential.Token != "" {
		s.header.Set("X-Amz-Security-Token", s.credential.Token)
	}
	fields := map[string]string{"host": u.Host}
	for name, values := range s.header {
		fields[strings.ToLower(name)] = strings.Join(strings.Fields(strings.Join(values, ",")), " ")
	}
	names := slices.Sorted(maps.Keys(fields))
	var canonical strings.Builder
	fmt.Fprintf(&canonical, "%s\n%s\n\n", s.method, u.EscapedPath())
	for _, name := range names {
		canonical.WriteString(name + ":" + fields[name] + "\n")
	}
	signed := strings.Join(names, ";")
	canonical.WriteString("\n" + signed + "\n" + hash(s.body))

	scope := stamp[:8] + "/" + s.region + "/" + s.service + "/aws4_request"
	text := algorithm + "\n" + stamp + "\n" + scope + "\n" + hash([]byte(canonical.String()))
	key := []byte("AWS4" + s.credential.Key)
	for part := range strings.SplitSeq(scope, "/") { // date, region, service, aws4_request
		key = mac(key, part)
	}
	s.header.Set("Authorization", fmt.Sprintf("%s Credential=%s/%s, SignedHeaders=%s, Signature=%s",
		algorithm, s.credential.ID, scope, signed, hex.EncodeToString(mac(key, text))))
	return nil
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func mac(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return m.Sum(nil)
}
