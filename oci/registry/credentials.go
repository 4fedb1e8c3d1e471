package registry

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/secret"
)

const (
	maxAuthFile    = 1 << 20
	maxAuthEntries = 1024
)

// Credentials are users and passwords, or tokens, by registry, namespace or
// repository. A nil *Credentials has none.
type Credentials struct {
	entries map[string]*login
}

// login is one entry.
type login struct {
	key      string // as it is looked up
	user     string
	password secret.Bytes
	// identity is an OAuth2 refresh token, bearer one for the registry itself.
	identity, bearer secret.Bytes
}

// ParseCredentials reads a Docker or containers-auth.json file. Credential
// helpers are refused: no guest can run them. Errors name the entry and never
// hold its value.
func ParseCredentials(data []byte) (*Credentials, error) {
	limits := strictjson.Limits{Bytes: maxAuthFile, Depth: 8}
	// The file may hold a lot that has nothing to do with credentials.
	var file map[string]json.RawMessage
	if err := strictjson.Decode(data, &file, limits); err != nil {
		return nil, fmt.Errorf("registry credentials: %w", err)
	}
	for _, helper := range []string{"credsStore", "credHelpers"} {
		if raw, ok := file[helper]; ok && string(raw) != `""` && string(raw) != "{}" && string(raw) != "null" {
			return nil, fmt.Errorf("registry credentials: %s: credential helpers are not supported; put the credentials into auths", helper)
		}
	}
	raw, ok := file["auths"]
	if !ok {
		return nil, fmt.Errorf(`registry credentials: auths: missing; expected {"auths":{"REGISTRY":{"auth":"BASE64(USER:PASSWORD)"}}}`)
	}
	var auths map[string]struct {
		Auth          string `json:"auth"`
		Username      string `json:"username"`
		Password      string `json:"password"`
		Email         string `json:"email"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	}
	if err := strictjson.Decode(raw, &auths, limits); err != nil {
		return nil, fmt.Errorf("registry credentials: auths: %w", err)
	}
	if len(auths) > maxAuthEntries {
		return nil, fmt.Errorf("registry credentials: auths: %d entries, at most %d are allowed", len(auths), maxAuthEntries)
	}
	c := &Credentials{entries: make(map[string]*login, len(auths))}
	for _, key := range slices.Sorted(maps.Keys(auths)) {
		a := auths[key]
		l := &login{
			key: normalise(key), user: a.Username, password: secret.New([]byte(a.Password)),
			identity: secret.New([]byte(a.IdentityToken)), bearer: secret.New([]byte(a.RegistryToken)),
		}
		if a.Auth != "" {
			plain, err := base64.StdEncoding.DecodeString(a.Auth)
			if err != nil {
				return nil, fmt.Errorf("registry credentials: auths[%q].auth: expected base64", key)
			}
			user, password, found := strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
			if !found {
				return nil, fmt.Errorf("registry credentials: auths[%q].auth: expected base64 of USER:PASSWORD, there is no colon", key)
			}
			l.user, l.password = user, secret.New([]byte(password))
		}
		if !printable(a.RegistryToken) {
			return nil, fmt.Errorf("registry credentials: auths[%q].registrytoken: expected printable text", key)
		}
		if l.user == "" && l.password.Len() == 0 && l.identity.Len() == 0 && l.bearer.Len() == 0 {
			continue // what "docker login" leaves behind when a helper has the password
		}
		// A name goes before the URL that Docker writes for the same registry.
		if c.entries[l.key] == nil || !strings.Contains(key, "://") {
			c.entries[l.key] = l
		}
	}
	return c, nil
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// normalise brings the ways to write a registry to one. Docker writes the URL of
// the registry's API.
func normalise(key string) string {
	_, rest, isURL := strings.Cut(key, "://")
	if isURL {
		key = rest
	}
	key = strings.TrimSuffix(key, "/")
	if isURL || strings.HasPrefix(key, "index.docker.io/") {
		key = strings.TrimSuffix(strings.TrimSuffix(key, "/v1"), "/v2")
	}
	host, rest, _ := strings.Cut(key, "/")
	switch host = strings.ToLower(host); host {
	case "index.docker.io", "registry-1.docker.io":
		host = oci.DockerHub
	}
	if rest != "" {
		return host + "/" + rest
	}
	return host
}

// lookup finds the credentials for a repository: its own, or else those of the
// closest namespace above it, or else the registry's; nil if there are none.
func (c *Credentials) lookup(ref oci.Reference) *login {
	if c == nil {
		return nil
	}
	for name := ref.Name(); ; {
		if l, found := c.entries[name]; found {
			return l
		}
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			return nil
		}
		name = name[:i]
	}
}

// Has says whether there are credentials for a repository.
func (c *Credentials) Has(ref oci.Reference) bool { return c.lookup(ref) != nil }
