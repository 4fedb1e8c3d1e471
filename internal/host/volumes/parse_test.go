package volumes

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/coffer-project/coffer/internal/agentapi"
)

func TestParsePlace(t *testing.T) {
	t.Parallel()
	for rel, want := range map[string]place{
		"etc-hosts":                             {kind: placeHosts},
		"containers/app/5f3a":                   {kind: placeContainer, container: "app"},
		"volume-subpaths/config/app/12":         {kind: placeSubPath, volume: "config", container: "app"},
		"volumes/kubernetes.io~secret/tls":      {kind: placeVolume, plugin: pluginSecret, volume: "tls"},
		"volumes/kubernetes.io~csi/pvc-1/mount": {kind: placeVolume, plugin: "kubernetes.io~csi", volume: "pvc-1", rest: "mount"},
	} {
		if got, err := parsePlace(rel); err != nil || got != want {
			t.Errorf("%s: %+v, %v", rel, got, err)
		}
	}
	for _, rel := range []string{
		"", ".", "..", "../x", "/etc-hosts", "volumes", "volumes/x", "containers/app", "containers/app/a/b", "volume-subpaths/v/c", "volume-subpaths/v/c/x",
		"volume-subpaths/v/c/1/2", "volumes/a/b/../c", "volumes//a", "etc-hosts/x", "volumes/a/" + strings.Repeat("n", 300), "volumes/a/b\x00",
	} {
		if got, err := parsePlace(rel); err == nil {
			t.Errorf("%q: %+v", rel, got)
		}
	}
}

func TestGuestName(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ plugin, volume, want string }{
		{pluginProjected, "kube-api-access-x2b9q", "kube-api-access"},
		{pluginProjected, "kube-api-access-admin", "kube-api-access-admin"}, // not a generated name
		{pluginProjected, "kube-api-access-x2b9", "kube-api-access-x2b9"},
		{pluginConfigMap, "kube-api-access-x2b9q", "kube-api-access-x2b9q"},
		{pluginProjected, "kube-api-access", "kube-api-access"},
		{pluginEmptyDir, "scratch", "scratch"},
	} {
		if got := guestName(place{plugin: tt.plugin, volume: tt.volume}); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.volume, got, tt.want)
		}
	}
}

