package nodeagent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coffer-project/coffer/internal/install"
	"github.com/coffer-project/coffer/internal/install/doctor"
	"github.com/coffer-project/coffer/internal/install/kubeapi"
)

// node is a node and its API server; it writes down what happens.
type node struct {
	mu       sync.Mutex
	did      []string
	wanted   func(asked int) (bool, error)
	asked    int
	failures map[string]error
	inUse    int
	labelled map[string]string
}

func (n *node) do(what string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.did = append(n.did, what)
	return n.failures[what]
}

func (n *node) Label(_ context.Context, name string, set map[string]string, _ []string) error {
	n.labelled = set
	if len(set) == 0 {
		return n.do("unlabel " + name)
	}
	return n.do("label " + name)
}

func (n *node) Wanted(context.Context, string, string) (bool, error) {
	n.asked++
	return n.wanted(n.asked)
}

func (n *node) agent() *Agent {
	return &Agent{
		Install: func(context.Context) (bool, []string, error) { return true, []string{"u"}, n.do("install") },
		Uninstall: func(context.Context) (bool, []string, error) {
			err := n.do("uninstall")
			if n.inUse > 0 {
				n.inUse--
				err = install.ErrInUse
			}
			return err == nil, []string{"u"}, err
		},
		Restart: func(_ context.Context, units []string) error { return n.do("restart " + strings.Join(units, " ")) },
		Inspect: func(context.Context) (*doctor.Report, error) {
			return &doctor.Report{Runtime: true, Soft: true, SNP: true, Handlers: []string{"coffer-qemu-soft"}}, n.do("inspect")
		},
		API: n, Node: "n1", Namespace: "ns", DaemonSet: "ds", Every: time.Hour, Grace: time.Minute, Logger: slog.New(slog.DiscardHandler),
	}
}

func TestRun(t *testing.T) {
	t.Parallel()
	up := []string{"install", "restart u", "inspect", "label n1"}
	down := []string{"unlabel n1", "uninstall", "restart u"}
	for _, tc := range []struct {
		name   string
		wanted func(int) (bool, error)
		inUse  int
		want   []string
		err    string
	}{
		{"deleted", func(int) (bool, error) { return false, nil }, 0, down, ""},
		{"replaced", func(int) (bool, error) { return true, nil }, 0, nil, ""},
		{"no answer", func(int) (bool, error) { return false, errors.New("down") }, 0, nil, ""},
		{"no right", func(int) (bool, error) { return false, kubeapi.ErrForbidden }, 0, nil, ""},
		{"late answer", func(n int) (bool, error) {
			if n < 4 {
				return false, errors.New("down")
			}
			return false, nil
		}, 0, down, ""},
		{"account deleted", func(int) (bool, error) { return false, kubeapi.ErrUnauthorized }, 0, down, ""},
		{"account unknown for a moment", func(n int) (bool, error) {
			if n < 4 {
				return false, kubeapi.ErrUnauthorized
			}
			return true, nil
		}, 0, nil, ""},
		{"pods end in time", func(int) (bool, error) { return false, nil }, 2, []string{"unlabel n1", "uninstall", "uninstall", "uninstall", "restart u"}, ""},
		{"pods stay", func(int) (bool, error) { return false, nil }, 1000, nil, "the runtime stays on the node"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				n := &node{wanted: tc.wanted, inUse: tc.inUse}
				ctx, cancel := context.WithCancel(t.Context())
				result := make(chan error, 1)
				go func() { result <- n.agent().Run(ctx) }()
				<-time.After(2*time.Hour + time.Minute)
				synctest.Wait() // what it did until then is seen here
				if want := slices.Concat(up, up, up); !slices.Equal(n.did, want) || len(n.labelled) != 2 {
					t.Errorf("up: %q, labels %v", n.did, n.labelled)
				}
				n.did = nil
				cancel()
				start := time.Now()
				err := <-result
				if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
					t.Errorf("%v", err)
				}
				if tc.inUse < 100 && !slices.Equal(n.did, tc.want) {
					t.Errorf("down: %q", n.did)
				}
				if took := time.Since(start); took > time.Minute {
					t.Errorf("took %s", took)
				}
			})
		})
	}
}

// TestBeside: what is done all the while begins with Run and has ended after it,
// however that ends.
func TestBeside(t *testing.T) {
	t.Parallel()
	for _, failure := range []string{"", "install"} {
		n := &node{wanted: func(int) (bool, error) { return true, nil }, failures: map[string]error{failure: errors.New("broken")}}
		a := n.agent()
		ctx, cancel := context.WithCancel(t.Context())
		began, ended := make(chan struct{}), false
		a.Beside = func(ctx context.Context) {
			close(began)
			<-ctx.Done()
			<-time.After(10 * time.Millisecond)
			ended = true
		}
		result := make(chan error, 1)
		go func() { result <- a.Run(ctx) }()
		<-began
		if failure == "" {
			cancel()
		}
		if err := <-result; !ended || (err == nil) != (failure == "") {
			t.Errorf("%q: %v, ended %t", failure, err, ended)
		}
		cancel()
	}
}

// TestFailures: a node where something fails has no labels.
func TestFailures(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"install", "restart u", "inspect"} {
		n := &node{failures: map[string]error{what: errors.New("broken")}}
		if err := n.agent().Run(t.Context()); err == nil || !strings.Contains(err.Error(), "broken") || n.did[len(n.did)-1] != "unlabel n1" {
			t.Errorf("%s: %v, %q", what, err, n.did)
		}
	}
	n := &node{}
	a := n.agent()
	a.Restart = nil
	if err := a.Once(t.Context()); err != nil || !slices.Equal(n.did, []string{"install", "inspect", "label n1"}) {
		t.Errorf("%v, %q", err, n.did)
	}
}
