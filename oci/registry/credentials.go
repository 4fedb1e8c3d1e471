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

// Credentials are users and passwords by registry, namespace or repository. A
// nil *Credentials has none.
type Credentials struct {
	entries map[string]login
}

type login struct {
	user     string
	password secret.Bytes
}

// ParseCredentials reads a Docker or containers-auth.json file. Credential
// helpers and identity tokens are refused: no guest can run or refresh them.
// Errors name the entry and never hold its value.
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
	c := &Credentials{entries: make(map[string]login, len(auths))}
	for _, key := range slices.Sorted(maps.Keys(auths)) {
		a := auths[key]
		if a.IdentityToken != "" || a.RegistryToken != "" {
			return nil, fmt.Errorf("registry credentials: auths[%q]: tokens are not supported; expected a user and a password", key)
		}
		l := login{user: a.Username, password: secret.New([]byte(a.Password))}
		if a.Auth != "" {
			plain, err := base64.StdEncoding.DecodeString(a.Auth)
			if err != nil {
				return nil, fmt.Errorf("registry credentials: auths[%q].auth: expected base64", key)
			}
			user, password, found := strings.Cut(strings.TrimRight(string(plain), "\x00"), ":")
			if !found {
				return nil, fmt.Errorf("registry credentials: auths[%q].auth: expected base64 of USER:PASSWORD, there is no colon", key)
			}
			l = login{user: user, password: secret.New([]byte(password))}
		}
		if l.user == "" && l.password.Len() == 0 {
			continue // what "docker login" leaves behind when a helper has the password
		}
		c.entries[normalise(key)] = l
	}
	return c, nil
}

// normalise brings the ways to write a registry to one.
func normalise(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimSuffix(key, "/")
	for _, version := range []string{"/v1", "/v2"} {
		key = strings.TrimSuffix(key, version)
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

// Lookup finds the credentials for a repository: its own, or else those of the
// closest namespace above it, or else the registry's.
func (c *Credentials) Lookup(ref oci.Reference) (user string, password secret.Bytes, ok bool) {
	if c == nil {
		return "", secret.Bytes{}, false
	}
	for name := ref.Name(); ; {
		if l, found := c.entries[name]; found {
			return l.user, l.password, true
		}
		i := strings.LastIndexByte(name, '/')
		if i < 0 {
			return "", secret.Bytes{}, false
		}
		name = name[:i]
	}
}
