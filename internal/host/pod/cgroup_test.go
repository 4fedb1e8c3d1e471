package pod

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/coffer-project/coffer/internal/host/runtimeconfig"
	"github.com/coffer-project/coffer/internal/host/vmm"
)

// fakeCgroup counts itself as what is there, and as "inside" while this program
// is in it.
type fakeCgroup struct {
	w           *world
	limit       int64
	killed, own bool
	in, there   bool
}

func (g *fakeCgroup) Containers() string        { return "/pod/containers" }
func (g *fakeCgroup) Limit() int64              { return g.limit }
func (g *fakeCgroup) OutOfMemory() (bool, bool) { return g.killed, g.own }

func (g *fakeCgroup) Leave() error {
	if g.in {
		g.w.count("inside", -1)
	}
	g.in = false
	return nil
}

func (g *fakeCgroup) Remove() error {
	_ = g.Leave()
	if g.there {
		g.w.count("cgroup", -1)
	}
	g.there = false
	return nil
}

// enter is Options.Cgroup.
func (g *fakeCgroup) enter(path string, note func([]string) error, _ func(string)) (Cgroup, error) {
	if path != "/pod/box" {
		return nil, errors.New("the path is " + path)
	}
	if err := note([]string{path}); err != nil {
		return nil, err
	}
	g.w.count("inside", 1)
	g.w.count("cgroup", 1)
	g.in, g.there = true, true
	return g, nil
}

// TestCgroup: the program is in the group before the machine is, and out of it
// before anybody is told that the pod has ended.
func TestCgroup(t *testing.T) {
	w, c := newWorld(), config(t)
	g := &fakeCgroup{w: w, limit: 1087 << 20}
	o := w.options(c)
	o.Cgroup = g.enter
	p := New(o)
	s := aSandbox()
	s.Cgroup = "/pod/box"
	if err := p.Boot(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if got := w.left(); !slices.Equal(got, []string{"cgroup", "forward", "inside", "machine", "network", "volumes"}) {
		t.Errorf("there is %q", got)
	}
	if !slices.ContainsFunc(w.warnings, func(s string) bool { return strings.Contains(s, "at most 1087 MiB") }) {
		t.Errorf("a limit that is hardly enough: warnings %q", w.warnings)
	}
	last := w.traces[len(w.traces)-1]
	if w.plan.Cgroup != "/pod/containers" || len(w.traces) != 3 || w.traces[0].NetNS != "" || !slices.Equal(last.Cgroups, []string{"/pod/box"}) || last.NetNS == "" || last.PID == 0 {
		t.Errorf("plan %+v, noted %+v", w.plan, w.traces)
	}
	w.machine.die(&vmm.End{Name: "pod-1", Cause: vmm.PoweredOff})
	<-p.Done()
	if got := w.left(); !slices.Equal(got, []string{"cgroup", "forward", "network", "volumes"}) {
		t.Errorf("when the pod has ended there is %q", got)
	}
	if err := p.Close(t.Context()); err != nil || len(w.left()) > 0 {
		t.Errorf("%v, left %q", err, w.left())
	}
}

// TestWithoutCgroup: a person is told.
func TestWithoutCgroup(t *testing.T) {
	w, c := newWorld(), config(t)
	o := w.options(c)
	o.Cgroup = (&fakeCgroup{w: w}).enter
	p := New(o)
	if err := p.Boot(t.Context(), aSandbox()); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(w.warnings, func(s string) bool { return strings.Contains(s, "no control group") }) {
		t.Errorf("warnings %q", w.warnings)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestCgroupRefused: what the group cannot hold is not started.
func TestCgroupRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		path, want string
		limit      int64
		driver     string
	}{
		"path":    {"/other", "the path is /other", 0, runtimeconfig.DriverQEMU},
		"limit":   {"/pod/box", "at most 1023 MiB, and its machine has 1024 MiB", 1023 << 20, runtimeconfig.DriverQEMU},
		"process": {"/pod/box", "", 1 << 20, runtimeconfig.DriverProcess},
	} {
		t.Run(name, func(t *testing.T) {
			w, c := newWorld(), config(t)
			c.Driver = tt.driver
			o := w.options(c)
			o.Cgroup = (&fakeCgroup{w: w, limit: tt.limit}).enter
			s := aSandbox()
			s.Cgroup = tt.path
			p := New(o)
			err := p.Boot(t.Context(), s)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || w.plan != nil) {
				t.Errorf("got %v, started %v", err, w.plan != nil)
			}
			if err := p.Close(t.Context()); err != nil || len(w.left()) > 0 {
				t.Errorf("%v, left %q", err, w.left())
			}
		})
	}
}

// TestKilledForMemory: a machine that the kernel kills for the pod's limit is
// told as that, with what to do.
func TestKilledForMemory(t *testing.T) {
	for name, tt := range map[string]struct {
		detail      string
		killed, own bool
		want        string
	}{
		"limit":         {"signal: killed", true, true, "out of memory of the pod's control group (1088 MiB for the guest, the emulator and the shim); raise overhead.podFixed.memory"},
		"node":          {"signal: killed", true, false, "the node, or a control group above the pod's, was out of memory"},
		"by hand":       {"signal: killed", false, true, "virtual machine pod-1: "},
		"another end":   {"exit status 1", true, true, "virtual machine pod-1: "},
		"the annotated": {"signal: killed", true, true, "or lower the annotation coffer-project.io/memory"},
	} {
		t.Run(name, func(t *testing.T) {
			w, c := newWorld(), config(t)
			o := w.options(c)
			o.Cgroup = (&fakeCgroup{w: w, limit: 1088 << 20, killed: tt.killed, own: tt.own}).enter
			s := aSandbox()
			s.Cgroup = "/pod/box"
			if name == "the annotated" {
				s.Annotations["coffer-project.io/memory"] = "700"
			}
			p := New(o)
			if err := p.Boot(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			if slices.ContainsFunc(w.warnings, func(s string) bool { return strings.Contains(s, "control group") }) {
				t.Errorf("warnings %q", w.warnings)
			}
			end := &vmm.End{Name: "pod-1", Cause: vmm.Failed, Detail: tt.detail, Console: []string{"its last words"}}
			w.machine.die(end)
			<-p.Done()
			err := p.Err()
			if got, ok := errors.AsType[*vmm.End](err); !ok || got != end || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "its last words") {
				t.Errorf("got %v", err)
			}
			if told := strings.HasPrefix(err.Error(), "the kernel killed"); told != strings.Contains(tt.want, "memory") {
				t.Errorf("got %v", err)
			}
			if again := p.explain(err); again.Error() != err.Error() {
				t.Errorf("explained twice: %v", again)
			}
			if err := p.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
