// Package vault keeps resources in the KV v2 engine of an OpenBao or HashiCorp
// Vault server, at MOUNT/data/[PREFIX/]TENANT/REPOSITORY/TYPE/TAG. Versions are
// the engine's own. A deletion destroys all versions and leaves their numbers,
// so that no number names two contents.
//
// The engine keeps 10 versions of a secret unless it is configured otherwise,
// and its storage may take no more than 1 MiB (raft) or 512 KiB (Consul) for a
// secret, of which base64 leaves three quarters.
package vault

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/coffer-project/coffer/internal/trustee/kek/bao"
	"github.com/coffer-project/coffer/internal/trustee/resource"
	"github.com/coffer-project/coffer/internal/trustee/resource/tree"
	"github.com/coffer-project/coffer/internal/trustee/tenant"
	"github.com/coffer-project/coffer/secret"
)

// Server sends requests; [bao.Client] implements it.
type Server interface {
	Do(ctx context.Context, r bao.Request, out any) error
}

// Encoding is how a content stands in its field.
type Encoding string

// The encodings.
const (
	// Base64 is standard base64 with padding; it keeps all contents.
	Base64 Encoding = "base64"
	// Text is the content as it is, for secrets that people write by hand. It
	// keeps UTF-8 only.
	Text Encoding = "text"
)

const (
	// DefaultMaxContent is the protocol's limit.
	DefaultMaxContent = 1 << 20
	maxVersions       = 100_000
	// overtakes is how often a writer tries again that others overtake.
	overtakes = 100
)

// Options of [New].
type Options struct {
	// Mount is where the engine is, "" for "secret".
	Mount string
	// Prefix is a folder for the tenants' folders, "" for none.
	Prefix string
	// Field is the field of a secret that holds the content, "" for "data". Its
	// other fields are ignored, and dropped by a write.
	Field string
	// Encoding is [Base64] where it is empty.
	Encoding Encoding
	// MaxContent is the longest content in bytes, 0 for [DefaultMaxContent].
	MaxContent int
}

// Backend implements [resource.Backend]. It is safe for concurrent use.
type Backend struct {
	o      Options
	server Server
}

// New checks the options; it sends nothing.
func New(server Server, o Options) (*Backend, error) {
	if o.Mount == "" {
		o.Mount = "secret"
	}
	if o.Field == "" {
		o.Field = "data"
	}
	if o.Encoding == "" {
		o.Encoding = Base64
	}
	if o.MaxContent == 0 {
		o.MaxContent = DefaultMaxContent
	}
	if err := bao.CheckPath(o.Mount); err != nil {
		return nil, fmt.Errorf("KV mount: %w", err)
	}
	if o.Prefix != "" {
		if err := bao.CheckPath(o.Prefix); err != nil {
			return nil, fmt.Errorf("KV prefix: %w", err)
		}
		o.Prefix += "/"
	}
	if o.Encoding != Base64 && o.Encoding != Text {
		return nil, fmt.Errorf("KV encoding: expected %q or %q, got %.40q", Base64, Text, string(o.Encoding))
	}
	if len(o.Field) > 128 || o.MaxContent < 1 {
		return nil, fmt.Errorf("KV: expected a field name of at most 128 bytes and contents of at least 1 byte, got %d and %d", len(o.Field), o.MaxContent)
	}
	return &Backend{o, server}, nil
}

// path is MOUNT/KIND/…, where kind is one of the engine's: data, metadata,
// destroy. Neither tenant nor path is taken on trust.
func (b *Backend) path(kind string, t tenant.Name, p resource.Path) (string, error) {
	if _, err := tenant.Parse(string(t)); err != nil {
		return "", err
	}
	if _, err := resource.Parse(p.String()); err != nil {
		return "", err
	}
	return b.o.Mount + "/" + kind + "/" + b.o.Prefix + string(t) + "/" + p.String(), nil
}

