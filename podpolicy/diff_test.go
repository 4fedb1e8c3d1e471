package podpolicy_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coffer-project/coffer/podpolicy"
)

func TestDiffOfEqualMeaningIsEmpty(t *testing.T) {
	t.Parallel()
	a, b := webPolicy(t), webPolicy(t)
	w := web(b)
	w.Role, w.Seccomp = "", ""
	slices.Reverse(w.Allow.Exec)
	slices.Reverse(w.Mounts)
	b.Containers = []podpolicy.Container{*w, b.Containers[0], b.Containers[1]} // the order of app containers means nothing
	before := must[[]byte](t)(b.Canonical())
	if d := podpolicy.Diff(a, b); len(d) != 0 {
		t.Errorf("got %v", d)
	}
	if diff := cmp.Diff(string(before), string(must[[]byte](t)(b.Canonical()))); diff != "" {
		t.Errorf("Diff has changed its argument: %s", diff)
	}
	if d := podpolicy.Diff(nil, nil); len(d) != 0 {
		t.Errorf("got %v", d)
	}
	if d := podpolicy.Diff(nil, a); len(d) < 30 || d[0].Old != "" {
		t.Errorf("got %v", d)
	}
}

func TestDiffNamesEveryChange(t *testing.T) {
	t.Parallel()
	a, b := webPolicy(t), webPolicy(t)
	w := web(b)
	w.Image.Digest = otherDigest
	w.Args = append(w.Args, "-v")
	w.Env["MODE"] = podpolicy.Literal("test")
	w.Env["NEW"] = podpolicy.EnvValue{Expand: "$(MODE)"}
	delete(w.Env, "RELEASE")
	w.Allow.Exec = w.Allow.Exec[1:]
	w.Allow.Signals = append(w.Allow.Signals, "SIGUSR1")
	w.Allow.Copy.To = []string{"/data"}
	w.Mounts[0].ReadOnly = true
	w.User.Groups = nil
	w.Limits.Memory.Bytes *= 2
	b.Containers[0], b.Containers[1] = b.Containers[1], b.Containers[0]
	delete(b.Volumes, "db")
	b.Network.DNS = podpolicy.DNS{Servers: []string{"10.0.0.1"}}
	want := []string{
		`containers: ["migrate","mesh"] is now ["mesh","migrate"]`,
		`containers.web.allow.copy.to["/data"]: added "/data"`,
		`containers.web.allow.exec["[\"/bin/sh\"]"].args: removed ["/bin/sh"]`,
		`containers.web.allow.exec["[\"/bin/sh\"]"].output: removed true`,
		`containers.web.allow.exec["[\"/bin/sh\"]"].stdin: removed true`,
		`containers.web.allow.exec["[\"/bin/sh\"]"].terminal: removed true`,
		`containers.web.allow.signals.SIGUSR1: added "SIGUSR1"`,
		`containers.web.args: ["/web","--port=8080"] is now ["/web","--port=8080","-v"]`,
		`containers.web.env.MODE.value: "prod" is now "test"`,
		`containers.web.env.NEW.expand: added "$(MODE)"`,
		`containers.web.env.RELEASE.match: removed "r-*"`,
		`containers.web.image.digest: "` + webDigest + `" is now "` + otherDigest + `"`,
		`containers.web.limits.memory: "512Mi" is now "1Gi"`,
		`containers.web.mounts["/data"].readOnly: added true`,
		`containers.web.user.groups.2000: removed 2000`,
		`network.dns.host: removed "dns"`,
		`network.dns.servers: added ["10.0.0.1"]`,
		`volumes.db.filesystem: removed "ext4"`,
		`volumes.db.key: removed "kbs:///shop/db/disk-key"`,
		`volumes.db.kind: removed "block"`,
	}
	var got []string
	for _, d := range podpolicy.Diff(a, b) {
		got = append(got, d.String())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestDescribe goes through every leaf of a policy that uses everything: each
// has a fact at its path or above it.
func TestDescribe(t *testing.T) {
	t.Parallel()
	p := everythingPolicy(t)
	facts := map[string]podpolicy.FactKind{}
	for _, s := range podpolicy.Describe(p) {
		if s.Title == "" || len(s.Facts) == 0 {
			t.Errorf("section %q is empty", s.Title)
		}
		for _, f := range s.Facts {
			facts[f.Path] = f.Kind
			if !strings.HasSuffix(f.Text, ".") || strings.ContainsAny(f.Text, "\n%") || f.Kind == "" {
				t.Errorf("fact %+v", f)
			}
		}
	}
	for _, d := range podpolicy.Diff(nil, p) {
		if slices.Contains([]string{"apiVersion", "kind"}, d.Path) || strings.HasSuffix(d.Path, ".name") && strings.HasPrefix(d.Path, "containers.") {
			continue
		}
		if d.New == "false" || strings.HasSuffix(d.Path, "mode") || strings.Contains(d.Path, ".modes") || d.New == `"default"` || strings.HasSuffix(d.Path, "noNewPrivileges") {
			continue // what is not there, and what needs no words
		}
		covered := false
		for at := range facts {
			covered = covered || at != "" && (d.Path == at || strings.HasPrefix(d.Path, at+".") || strings.HasPrefix(d.Path, at+"["))
		}
		// A file system is part of the sentence about the volume.
		if !covered && !strings.HasSuffix(d.Path, ".filesystem") && !strings.HasSuffix(d.Path, ".kind") && !strings.HasSuffix(d.Path, ".medium") && !strings.HasSuffix(d.Path, ".size") {
			t.Errorf("nothing is said about %s", d)
		}
	}
	for path, kind := range map[string]podpolicy.FactKind{
		"pod.name": podpolicy.FactOpen, "containers.web.env.POD_IP": podpolicy.FactOpen, "containers.web.env.KEY": podpolicy.FactSecret,
		"containers.web.args": podpolicy.FactFixed, "containers.web.allow.logs": podpolicy.FactAllowed, "volumes.token.host": podpolicy.FactOpen,
		"volumes.db.key": podpolicy.FactSecret, "network.dns": podpolicy.FactOpen, `containers.web.allow.exec["[\"/bin/sh\"]"]`: podpolicy.FactWarning,
		"containers.debug.role": podpolicy.FactFixed,
	} {
		if facts[path] != kind {
			t.Errorf("%s is %q, want %q", path, facts[path], kind)
		}
	}
}
