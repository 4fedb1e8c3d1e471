package program

import (
	"bytes"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/initdata/guestconfig"
	"github.com/coffer-project/coffer/internal/guest/agent"
	"github.com/coffer-project/coffer/oci"
	"github.com/coffer-project/coffer/oci/registries"
	"github.com/coffer-project/coffer/secret"
)

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"coffer-agent", 2, "Usage:"},
		{"coffer-agent version", 0, Version},
		{"coffer-agent serve", 2, "--unix is required"},
		{"coffer-agent serve --unix /nonexistent/s", 2, "say --development"},
		{"coffer-agent serve --unix /nonexistent/s --development extra", 2, "unexpected argument"},
		{"coffer-agent serve --nonsense", 2, "nonsense"},
		{"coffer-agent serve --unix /nonexistent/s --fd 3 --development", 2, "exclude each other"},
		{"coffer-agent serve --fd 3", 2, "say --development"},
		{"coffer-agent serve --fd 3 --development --own-namespaces", 2, "first process"},
		{"coffer-agent serve --fd 3 --development --cgroup ../x", 2, "absolute path"},
		{"coffer-agent serve --fd 9999 --development", 1, "inherited socket"},
		{"coffer-agent unknown", 2, "Usage:"},
	} {
		var out bytes.Buffer
		if code := Main(strings.Fields(tt.args), &out, &out); code != tt.code || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%s: status %d, %q; want %d, %q", tt.args, code, out.String(), tt.code, tt.want)
		}
	}
}

func TestNewFetcher(t *testing.T) {
	t.Parallel()
	ref, err := oci.ParseReference("host.coffer.internal:5000/test/image")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]agent.RegistryConfig{
		"plain":    {},
		"unsealed": {Unsealed: true},
		"insecure": {Image: guestconfig.Image{Registries: &registries.Config{Registries: []registries.Registry{{Location: "registry.example:5000/shop", Insecure: true}}}}},
		"login":    {Credentials: secret.New([]byte(`{"auths":{"registry.example":{"auth":"dXNlcjpwYXNz"}}}`))},
	} {
		_, closeFetcher, err := newFetcher(c, ref)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		closeFetcher()
	}
	if _, _, err := newFetcher(agent.RegistryConfig{Credentials: secret.New([]byte("pass"))}, ref); err == nil || strings.Contains(err.Error(), "pass") {
		t.Errorf("bad credentials: %v", err)
	}
}