func TestParseMounts(t *testing.T) {
	t.Parallel()
	const text = `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
37 35 0:29 / /var/lib/kubelet/pods/u/volumes/a\040b\134c rw shared:5 master:6 - tmpfs tmpfs rw,size=8192k
38 35 8:1 /pods/u/..1/key//deleted /x rw - ext4 /dev/sda1 rw
`
	got, err := parseMounts(strings.NewReader(text))
	want := []mount{
		{device: "98:0", root: "/mnt1", point: "/mnt2", fsType: "ext3"},
		{device: "0:29", root: "/", point: `/var/lib/kubelet/pods/u/volumes/a b\c`, fsType: "tmpfs"},
		{device: "8:1", root: "/pods/u/..1/key//deleted", point: "/x", fsType: "ext4"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(mount{})); err != nil || diff != "" {
		t.Error(err, diff)
	}
	for _, bad := range []string{"x", "1 2 3:4 / /x rw", "1 2 3:4 / /x - ext4 a b", "1 2 3:4 / x rw - ext4 a b", "1 2 3:4 / /x rw -  ", strings.Repeat("x", maxMountLine+1)} {
		if got, err := parseMounts(strings.NewReader(bad)); err == nil {
			t.Errorf("%.40q: %v", bad, got)
		}
	}
}

func TestWithin(t *testing.T) {
	t.Parallel()
	of := mount{device: "8:1", root: "/@", point: "/var", fsType: "ext4"}
	for _, tt := range []struct {
		root, device, want string
		ok                 bool
	}{
		{"/@/lib/v/a/b", "8:1", "a/b", true}, {"/@/lib/v", "8:1", ".", true}, {"/@/lib/v/..1/k//deleted", "8:1", "..1/k", true},
		{"/@/lib/vv", "8:1", "", false}, {"/@/lib", "8:1", "", false}, {"/lib/v/a", "8:1", "", false}, {"/@/lib/v/a", "8:2", "", false},
	} {
		if got, ok := within(mount{device: tt.device, root: tt.root}, of, "/var/lib/v"); got != tt.want || ok != tt.ok {
			t.Errorf("%s: %q, %t", tt.root, got, ok)
		}
	}
}

func TestParseHosts(t *testing.T) {
	t.Parallel()
	names := strings.Fields(strings.Repeat("n ", 20))
	got, err := parseHosts("1.1.1.1 before\n# Entries added by HostAliases.\n10.0.0.1\ta\tb # why\n\nfe80::1 c\n::ffff:1.2.3.4 " + strings.Join(names, " "))
	want := []*agentapi.HostEntry{{Address: "10.0.0.1", Names: []string{"a", "b"}}, {Address: "fe80::1", Names: []string{"c"}},
		{Address: "::ffff:1.2.3.4", Names: names[:16]}, {Address: "::ffff:1.2.3.4", Names: names[16:]}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if got, err := parseHosts("127.0.0.1 localhost\n"); len(got) != 0 || err != nil {
		t.Error(got, err)
	}
	for _, bad := range []string{"# Entries added by HostAliases.\nhost name", "# Entries added by HostAliases.\n" + strings.Repeat("1.2.3.4 n\n", 300)} {
		if _, err := parseHosts(bad); err == nil {
			t.Errorf("%.40q", bad)
		}
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add(`36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw`)
	f.Add(`1 2 3:4 / / rw - x`)
	f.Fuzz(func(t *testing.T, line string) {
		m, err := parseMount(line)
		if err != nil {
			return
		}
		if !filepath.IsAbs(m.point) || m.root == "" || m.fsType == "" {
			t.Errorf("%q: %+v", line, m)
		}
		if part, ok := within(m, mount{device: m.device, root: "/", point: "/"}, m.point); ok && !filepath.IsLocal(part) {
			t.Errorf("%q: a part outside: %q", line, part)
		}
		mountOf([]mount{m}, filepath.Clean(m.point))
	})
}

func FuzzParsePlace(f *testing.F) {
	f.Add("volumes/kubernetes.io~configmap/config")
	f.Add("volume-subpaths/config/app/0")
	f.Add("containers/app/1")
	f.Fuzz(func(t *testing.T, rel string) {
		p, err := parsePlace(rel)
		if (p == place{}) != (err != nil) {
			t.Errorf("%q: %+v, %v", rel, p, err)
		}
		for _, part := range []string{p.plugin, p.volume, p.container} {
			if strings.Contains(part, "/") || part == ".." || part == "." || len(part) > maxName+2 {
				t.Errorf("%q: %+v", rel, p)
			}
		}
		if name := guestName(p); isLabel(p.volume) != isLabel(name) && name != tokenPrefix {
			t.Errorf("%q: %q", rel, name)
		}
		if part, err := inVersion(rel); err == nil && part != "" && checkName(part) != nil {
			t.Errorf("%q: part %q", rel, part)
		}
	})
}

func FuzzParseHosts(f *testing.F) {
	f.Add("127.0.0.1 a\n# Entries added by HostAliases.\n10.0.0.1\ta\tb\n")
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := parseHosts(text)
		if err != nil {
			return
		}
		for _, e := range entries {
			if len(entries) > maxHosts || len(e.GetNames()) == 0 || len(e.GetNames()) > maxHostNames {
				t.Errorf("%q: %v", text, entries)
			}
		}
	})
}

func FuzzParseNames(f *testing.F) {
	f.Add("pvc-1=data, /dev/xvda=log")
	f.Fuzz(func(t *testing.T, text string) {
		names, err := parseNames(text)
		for key, name := range names {
			if err == nil && (key == "" || !isLabel(name)) {
				t.Errorf("%q: %v", text, names)
			}
		}
	})
}
