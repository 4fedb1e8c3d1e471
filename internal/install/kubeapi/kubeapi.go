// Package kubeapi talks to the Kubernetes API for the node's DaemonSet: it sets
// labels of the node, posts events of pods, and looks whether the DaemonSet is
// still wanted. It knows no more of the API than that, so that the image stays
// small.
package kubeapi

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// serviceAccount is where the kubelet puts a pod's credentials.
	serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"
	requestTimeout = 30 * time.Second
	maxAnswer      = 4 << 20
	maxToken       = 64 << 10
)

// Errors that callers tell apart.
var (
	ErrNotFound     = errors.New("not found")
	ErrUnauthorized = errors.New("the API server does not know this service account")
	ErrForbidden    = errors.New("this service account may not do that")
	ErrExists       = errors.New("it exists already")
	ErrInvalid      = errors.New("the API server does not take this object")
)

// Client is one API server. It may be used by several goroutines at once.
type Client struct {
	base  *url.URL
	http  *http.Client
	token func() (string, error)
}

// InCluster is the API server of the cluster that this program runs in, with the
// pod's service account.
func InCluster() (*Client, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, errors.New("kubernetes API: KUBERNETES_SERVICE_HOST and _PORT are not set: expected to run in a pod")
	}
	return New("https://"+net.JoinHostPort(host, port), serviceAccount)
}

// New is the API server at an address, with the credentials in a directory: token,
// which is read again for each request, and ca.crt.
func New(address, dir string) (*Client, error) {
	base, err := url.Parse(address)
	if err != nil || base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("kubernetes API: expected https://HOST:PORT, got %q", address)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("kubernetes API: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("kubernetes API: %s/ca.crt: expected PEM certificates", dir)
	}
	return &Client{
		base: base,
		http: &http.Client{Timeout: requestTimeout, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true}},
		token: func() (string, error) {
			f, err := os.Open(filepath.Join(dir, "token"))
			if err != nil {
				return "", err
			}
			defer f.Close() //nolint:errcheck // only read
			data, err := io.ReadAll(io.LimitReader(f, maxToken))
			return strings.TrimSpace(string(data)), err
		},
	}, nil
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do sends a request and decodes a JSON answer into out, which may be nil.
func (c *Client) do(ctx context.Context, method, path, contentType string, body, out any) error {
	var r io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base.JoinPath(path).String(), r)
	if err != nil {
		return err
	}
	token, err := c.token()
	if err != nil {
		return fmt.Errorf("service account token: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Accept", "application/json")
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("kubernetes API: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("kubernetes API: %s %s: %w", method, path, err)
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("kubernetes API: %s %s: %w", method, path, failure(resp.StatusCode, data))
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("kubernetes API: %s %s: %w", method, path, err)
	}
	return nil
}

// failure is what the server said why not.
func failure(code int, data []byte) error {
	var status struct {
		Message string `json:"message"`
	}
	_ = json.Unmarshal(data, &status) // or there is no message
	said := fmt.Errorf("%d %s: %.300q", code, http.StatusText(code), status.Message)
	switch code {
	case http.StatusNotFound:
		return errors.Join(ErrNotFound, said)
	case http.StatusUnauthorized:
		return errors.Join(ErrUnauthorized, said)
	case http.StatusForbidden:
		return errors.Join(ErrForbidden, said)
	case http.StatusConflict:
		return errors.Join(ErrExists, said)
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return errors.Join(ErrInvalid, said)
	}
	return said
}

// Label sets labels of a node, and removes those of remove that are not set.
func (c *Client) Label(ctx context.Context, node string, set map[string]string, remove []string) error {
	labels := make(map[string]*string)
	for _, name := range remove {
		labels[name] = nil // null removes
	}
	for name, value := range set {
		labels[name] = &value
	}
	patch := map[string]any{"metadata": map[string]any{"labels": labels}}
	return c.do(ctx, http.MethodPatch, "/api/v1/nodes/"+url.PathEscape(node), "application/strategic-merge-patch+json", patch, nil)
}

func daemonSet(namespace, name string) string {
	return "/apis/apps/v1/namespaces/" + url.PathEscape(namespace) + "/daemonsets/" + url.PathEscape(name)
}

// Wanted says whether a DaemonSet is there and not being deleted.
func (c *Client) Wanted(ctx context.Context, namespace, name string) (bool, error) {
	var set struct {
		Metadata struct {
			DeletionTimestamp *string `json:"deletionTimestamp"`
		} `json:"metadata"`
	}
	err := c.do(ctx, http.MethodGet, daemonSet(namespace, name), "", nil, &set)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil && set.Metadata.DeletionTimestamp == nil, err
}

// Delete deletes a DaemonSet and waits until it and its pods are gone.
func (c *Client) Delete(ctx context.Context, namespace, name string, every time.Duration) error {
	body := map[string]any{"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
	err := c.do(ctx, http.MethodDelete, daemonSet(namespace, name), "application/json", body, nil)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	for {
		err := c.do(ctx, http.MethodGet, daemonSet(namespace, name), "", nil, nil)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("daemonset %s/%s: its pods are not gone yet: %w", namespace, name, ctx.Err())
		case <-time.After(every):
		}
	}
}