// Put implements [resource.Backend]. Each write names the version that it
// follows, and is repeated when another was faster. After [resource.ErrUnavailable]
// the version may have been stored or not.
func (b *Backend) Put(ctx context.Context, t tenant.Name, p resource.Path, content secret.Bytes) (int64, error) {
	path, err := b.path("data", t, p)
	if err != nil {
		return 0, err
	}
	if content.Len() > b.o.MaxContent {
		return 0, fmt.Errorf("resource %s: expected at most %d bytes, got %d", p, b.o.MaxContent, content.Len())
	}
	value := base64.StdEncoding.EncodeToString(content.Expose())
	if b.o.Encoding == Text {
		if !utf8.Valid(content.Expose()) {
			return 0, fmt.Errorf("resource %s: expected UTF-8, since the backend keeps contents as text", p)
		}
		value = string(content.Expose())
	}
	for range overtakes {
		m, err := b.metadata(ctx, t, p)
		if err != nil && !errors.Is(err, bao.ErrNotFound) {
			return 0, wrap("put", p.String(), err)
		}
		var made version
		err = b.server.Do(ctx, bao.Request{Method: http.MethodPost, Path: path, Body: map[string]any{
			"options": map[string]int64{"cas": m.CurrentVersion},
			"data":    map[string]string{b.o.Field: value},
		}}, &made)
		if overtaken(err) {
			continue
		}
		if err == nil && made.Version <= m.CurrentVersion {
			err = fmt.Errorf("expected a version above %d, got %d", m.CurrentVersion, made.Version)
		}
		if err != nil {
			return 0, wrap("put", p.String(), err)
		}
		return made.Version, nil
	}
	return 0, wrap("put", p.String(), fmt.Errorf("%w: other writers were faster %d times", resource.ErrUnavailable, overtakes))
}

// overtaken: the engine's words for a version that is not the current one (KV v2
// API, "check-and-set parameter did not match the current version").
func overtaken(err error) bool {
	e, ok := errors.AsType[*bao.Error](err)
	return ok && e.Status == http.StatusBadRequest &&
		slices.ContainsFunc(e.Messages, func(m string) bool { return strings.Contains(m, "did not match the current version") })
}

// Get implements [resource.Backend].
func (b *Backend) Get(ctx context.Context, t tenant.Name, p resource.Path, number int64) (secret.Bytes, int64, error) {
	path, err := b.path("data", t, p)
	if err != nil {
		return secret.Bytes{}, 0, err
	}
	if number < 0 || number > 1<<53 {
		return secret.Bytes{}, 0, resource.ErrNotFound
	}
	var query url.Values
	if number > 0 {
		query = url.Values{"version": {strconv.FormatInt(number, 10)}}
	}
	var out struct {
		Data     map[string]any `json:"data"`
		Metadata version        `json:"metadata"`
	}
	if err := b.server.Do(ctx, bao.Request{Method: http.MethodGet, Path: path, Query: query, Repeat: true}, &out); err != nil {
		return secret.Bytes{}, 0, wrap("get", p.String(), err)
	}
	if out.Metadata.Version < 1 || number > 0 && out.Metadata.Version != number || out.Metadata.gone() {
		return secret.Bytes{}, 0, wrap("get", p.String(), fmt.Errorf("asked for version %d (0: the newest), the server answers with version %d", number, out.Metadata.Version))
	}
	content, err := b.content(out.Data[b.o.Field])
	if err != nil {
		return secret.Bytes{}, 0, wrap("get", p.String(), fmt.Errorf("field %q of version %d: %w", b.o.Field, out.Metadata.Version, err))
	}
	return content, out.Metadata.Version, nil
}

// content decodes a field. Its errors do not quote it.
func (b *Backend) content(field any) (secret.Bytes, error) {
	var content []byte
	switch v := field.(type) {
	case string:
		content = []byte(v)
		if b.o.Encoding == Base64 {
			var err error
			if content, err = base64.StdEncoding.Strict().DecodeString(v); err != nil {
				return secret.Bytes{}, errors.New("expected standard base64; contents that were written as plain text need the encoding \"text\"")
			}
		}
	case []any:
		// The reference implementation writes bytes as numbers.
		content = make([]byte, len(v))
		for i, x := range v {
			n, ok := x.(float64)
			if !ok || n != float64(byte(n)) {
				return secret.Bytes{}, fmt.Errorf("element %d: expected a number of 0 to 255", i)
			}
			content[i] = byte(n)
		}
	default:
		return secret.Bytes{}, fmt.Errorf("expected a string, got %T", field)
	}
	if len(content) > b.o.MaxContent {
		return secret.Bytes{}, fmt.Errorf("expected at most %d bytes, got %d", b.o.MaxContent, len(content))
	}
	return secret.New(content), nil
}

