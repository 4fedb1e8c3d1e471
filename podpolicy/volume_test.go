package podpolicy_test

import (
	"testing"

	"github.com/coffer-project/coffer/podpolicy"
)

func TestHolds(t *testing.T) {
	t.Parallel()
	v := podpolicy.Volume{
		Kind: podpolicy.VolumeFiles, Pinned: map[string]string{"app.conf": "", "a/b/c": ""}, Sealed: map[string]string{"sealed/s": ""},
		Resources: map[string]string{"tls.key": ""}, Host: &podpolicy.HostFiles{Names: []string{"host/h", "token"}},
	}
	for subPath, want := range map[string]bool{
		"app.conf": true, "a": true, "a/b": true, "a/b/c": true, "sealed": true, "sealed/s": true, "tls.key": true, "host": true, "host/h": true, "token": true,
		"": false, ".": false, "app": false, "app.conf/x": false, "a/": false, "/a": false, "a/../a": false, "a/b/c/d": false, "..": false, "..data": false,
		"..data/app.conf": false, "other": false, "tok": false,
	} {
		if got := v.Holds(subPath); got != want {
			t.Errorf("%q: %t, want %t", subPath, got, want)
		}
	}
	for _, kind := range []podpolicy.VolumeKind{podpolicy.VolumeEphemeral, podpolicy.VolumeBlock} {
		v.Kind = kind
		if v.Holds("a") {
			t.Errorf("a volume of kind %s has no files of the policy", kind)
		}
	}
}

// TestFilesMountedAlone: one file of a volume is mounted where the policy says,
// and no other.
func TestFilesMountedAlone(t *testing.T) {
	t.Parallel()
	p := webPolicy(t)
	p.Volumes["empty"] = podpolicy.Volume{Kind: podpolicy.VolumeFiles}
	w := web(p)
	w.Mounts[1].SubPath = "app.conf"
	w.Mounts = append(w.Mounts, podpolicy.Mount{Path: "/empty", Volume: "empty", ReadOnly: true})
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	w.Mounts[2].SubPath = "x"
	if err := p.Validate(); err == nil {
		t.Error("a file of an empty volume was accepted")
	}
}

// Files are run only where somebody has said that they may be: the owner by a
// mode, or the host of a pod that is its own.
func TestExecutableFiles(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		volume podpolicy.Volume
		want   bool
	}{
		"default":       {podpolicy.Volume{}, false},
		"mode":          {podpolicy.Volume{Mode: "0755"}, true},
		"one file":      {podpolicy.Volume{Modes: map[string]string{"run.sh": "0510"}}, true},
		"no file":       {podpolicy.Volume{Mode: "0600", Modes: map[string]string{"run.sh": "0440"}}, false},
		"the host's":    {podpolicy.Volume{Host: &podpolicy.HostFiles{Names: []string{"a"}, MaxBytes: 1, Mode: "0701"}}, true},
		"host, default": {podpolicy.Volume{Host: &podpolicy.HostFiles{Names: []string{"a"}, MaxBytes: 1}}, false},
	} {
		p := simplePolicy()
		tt.volume.Kind = podpolicy.VolumeFiles
		if tt.volume.Host == nil {
			tt.volume.Pinned = map[string]string{"run.sh": webDigest}
		}
		p.Volumes = map[string]podpolicy.Volume{"v": tt.volume}
		p.Containers[0].Mounts = []podpolicy.Mount{{Path: "/v", Volume: "v", ReadOnly: true}}
		if v := must[podpolicy.VolumeConfig](t)(podpolicy.NewGuard(p).Volume("v")); v.Executable != tt.want {
			t.Errorf("%s: %v, want %v", name, v.Executable, tt.want)
		}
	}
	g := unsealedGuard(t)
	must[*podpolicy.FilesUpdate](t)(g.PutFiles("v", 1))
	if v := must[podpolicy.VolumeConfig](t)(g.Volume("v")); !v.Executable {
		t.Error("an unsealed pod")
	}
}
