// Package baotest is a stand-in for an OpenBao or HashiCorp Vault server: the
// KV v2 and transit engines, AppRole and tokens, modelled on the documented HTTP
// API. It is no such server: neither can be built from published Go modules
// (that of Vault needs an SDK that is not published, that of OpenBao's server is
// not to be had). What tests with it show is that we keep to the documented API,
// also when the answers are late, wrong or missing. Its answers were compared
// with those of the published engines, vault-plugin-secrets-kv 0.25.0 and Vault
// 1.21.4's transit; [Real] runs tests against a whole server.
package baotest

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Root is a token that may do everything and does not expire.
const Root = "root-token-of-the-test"

// The AppRole that the server knows.
const (
	RoleID   = "role-1"
	SecretID = "secret-id-1"
)

// Variables that name a real server for tests: its address, and a file with a
// token that may use the KV v2 engine at secret and the transit engine at
// transit.
const (
	AddressVariable = "COFFER_OPENBAO_ADDRESS"
	TokenVariable   = "COFFER_OPENBAO_TOKEN_FILE"
)

// Real returns a real server's address and token file, or skips the test.
func Real(tb testing.TB) (address, tokenFile string) {
	tb.Helper()
	address, tokenFile = os.Getenv(AddressVariable), os.Getenv(TokenVariable)
	if address == "" || tokenFile == "" {
		tb.Skipf("no OpenBao or Vault server: %s and %s name none", AddressVariable, TokenVariable)
	}
	return address, tokenFile
}

// Server is safe for concurrent use.
type Server struct {
	*httptest.Server

	mu     sync.Mutex
	tokens map[string]time.Time // expiry, zero for none
	// Lease is what logins and renewals give out.
	lease   time.Duration
	secrets map[string]*entry
	keys    map[string]key
	fault   func(http.ResponseWriter, *http.Request) bool
	log     []string
	logins  int
	max     int
}

type entry struct {
	current  int
	versions map[int]*version
}

type version struct {
	data      json.RawMessage
	created   time.Time
	deleted   string
	destroyed bool
}

type key struct {
	kind string
	aead cipher.AEAD
}

// New starts a server; its KV engine is at secret, its transit engine at
// transit.
func New(tb testing.TB) *Server {
	s := &Server{tokens: map[string]time.Time{Root: {}}, lease: time.Hour, secrets: map[string]*entry{}, keys: map[string]key{}, max: 10}
	s.Server = httptest.NewServer(s)
	tb.Cleanup(s.Close)
	return s
}

