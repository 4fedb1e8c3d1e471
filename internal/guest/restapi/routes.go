package restapi

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/secret"
)

// The original's texts (api-server-rest, router).
const (
	textForbidden     = "Forbidden"
	textNotAllowed    = "Method Not Allowed"
	textBadRequest    = "BAD REQUEST"
	textNotFound      = "URL NOT FOUND"
	textNoAttestation = "Attestation Feature Not Enabled"
	textNoResource    = "Resource Feature Not Enabled"
	textUnsupported   = "The platform does not support runtime measurement"
	textNotEnabled    = "Attestation Agent does not enable eventlog recording"
)

// answer is what a request is answered with. An empty kind is none, as the
// original leaves it out of its texts.
type answer struct {
	status int
	kind   string
	body   secret.Bytes
}

func text(status int, s string) answer { return answer{status: status, body: secret.New([]byte(s))} }

func octets(b secret.Bytes) answer {
	return answer{http.StatusOK, "application/octet-stream", b}
}

// failure is 500 with a sentence, shortened and without control characters.
func failure(err error) answer {
	s := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, err.Error())
	const most = 2 << 10
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return text(http.StatusInternalServerError, s)
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	a := s.inTurn(ctx, r)
	defer a.body.Clear()
	h := w.Header()
	if a.kind == "" {
		h["Content-Type"] = nil // none, rather than a guess
	} else {
		h.Set("Content-Type", a.kind)
	}
	h.Set("Cache-Control", "no-store")
	if r.ContentLength != 0 {
		// Whatever else came with a body is not taken for a request.
		h.Set("Connection", "close")
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body.Expose()) // the container has gone away, if it fails
	s.o.Logger.DebugContext(ctx, "REST API", "method", clip(r.Method), "path", clip(r.URL.EscapedPath()), "status", a.status, "duration", time.Since(start))
}

func clip(s string) string { return fmt.Sprintf("%.256q", s) }

// inTurn waits for the request's turn. Peers are looked at before.
func (s *Server) inTurn(ctx context.Context, r *http.Request) answer {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return text(http.StatusForbidden, textForbidden)
	}
	select {
	case s.turns <- struct{}{}:
		defer func() { <-s.turns }()
	case <-ctx.Done():
		return failure(fmt.Errorf("the guest is busy with %d requests: try again", maxRequests))
	}
	return s.route(ctx, r)
}

// route finds what a path asks for. The path is taken as it was written: what
// is escaped, doubled or climbs is another path than the one it stands for.
func (s *Server) route(ctx context.Context, r *http.Request) answer {
	path := r.URL.EscapedPath()
	if path == "/info" {
		if r.Method != http.MethodGet {
			return text(http.StatusMethodNotAllowed, textNotAllowed)
		}
		return s.info()
	}
	group, rest := cut(path)
	switch {
	case rest == "":
		return text(http.StatusNotFound, textNotFound)
	case group == "/aa" && !s.o.Features.Attestation:
		return text(http.StatusNotFound, textNoAttestation)
	case group == "/cdh" && !s.o.Features.Resource:
		return text(http.StatusNotFound, textNoResource)
	case group == "/aa":
		return s.attestation(ctx, r, rest)
	case group == "/cdh":
		if what, resource := cut(rest); what == "/resource" && resource != "" {
			return octetsOr(s.o.Hub.Resource(ctx, "kbs://"+resource))
		}
	}
	return text(http.StatusNotFound, textNotFound)
}

// cut splits a path before its second slash; rest is "" where there is none.
func cut(path string) (first, rest string) {
	if path == "" {
		return "", ""
	}
	i := strings.IndexByte(path[1:], '/')
	if i < 0 {
		return path, ""
	}
	return path[:i+1], path[i+1:]
}

func octetsOr(value secret.Bytes, err error) answer {
	if err != nil {
		return failure(err)
	}
	return octets(value)
}

