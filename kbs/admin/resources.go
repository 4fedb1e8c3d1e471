package admin

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/coffer-project/coffer/kbs"
	"github.com/coffer-project/coffer/secret"
)

// SetResource stores a secret, replacing an earlier one.
func (c *Client) SetResource(ctx context.Context, uri kbs.ResourceURI, value secret.Bytes) error {
	_, err := c.PutResource(ctx, uri, value)
	return err
}

// PutResource stores a secret as a new version and returns its number, 0
// where the trustee does not tell.
func (c *Client) PutResource(ctx context.Context, uri kbs.ResourceURI, value secret.Bytes) (int64, error) {
	if value.Len() > kbs.MaxResourceBytes {
		return 0, fmt.Errorf("kbs admin: resource %s has %d bytes, the limit is %d", uri, value.Len(), kbs.MaxResourceBytes)
	}
	path, err := resourcePath(uri)
	if err != nil {
		return 0, err
	}
	a, err := c.do(ctx, call{method: http.MethodPost, path: path, contentType: "application/octet-stream", body: value.Expose()})
	if err != nil {
		return 0, err
	}
	return versionOf(a, HeaderResourceVersion)
}

func versionOf(a *answer, name string) (int64, error) {
	s := a.header.Get(name)
	if s == "" {
		return 0, nil
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || v < 0 {
		return 0, fmt.Errorf("kbs admin: answer's %s: expected a version, got %.32q", name, s)
	}
	return v, nil
}

// DeleteResource removes a secret in all its versions. One that is not there
// is no error.
func (c *Client) DeleteResource(ctx context.Context, uri kbs.ResourceURI) error {
	path, err := resourcePath(uri)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, call{method: http.MethodDelete, path: path})
	return err
}

// resourcePath allows stored secrets only: a plugin's resources are made by
// the plugin.
func resourcePath(uri kbs.ResourceURI) (string, error) {
	if uri.Plugin() != kbs.PluginResource || uri.Query() != "" {
		return "", fmt.Errorf("kbs admin: %q: expected a stored secret, kbs:///repository/type/tag", uri.String())
	}
	return uri.RequestPath(), nil
}

// Resources lists the stored secrets' names.
func (c *Client) Resources(ctx context.Context) ([]kbs.ResourceURI, error) {
	paths, err := list[string](ctx, c, ResourcesPath, nil)
	if err != nil {
		return nil, err
	}
	out := make([]kbs.ResourceURI, len(paths))
	for i, p := range paths {
		uri, err := kbs.ParseResourceURI("kbs:///" + p)
		if err != nil {
			return nil, fmt.Errorf("kbs admin: list of resources: entry %d: %w", i, err)
		}
		out[i] = uri
	}
	return out, nil
}

// ResourceInfos describes the newest versions of the stored secrets below a
// prefix ("", "repository" or "repository/type"), by path.
func (c *Client) ResourceInfos(ctx context.Context, prefix string) ([]ResourceInfo, error) {
	return list[ResourceInfo](ctx, c, ResourcesPath, infoQuery(prefix))
}

// ResourceInfosPage is a part of [Client.ResourceInfos]: at most limit entries
// after the given path, and the path to go on after, "" at the end.
func (c *Client) ResourceInfosPage(ctx context.Context, prefix, after string, limit int) ([]ResourceInfo, string, error) {
	return listPage[ResourceInfo](ctx, c, ResourcesPath, infoQuery(prefix), after, limit)
}

func infoQuery(prefix string) url.Values {
	q := url.Values{"details": {"true"}}
	if prefix != "" {
		q.Set("prefix", prefix)
	}
	return q
}

// ResourceVersions lists the versions of a secret, newest first.
func (c *Client) ResourceVersions(ctx context.Context, uri kbs.ResourceURI) ([]ResourceInfo, error) {
	if _, err := resourcePath(uri); err != nil {
		return nil, err
	}
	return array[ResourceInfo](ctx, c, ResourceVersionsPath+"/"+uri.Path())
}

// PluginRequest is a request to the administration of a plugin.
type PluginRequest struct {
	Plugin, Method string
	// Path is what follows the plugin's name, for example "provision".
	Path  string
	Query url.Values
	Body  []byte
}

// Plugin asks a plugin's administration and returns its answer as it is.
func (c *Client) Plugin(ctx context.Context, r PluginRequest) ([]byte, error) {
	uri, err := kbs.ParseResourceURI("kbs+" + r.Plugin + ":///" + r.Path)
	if err != nil || uri.Query() != "" {
		return nil, fmt.Errorf("kbs admin: plugin %q, path %q: expected a plugin's name and a path without query", r.Plugin, r.Path)
	}
	path := kbs.PathPrefix + "/" + r.Plugin + "/" + strings.TrimPrefix(uri.Path(), "/")
	a, err := c.do(ctx, call{method: r.Method, path: withQuery(path, r.Query), contentType: "application/octet-stream", body: r.Body})
	if err != nil {
		return nil, err
	}
	return a.body, nil
}