// Delete implements [resource.Backend].
func (b *Backend) Delete(ctx context.Context, t tenant.Name, p resource.Path) (bool, error) {
	path, err := b.path("destroy", t, p)
	if err != nil {
		return false, err
	}
	m, err := b.metadata(ctx, t, p)
	if errors.Is(err, bao.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, wrap("delete", p.String(), err)
	}
	numbers, err := m.numbers()
	if err != nil {
		return false, wrap("delete", p.String(), err)
	}
	was := slices.ContainsFunc(numbers, func(n int64) bool { return !m.at(n).gone() })
	numbers = slices.DeleteFunc(numbers, func(n int64) bool { return m.at(n).Destroyed })
	if len(numbers) == 0 {
		return false, nil
	}
	// Destroying twice is no error: it may be repeated.
	err = b.server.Do(ctx, bao.Request{Method: http.MethodPost, Path: path, Body: map[string][]int64{"versions": numbers}, Repeat: true}, nil)
	if err != nil {
		return false, wrap("delete", p.String(), err)
	}
	return was, nil
}

// Versions implements [resource.Backend].
func (b *Backend) Versions(ctx context.Context, t tenant.Name, p resource.Path) ([]resource.Info, error) {
	m, err := b.metadata(ctx, t, p)
	if err != nil {
		return nil, wrap("list versions of", p.String(), err)
	}
	numbers, err := m.numbers()
	if err != nil {
		return nil, wrap("list versions of", p.String(), err)
	}
	out := []resource.Info{}
	for _, n := range numbers {
		v := m.at(n)
		out = append(out, resource.Info{Path: p.String(), Version: n, Size: -1, Created: v.Created, Deleted: v.gone()})
	}
	return out, nil
}

// List implements [resource.Backend]. It asks for each resource's metadata: ask
// for short pages.
func (b *Backend) List(ctx context.Context, t tenant.Name, prefix, after string, limit int) ([]resource.Info, error) {
	if _, err := tenant.Parse(string(t)); err != nil {
		return nil, err
	}
	out := []resource.Info{}
	if limit < 1 {
		return out, nil
	}
	err := tree.Walk(ctx, func(ctx context.Context, folder string) ([]string, error) { return b.names(ctx, t, folder) }, prefix, after, func(p resource.Path) (bool, error) {
		m, err := b.metadata(ctx, t, p)
		if errors.Is(err, bao.ErrNotFound) {
			return true, nil // removed meanwhile
		}
		if err != nil {
			return false, err
		}
		if v := m.at(m.CurrentVersion); m.CurrentVersion > 0 && !v.Created.IsZero() && !v.gone() {
			out = append(out, resource.Info{Path: p.String(), Version: m.CurrentVersion, Size: -1, Created: v.Created})
		}
		return len(out) < limit, nil
	})
	if err != nil {
		return nil, wrap("list", prefix, err)
	}
	return out, nil
}

// names lists a folder. Folders end in a slash: a secret may have the name of
// one.
func (b *Backend) names(ctx context.Context, t tenant.Name, folder string) ([]string, error) {
	path := b.o.Mount + "/metadata/" + b.o.Prefix + string(t)
	leaf := strings.Contains(folder, "/")
	if folder != "" {
		path += "/" + folder
	}
	var out struct {
		Keys []string `json:"keys"`
	}
	err := b.server.Do(ctx, bao.Request{Method: http.MethodGet, Path: path, Query: url.Values{"list": {"true"}}, Repeat: true}, &out)
	if errors.Is(err, bao.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if out.Keys == nil {
		return nil, fmt.Errorf("list %s: expected keys in the answer, got none", path)
	}
	var names []string
	for _, k := range out.Keys {
		name, isFolder := strings.CutSuffix(k, "/")
		if isFolder != leaf {
			names = append(names, name)
		}
	}
	return names, nil
}

func wrap(what, name string, err error) error {
	switch {
	case errors.Is(err, bao.ErrNotFound):
		return resource.ErrNotFound
	case errors.Is(err, bao.ErrUnavailable) && !errors.Is(err, resource.ErrUnavailable):
		err = fmt.Errorf("%w: %w", resource.ErrUnavailable, err)
	}
	return fmt.Errorf("KV engine: %s %s: %w", what, name, err)
}
