// Package lookaside finds the signatures of simple signing: OpenPGP messages
// beside the registry, at BASE/REPOSITORY@sha256=HEX/signature-1, -2 and so on,
// where a configuration ([ParseConfig], containers-registries.d(5)) says what
// BASE is; and in registries that keep them themselves
// (X-Registry-Supports-Signatures). What is found is not trusted.
package lookaside

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/signature/openpgp"
)

// MaxSignatures is how many signatures of one manifest are read; those after
// them do not count.
const MaxSignatures = 64

// Registry asks a registry by HTTP, with the credentials for it.
type Registry interface {
	// Get sends GET for a path of the API, such as /v2/, to the registry of
	// ref. The caller closes the body. A status other than 2xx is an error, 404
	// one that wraps oci.ErrNotFound.
	Get(ctx context.Context, ref oci.Reference, path string) (http.Header, io.ReadCloser, error)
}

// Options say where signatures may be.
type Options struct {
	// Config names the places by scope; nil names none.
	Config *Config
	// Client fetches what is stored behind http:// and https://. It decides
	// about roots, proxies and time-outs, and should follow no redirects to
	// other hosts. Without it such places are refused.
	Client *http.Client
	// Files is the root that file:/// means. Without it such places are
	// refused: a guest has none.
	Files *os.Root
	// Registry is asked for signatures that it keeps itself; may be nil.
	Registry Registry
}

// Store finds signatures. It implements signature.Lookaside and may be used by
// several goroutines at once.
type Store struct{ o Options }

// New checks that every place in the configuration can be reached at all.
func New(o Options) (*Store, error) {
	schemes := o.Config.schemes()
	if schemes["file"] && o.Files == nil {
		return nil, errors.New("sigstore configuration: file:// places are not supported here: there are no other files than measured ones; serve them over https")
	}
	if (schemes["http"] || schemes["https"]) && o.Client == nil {
		return nil, errors.New("sigstore configuration: https:// places are not supported here: there is no HTTP client")
	}
	return &Store{o}, nil
}

// Signatures implements signature.Lookaside. A place that fails is an error,
// and what was found elsewhere is returned with it.
func (s *Store) Signatures(ctx context.Context, ref oci.Reference, digest oci.Digest) ([][]byte, error) {
	var out [][]byte
	var problems []error
	if place := s.o.Config.place(ref, digest); place != nil {
		found, err := s.stored(ctx, place)
		out = append(out, found...)
		if err != nil {
			problems = append(problems, fmt.Errorf("lookaside %s: %w", place.Redacted(), err))
		}
	}
	if s.o.Registry != nil {
		found, err := s.kept(ctx, ref, digest)
		out = append(out, found...)
		if err != nil {
			problems = append(problems, fmt.Errorf("registry %s: signatures: %w", ref.Registry, err))
		}
	}
	return out[:min(len(out), MaxSignatures)], errors.Join(problems...)
}

// stored reads signature-1, signature-2, … until one is missing.
func (s *Store) stored(ctx context.Context, place *url.URL) ([][]byte, error) {
	var out [][]byte
	for len(out) < MaxSignatures {
		u := *place
		u.Path += "/signature-" + strconv.Itoa(len(out)+1)
		data, err := s.read(ctx, &u)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return out, err
		}
		out = append(out, data)
	}
	return out, nil
}

func (s *Store) read(ctx context.Context, u *url.URL) ([]byte, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if u.Scheme == "file" {
		f, err := s.o.Files.Open(strings.TrimPrefix(u.Path, "/"))
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		return bounded(f, openpgp.MaxMessage)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.o.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	switch resp.StatusCode {
	case http.StatusOK:
		return bounded(resp.Body, openpgp.MaxMessage)
	case http.StatusNotFound:
		return nil, fs.ErrNotExist
	default:
		return nil, fmt.Errorf("expected status 200 or 404, got %s", resp.Status)
	}
}

// bounded reads all of r, at most limit bytes.
func bounded(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("a signature has more than %d bytes", limit)
	}
	return data, nil
}

// The registry's extension (openshift/image-registry, "Registry extension for
// signatures"; containers/image, docker/docker_client.go).
const (
	extensionHeader = "X-Registry-Supports-Signatures"
	signatureType   = "atomic"
	maxList         = 4 << 20
)

type signatureList struct {
	Signatures []struct {
		Version int    `json:"schemaVersion"`
		Name    string `json:"name"`
		Type    string `json:"type"`
		Content []byte `json:"content"`
	} `json:"signatures"`
}

// kept asks a registry that says it keeps signatures.
func (s *Store) kept(ctx context.Context, ref oci.Reference, digest oci.Digest) ([][]byte, error) {
	header, body, err := s.o.Registry.Get(ctx, ref, "/v2/")
	if err != nil {
		return nil, err
	}
	_ = body.Close()
	if header.Get(extensionHeader) != "1" {
		return nil, nil
	}
	_, body, err = s.o.Registry.Get(ctx, ref, "/extensions/v2/"+ref.Repository+"/signatures/"+string(digest))
	if errors.Is(err, oci.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	data, err := bounded(body, maxList)
	if err != nil {
		return nil, err
	}
	var list signatureList
	if err := strictjson.Decode(data, &list, strictjson.Limits{Bytes: maxList, Depth: 4}); err != nil {
		return nil, err
	}
	var out [][]byte
	for _, sig := range list.Signatures {
		if sig.Version == 2 && sig.Type == signatureType && len(sig.Content) <= openpgp.MaxMessage && len(out) < MaxSignatures {
			out = append(out, sig.Content)
		}
	}
	return out, nil
}
