package guestconfig

import (
	"strings"
)

// Credential is one [[credentials]] entry of cdh.toml: the resource that takes
// the place of a credential file of a key management service. The guest never
// writes the file; the provider is given the resource.
type Credential struct {
	// Path is the file as the guest components name it, one of
	//
	//	…/kms-credential/aws/credential.json
	//	…/kms-credential/aliyun/PrivateKmsCA_<instance>.pem
	//	…/kms-credential/aliyun/password_<key>.json
	//	…/kms-credential/aliyun/clientKey_<key>.json
	//
	// below /run/confidential-containers/cdh/kbs.
	Path string
	// URI is the resource with its content.
	URI string
}

// CredentialDir is where the guest components keep credentials of key
// management services (guest-components, kms plug-ins).
const CredentialDir = "/run/confidential-containers/cdh/kbs/kms-credential/"

// maxCredentials bounds the list.
const maxCredentials = 64

func parseCredentials(t *table) []Credential {
	entries := t.tables("credentials")
	if n := len(entries); n > maxCredentials {
		t.r.fail(t.where("credentials"), "has %d entries, the limit is %d", n, maxCredentials)
		entries = nil
	}
	var out []Credential
	seen := map[string]bool{}
	for _, e := range entries {
		c := Credential{Path: e.str("path"), URI: e.resource("resource_uri")}
		e.done()
		if !credentialPath(c.Path) {
			t.r.fail(e.where("path"), "expected %saws/credential.json or a file of %saliyun/ (PrivateKmsCA_X.pem, password_X.json, clientKey_X.json), got %q: "+
				"credentials are given to key management services from memory, and there are no other files of them", CredentialDir, CredentialDir, clip(c.Path))
		}
		if c.URI == "" {
			t.r.fail(e.where("resource_uri"), "is missing")
		}
		if seen[c.Path] {
			t.r.fail(e.where("path"), "%q occurs twice", clip(c.Path))
		}
		seen[c.Path] = true
		out = append(out, c)
	}
	return out
}

// credentialPath tells whether a path is one that a provider looks for.
func credentialPath(path string) bool {
	name, ok := strings.CutPrefix(path, CredentialDir)
	if !ok || len(path) > maxLocation {
		return false
	}
	if name == "aws/credential.json" {
		return true
	}
	if name, ok = strings.CutPrefix(name, "aliyun/"); !ok {
		return false
	}
	for prefix, suffix := range map[string]string{"PrivateKmsCA_": ".pem", "password_": ".json", "clientKey_": ".json"} {
		id, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		if id, ok = strings.CutSuffix(id, suffix); ok && CheckCredentialID(id) {
			return true
		}
	}
	return false
}

// CheckCredentialID tells whether s can be the id in a credential's name:
// letters, digits, dots, dashes and underscores, not beginning with a dot.
func CheckCredentialID(s string) bool {
	return s != "" && len(s) <= 128 && s[0] != '.' && strings.TrimLeft(s, idBytes) == ""
}

const idBytes = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