// attestation answers below /aa, where another method is another path.
func (s *Server) attestation(ctx context.Context, r *http.Request, path string) answer {
	query := parseQuery(r.URL.RawQuery)
	switch r.Method + " " + path {
	case "GET /token":
		kind, ok := query["token_type"]
		if !ok {
			return text(http.StatusBadRequest, textBadRequest)
		}
		return octetsOr(s.o.Hub.Token(ctx, kind))
	case "GET /evidence", "GET /additional-evidence":
		data, ok := runtimeData(query)
		if !ok {
			return text(http.StatusBadRequest, textBadRequest)
		}
		if s.o.Evidencer == nil {
			return failure(errors.New("this guest has no evidence to give"))
		}
		get := s.o.Evidencer.Evidence
		if path != "/evidence" {
			get = s.o.Evidencer.AdditionalEvidence
		}
		doc, err := get(ctx, data)
		return octetsOr(secret.New(doc), err)
	case "POST /aael":
		return s.record(ctx, r)
	}
	return text(http.StatusNotFound, textNotFound)
}

// parseQuery reads a query as forms are: the last value of a name counts, and
// what is no escape stands for itself.
func parseQuery(raw string) map[string]string {
	out := map[string]string{}
	for pair := range strings.SplitSeq(raw, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		out[unescape(name)] = unescape(value)
	}
	return out
}

func unescape(s string) string {
	u, err := url.QueryUnescape(s)
	if err != nil {
		u = strings.ReplaceAll(s, "+", " ")
	}
	return strings.ToValidUTF8(u, "\uFFFD")
}

// runtimeData is the text of the parameter as it is, or what it stands for in
// unpadded base64url.
func runtimeData(query map[string]string) ([]byte, bool) {
	data, ok := query["runtime_data"]
	if !ok {
		return nil, false
	}
	switch encoding, encoded := query["encoding"]; {
	case !encoded:
		return []byte(data), true
	case encoding != "base64" || strings.ContainsAny(data, "\r\n"):
		return nil, false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(data)
	return b, err == nil
}

// record measures an event. That the platform cannot, or that it is off, is an
// answer and no failure.
func (s *Server) record(ctx context.Context, r *http.Request) answer {
	e, err := parseEvent(r.Body)
	if err != nil {
		return failure(err)
	}
	if s.o.Recorder == nil {
		return recorded(textNotEnabled)
	}
	err = s.o.Recorder.Record(ctx, e.domain, e.operation, e.content)
	switch {
	case err == nil:
		return answer{http.StatusOK, "application/json", secret.New([]byte(`{"success":"true"}`))}
	case errors.Is(err, ErrNotEnabled):
		return recorded(textNotEnabled)
	case errors.Is(err, errors.ErrUnsupported):
		return recorded(textUnsupported)
	}
	return failure(err)
}

// recorded is a 200 that says no, written as in the original.
func recorded(why string) answer {
	return answer{http.StatusOK, "application/json", secret.New([]byte(`{"success":"false","message": "` + why + `"}`))}
}

type event struct{ domain, operation, content string }

// parseEvent reads the three members that are needed; others are ignored, and
// none may be there twice.
func parseEvent(body io.Reader) (event, error) {
	data, err := io.ReadAll(io.LimitReader(body, maxBody+1))
	if err != nil {
		return event{}, errors.New("the event could not be read whole")
	}
	if len(data) > maxBody {
		return event{}, fmt.Errorf("Illegal AAEL event format: more than %d bytes", maxBody)
	}
	var members map[string]json.RawMessage
	if err := strictjson.Decode(data, &members, strictjson.Limits{Bytes: maxBody, Depth: 8}); err != nil {
		return event{}, fmt.Errorf("Illegal AAEL event format: %w", err)
	}
	var e event
	for name, to := range map[string]*string{"domain": &e.domain, "operation": &e.operation, "content": &e.content} {
		raw, ok := members[name]
		if !ok || !bytes.HasPrefix(raw, []byte(`"`)) || json.Unmarshal(raw, to) != nil {
			return event{}, fmt.Errorf("Illegal AAEL event format: member %q: expected a string", name)
		}
	}
	return e, nil
}

// info says what this is. The environment is told to those only who may ask it
// for evidence.
func (s *Server) info() answer {
	doc := struct {
		Version string   `json:"version"`
		TEE     string   `json:"tee,omitempty"`
		Devices []string `json:"additional_tees,omitempty"`
		Feature string   `json:"feature"`
	}{Version: "Guest Components Version: " + s.o.Version, Feature: s.o.Features.String()}
	if s.o.Features.Attestation {
		doc.TEE, doc.Devices = s.o.TEE, s.o.Devices
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return failure(err)
	}
	return answer{http.StatusOK, "application/json", secret.New(b)}
}
