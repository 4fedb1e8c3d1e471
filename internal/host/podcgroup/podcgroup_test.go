package podcgroup

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	podDir  = "/kubepods/burstable/pod1"
	podPath = podDir + "/box"
	self1   = "9:name=systemd:/containerd\n4:memory:/containerd\n3:cpuset:/containerd\n2:cpu,cpuacct:/containerd\n1:pids:/containerd\n0::/elsewhere\n"
	self2   = "0::/containerd\n"
)

func TestParse(t *testing.T) {
	long := strings.Repeat("a", maxName)
	for in, want := range map[string]string{
		"/kubepods/burstable/pod1/id": "/kubepods/burstable/pod1/id",
		"/default/one":                "/default/one",
		"default/one":                 "/default/one",
		"/a:b:c/d":                    "/a:b:c/d",
		"/" + long:                    "/" + long,
		"kubepods-burstable-pod1_2.slice:cri-containerd:id": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-id.scope",
		"-.slice:crio:id": "/crio-id.scope",
		":crio:id":        "/system.slice/crio-id.scope",
		"a.slice::id":     "/a.slice/id.scope",
	} {
		if got, err := Parse(in); err != nil || got != want {
			t.Errorf("%q: expected %q, got %q, %v", in, want, got, err)
		}
	}
	for _, in := range []string{
		"", "/", "//", "/a/../b", "/a//b", "/a/./b", "..", "/..", "a.slice:b:", "a:b:c", "a--b.slice:x:y", "-a.slice:x:y", "a-.slice:x:y", ".slice:x:y",
		"..-a.slice:x:y", "/a\n", "/a\x00b", "/\xff", "/" + long + "a", strings.Repeat("/a", maxPath), "a.slice:b:" + long,
	} {
		if got, err := Parse(in); err == nil {
			t.Errorf("%.40q: expected an error, got %q", in, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("/kubepods/pod1/id")
	f.Add("kubepods-pod1.slice:cri-containerd:id")
	f.Fuzz(func(t *testing.T, in string) {
		p, err := Parse(in)
		if err != nil {
			return
		}
		if again, err := Parse(p); err != nil || again != p || strings.Contains(p+"/", "/../") || p[0] != '/' || len(p) < 2 {
			t.Errorf("%q: %q, then %q, %v", in, p, again, err)
		}
	})
}

// version runs a test with both versions.
func versions(t *testing.T, pod string, test func(t *testing.T, k *kernel, self map[string]string, leaf string)) {
	t.Run("version 1", func(t *testing.T) {
		test(t, newKernel(pod, "cpu,cpuacct", "cpuset", "memory", "pids", "systemd"), self(t, self1), "")
	})
	t.Run("version 2", func(t *testing.T) { test(t, newKernel(pod), self(t, self2), "/"+leafHost) })
}

func TestEnterAndLeave(t *testing.T) {
	versions(t, podDir[1:], func(t *testing.T, k *kernel, self map[string]string, leaf string) {
		before, was := k.groups(), k.where()
		var made, warnings []string
		g, err := enter(k, self, Options{
			Path: podPath,
			Note: func(m []string) error {
				if k.groups() != before {
					t.Error("told after something was made")
				}
				made = m
				return nil
			},
			Warn: func(m string) { warnings = append(warnings, m) },
		})
		if err != nil {
			t.Fatal(err)
		}
		for in := range strings.SplitSeq(k.where(), " ") {
			if !strings.HasSuffix(in, podPath+leaf) && in != podPath[1:]+leaf {
				t.Errorf("the process is in %s", in)
			}
		}
		if n := len(k.procs); n != len(g.trees) || !slices.Equal(made, []string{podPath}) || len(warnings) > 0 || g.Path() != podPath {
			t.Errorf("%d groups have it of %d, noted %q, warnings %q", n, len(g.trees), made, warnings)
		}
		if k.dirs["cpuset"] && k.files["cpuset"+podPath+"/cpuset.cpus"] != "2" {
			t.Errorf("its processors are %q", k.files["cpuset"+podPath+"/cpuset.cpus"])
		}
		if want := map[string]string{"": "", "/" + leafHost: podPath + "/" + leafContainers}[leaf]; g.Containers() != want {
			t.Errorf("containers in %q, expected %q", g.Containers(), want)
		}
		// A group for containers is removed with ours.
		if c := g.Containers(); c != "" {
			k.all(c[1:] + "/c-1")
		}
		for range 2 {
			if err := g.Leave(); err != nil || k.where() != was {
				t.Fatalf("after leaving: %v, in %s", err, k.where())
			}
		}
		for range 2 {
			if err := g.Remove(); err != nil || k.groups() != before || !k.closed {
				t.Fatalf("after removal: %v\nhave %s\nhad  %s", err, k.groups(), before)
			}
		}
	})
}

// TestWithoutParents: what `ctr run` names is made with all above it, and goes.
func TestWithoutParents(t *testing.T) {
	versions(t, "", func(t *testing.T, k *kernel, self map[string]string, _ string) {
		before := k.groups()
		g, err := enter(k, self, Options{Path: "/default/deep/one"})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"/default/deep/one", "/default/deep", "/default"}, g.made); diff != "" {
			t.Errorf("made (-want +got):\n%s", diff)
		}
		// Another one has come meanwhile.
		other := g.trees[0].at("/default/other")
		if err := k.Mkdir(other); err != nil {
			t.Fatal(err)
		}
		if err := g.Remove(); err != nil || !k.dirs[other] || strings.Contains(k.groups(), "deep") {
			t.Errorf("%v: %s", err, k.groups())
		}
		_ = k.Rmdir(other)
		if err := remove(k, g.trees, g.made); err != nil || k.groups() != before {
			t.Errorf("%v\nhave %s\nhad  %s", err, k.groups(), before)
		}
	})
}

func TestMissingControllers(t *testing.T) {
	k := newKernel(podDir[1:], "cpu", "memory", "cpuset")
	k.dirs["pids"] = true
	k.populate("pids") // where the pod has no group
	var warning string
	g, err := enter(k, self(t, self1), Options{Path: podPath, Warn: func(m string) { warning += m }})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(warning, " in pids:") || strings.Contains(k.where(), "pids") {
		t.Errorf("warning %q, in %s", warning, k.where())
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
}

func TestRefused(t *testing.T) {
	versions(t, podDir[1:], func(t *testing.T, k *kernel, self map[string]string, _ string) {
		before, was := k.groups(), k.where()
		for _, tt := range []struct{ path, want string }{
			{"/kubepods", "that others use"},
			{"/containerd", "that others use"},
			{"/kubepods/../x", "linux.cgroupsPath"},
		} {
			if _, err := enter(k, self, Options{Path: tt.path}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v", tt.path, err)
			}
		}
		no := errors.New("no")
		if _, err := enter(k, self, Options{Path: podPath, Note: func([]string) error { return no }}); !errors.Is(err, no) {
			t.Errorf("note: %v", err)
		}
		if k.groups() != before || k.where() != was {
			t.Errorf("left %s, in %s", k.groups(), k.where())
		}
	})
	if _, err := enter(&kernel{dirs: map[string]bool{".": true}}, nil, Options{Path: podPath}); err == nil || !strings.Contains(err.Error(), "mounted") {
		t.Errorf("without hierarchies: %v", err)
	}
}

// TestJoinFails: the process goes back, and the groups that were made go.
func TestJoinFails(t *testing.T) {
	versions(t, podDir[1:], func(t *testing.T, k *kernel, self map[string]string, leaf string) {
		before, was := k.groups(), k.where()
		k.fail = "pids" + podPath + "/" + procsFile
		if leaf != "" {
			k.fail = podPath[1:] + leaf + "/" + procsFile
		}
		if _, err := enter(k, self, Options{Path: podPath}); err == nil || !strings.Contains(err.Error(), "invalid argument") {
			t.Errorf("got %v", err)
		}
		if k.groups() != before || k.where() != was {
			t.Errorf("left %s, in %s", k.groups(), k.where())
		}
	})
}

// TestOriginGone: where the process came from is gone.
func TestOriginGone(t *testing.T) {
	versions(t, podDir[1:], func(t *testing.T, k *kernel, self map[string]string, _ string) {
		g, err := enter(k, self, Options{Path: podPath})
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range g.trees {
			if err := k.Rmdir(h.at("/containerd")); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.Remove(); err != nil {
			t.Fatal(err)
		}
		for _, h := range g.trees {
			if !k.procs[h.at("/")] {
				t.Errorf("%s: it is in %s", h.name(), k.where())
			}
		}
	})
}

func TestMemory(t *testing.T) {
	versions(t, podDir[1:], func(t *testing.T, k *kernel, self map[string]string, leaf string) {
		limit, refused, kills := "memory"+podDir+"/memory.limit_in_bytes", "memory"+podDir+"/memory.failcnt", "memory"+podPath+"/memory.oom_control"
		if leaf != "" {
			limit, refused, kills = podDir[1:]+"/memory.max", podDir[1:]+"/memory.events", podPath[1:]+"/memory.events"
			k.files[refused] = "oom 7\noom_kill 9\n"
		} else {
			k.files[refused] = "7\n"
		}
		g, err := enter(k, self, Options{Path: podPath})
		if err != nil {
			t.Fatal(err)
		}
		check := func(wantLimit int64, wantKilled, wantOwn bool) {
			t.Helper()
			killed, own := g.OutOfMemory()
			if g.Limit() != wantLimit || killed != wantKilled || own != wantOwn {
				t.Errorf("limit %d, killed %v, own %v", g.Limit(), killed, own)
			}
		}
		check(0, false, false)
		k.files[limit] = "268435456\n"
		check(256<<20, false, false)
		k.files[kills] = "low 0\noom_kill 1\n"
		check(256<<20, true, false) // of the node
		k.files[refused] = map[bool]string{false: "8\n", true: "oom 8\noom_kill 10\n"}[leaf != ""]
		check(256<<20, true, true)
		if leaf != "" {
			// The pod's group does not pass the controller on.
			delete(k.files, kills)
			check(256<<20, true, true)
		}
		for _, bad := range []string{"", "x", "-1", "99999999999999999999"} {
			k.files[limit] = bad
			check(0, true, false)
		}
		if err := g.Remove(); err != nil {
			t.Fatal(err)
		}
		check(0, false, false)
	})
}

func TestRemoveRefusesPaths(t *testing.T) {
	k := newKernel(podDir[1:], "memory")
	all, err := hierarchies(k, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"/", "", "a", "/a/../b", "a.slice:b:c"} {
		if err := remove(k, all, []string{p}); err == nil || !strings.Contains(err.Error(), "expected a clean absolute path") {
			t.Errorf("%q: %v", p, err)
		}
	}
	if err := remove(k, all, []string{podPath, "/none"}); err != nil {
		t.Errorf("what is not there: %v", err)
	}
	k.all("memory" + podPath)
	k.procs["memory"+podPath] = true
	if err := remove(k, all, []string{podPath}); err == nil || !strings.Contains(err.Error(), "still has processes") {
		t.Errorf("a group with a process: %v", err)
	}
}