// SetFault sees each request first, and answers it where it returns true.
func (s *Server) SetFault(f func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// SetLease changes what logins give out.
func (s *Server) SetLease(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lease = d
}

// AddToken makes a token valid, Revoke makes it invalid.
func (s *Server) AddToken(t string) { s.with(func() { s.tokens[t] = time.Time{} }) }

// Revoke makes tokens invalid; none: all but Root.
func (s *Server) Revoke(tokens ...string) {
	s.with(func() {
		for t := range s.tokens {
			if len(tokens) == 0 && t != Root || slices.Contains(tokens, t) {
				delete(s.tokens, t)
			}
		}
	})
}

// AddKey makes a transit key of a type.
func (s *Server) AddKey(name, kind string) {
	s.with(func() { s.addKey(name, kind) })
}

func (s *Server) addKey(name, kind string) {
	seed := make([]byte, 32)
	copy(seed, fmt.Sprintf("%d-%s", len(s.keys), name))
	block, err := aes.NewCipher(seed)
	if err == nil {
		var aead cipher.AEAD
		if aead, err = cipher.NewGCMWithRandomNonce(block); err == nil {
			s.keys[name] = key{kind, aead}
		}
	}
	if err != nil {
		panic(err)
	}
}

// Set writes fields as another program would.
func (s *Server) Set(path, data string) {
	s.with(func() { s.write(path, json.RawMessage(data)) })
}

// Reset forgets all secrets.
func (s *Server) Reset() { s.with(func() { s.secrets = map[string]*entry{} }) }

// Requests returns "METHOD path" of all requests so far, and the logins.
func (s *Server) Requests() (log []string, logins int) {
	s.with(func() { log, logins = slices.Clone(s.log), s.logins })
	return log, logins
}

func (s *Server) with(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// Fail answers as the server does with an error.
func Fail(w http.ResponseWriter, status int, messages ...string) {
	if messages == nil {
		messages = []string{}
	}
	reply(w, status, map[string]any{"errors": messages})
}

func data(w http.ResponseWriter, d any) {
	reply(w, http.StatusOK, map[string]any{"request_id": "x", "lease_id": "", "renewable": false, "lease_duration": 0, "data": d, "warnings": nil})
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.log = append(s.log, r.Method+" "+r.URL.Path)
	fault := s.fault
	s.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	var body map[string]json.RawMessage
	if r.Body != nil && r.ContentLength != 0 {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			Fail(w, http.StatusBadRequest, "error parsing JSON")
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	path, ok := strings.CutPrefix(r.URL.Path, "/v1/")
	if !ok || r.Header.Get("X-Vault-Request") != "true" {
		Fail(w, http.StatusNotFound)
		return
	}
	if path == "auth/approle/login" {
		s.login(w, body)
		return
	}
	token := r.Header.Get("X-Vault-Token")
	expires, ok := s.tokens[token]
	if !ok || !expires.IsZero() && time.Now().After(expires) {
		Fail(w, http.StatusForbidden, "permission denied", "invalid token")
		return
	}
	switch first, rest, _ := strings.Cut(path, "/"); {
	case path == "auth/token/renew-self":
		if expires.IsZero() {
			Fail(w, http.StatusBadRequest, "lease is not renewable")
			return
		}
		s.give(w, token)
	case first == "secret":
		s.kv(w, r, rest, body)
	case first == "transit":
		s.transit(w, r, rest, body)
	default:
		Fail(w, http.StatusNotFound, fmt.Sprintf("no handler for route %q. route entry not found.", path))
	}
}

func text(m json.RawMessage) string {
	var s string
	_ = json.Unmarshal(m, &s)
	return s
}

func (s *Server) login(w http.ResponseWriter, body map[string]json.RawMessage) {
	s.logins++
	if text(body["role_id"]) != RoleID || text(body["secret_id"]) != SecretID {
		Fail(w, http.StatusBadRequest, "invalid role or secret ID")
		return
	}
	s.give(w, fmt.Sprintf("login-%d", s.logins))
}

func (s *Server) give(w http.ResponseWriter, token string) {
	s.tokens[token] = time.Now().Add(s.lease)
	reply(w, http.StatusOK, map[string]any{"data": nil, "auth": map[string]any{
		"client_token": token, "lease_duration": int(s.lease / time.Second), "renewable": true, "policies": []string{"coffer"},
	}})
}

func (s *Server) write(path string, d json.RawMessage) *version {
	e := s.secrets[path]
	if e == nil {
		e = &entry{versions: map[int]*version{}}
		s.secrets[path] = e
	}
	e.current++
	v := &version{data: d, created: time.Now().UTC()}
	e.versions[e.current] = v
	delete(e.versions, e.current-s.max)
	return v
}

func (v *version) meta(n int) map[string]any {
	return map[string]any{"created_time": v.created.Format(time.RFC3339Nano), "custom_metadata": nil, "deletion_time": v.deleted, "destroyed": v.destroyed, "version": n}
}

func (s *Server) kv(w http.ResponseWriter, r *http.Request, rest string, body map[string]json.RawMessage) {
	kind, path, _ := strings.Cut(rest, "/")
	e := s.secrets[path]
	switch {
	case kind == "metadata" && r.URL.Query().Get("list") == "true":
		s.list(w, strings.TrimSuffix(path, "/")+"/")
	case kind == "data" && r.Method != http.MethodGet:
		var options struct {
			CAS *int `json:"cas"`
		}
		_ = json.Unmarshal(body["options"], &options)
		current := 0
		if e != nil {
			current = e.current
		}
		if options.CAS == nil || *options.CAS != current {
			Fail(w, http.StatusBadRequest, "check-and-set parameter did not match the current version")
			return
		}
		v := s.write(path, body["data"])
		data(w, v.meta(current+1))
	case e == nil:
		Fail(w, http.StatusNotFound)
	case kind == "data":
		n := e.current
		if q := r.URL.Query().Get("version"); q != "" && q != "0" {
			n, _ = strconv.Atoi(q)
		}
		v := e.versions[n]
		switch {
		case v == nil:
			Fail(w, http.StatusNotFound)
		case v.destroyed || v.deleted != "":
			reply(w, http.StatusNotFound, map[string]any{"data": map[string]any{"data": nil, "metadata": v.meta(n)}})
		default:
			data(w, map[string]any{"data": v.data, "metadata": v.meta(n)})
		}
	case kind == "metadata":
		versions := map[string]any{}
		for n, v := range e.versions {
			m := v.meta(n)
			delete(m, "version")
			versions[strconv.Itoa(n)] = m
		}
		data(w, map[string]any{"current_version": e.current, "oldest_version": max(0, e.current-s.max), "max_versions": 0, "cas_required": false, "versions": versions})
	case kind == "destroy" || kind == "delete":
		var numbers []int
		_ = json.Unmarshal(body["versions"], &numbers)
		for _, n := range numbers {
			if v := e.versions[n]; v != nil && kind == "destroy" {
				v.destroyed, v.data = true, nil
			} else if v != nil {
				v.deleted = time.Now().UTC().Format(time.RFC3339Nano)
			}
		}
		w.WriteHeader(http.StatusNoContent)
	default:
		Fail(w, http.StatusMethodNotAllowed, "unsupported operation")
	}
}

func (s *Server) list(w http.ResponseWriter, folder string) {
	keys := []string{}
	for path := range s.secrets {
		if rest, ok := strings.CutPrefix(path, folder); ok {
			name, _, isFolder := strings.Cut(rest, "/")
			if isFolder {
				name += "/"
			}
			keys = append(keys, name)
		}
	}
	if len(keys) == 0 {
		Fail(w, http.StatusNotFound)
		return
	}
	slices.Sort(keys)
	data(w, map[string]any{"keys": slices.Compact(keys)})
}

func (s *Server) transit(w http.ResponseWriter, r *http.Request, rest string, body map[string]json.RawMessage) {
	op, name, _ := strings.Cut(rest, "/")
	k, ok := s.keys[name]
	aad, err := base64.StdEncoding.DecodeString(text(body["associated_data"]))
	if err != nil {
		Fail(w, http.StatusBadRequest, "failed to base64-decode associated_data")
		return
	}
	switch {
	case op == "keys" && r.Method == http.MethodGet && ok:
		data(w, map[string]any{"type": k.kind, "derived": false, "exportable": false, "name": name, "latest_version": 1})
	case op == "keys":
		Fail(w, http.StatusNotFound)
	case op == "encrypt":
		if !ok { // as the engine does where the policy allows to create
			s.addKey(name, "aes256-gcm96")
			k = s.keys[name]
		}
		plain, err := base64.StdEncoding.DecodeString(text(body["plaintext"]))
		if err != nil {
			Fail(w, http.StatusBadRequest, "failed to base64-decode plaintext")
			return
		}
		data(w, map[string]any{"ciphertext": "vault:v1:" + base64.StdEncoding.EncodeToString(k.aead.Seal(nil, nil, plain, aad)), "key_version": 1})
	case op == "decrypt" && ok:
		raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text(body["ciphertext"]), "vault:v1:"))
		if err == nil {
			raw, err = k.aead.Open(nil, nil, raw, aad)
		}
		if err != nil {
			Fail(w, http.StatusBadRequest, "cipher: message authentication failed")
			return
		}
		data(w, map[string]any{"plaintext": base64.StdEncoding.EncodeToString(raw)})
	default:
		Fail(w, http.StatusBadRequest, "encryption key not found")
	}
}
