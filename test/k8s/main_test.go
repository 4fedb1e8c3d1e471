// Package k8s tests the product as users of Kubernetes see it: pods with its
// runtime classes on a real node (package node), driven through the API server.
//
// The tests are rows of a table ([row]): each has the name of the case in Kata's
// acceptance tests that asserts the same, where there is one. A row runs on each
// handler that it is for: runc, which shows that cluster and assertion are right,
// coffer-process, and coffer-qemu-soft, where a pod is a virtual machine. Machines
// are slow to boot where they are emulated, and so rows share pods ([fixture]) and
// only some run at once. What came of each row is printed and written to
// report.json and report.md.
//
// COFFER_K8S is core for the rows that matter most, or full (the default).
// COFFER_K8S_HANDLERS and COFFER_K8S_CONTAINERD choose among handlers and versions
// of containerd. COFFER_K8S_PROGRAMS, COFFER_BIN and COFFER_GUEST_IMAGE say where
// programs are (../../build/k8s, ../../bin, ../../build/guest); COFFER_NODE_IMAGE and
// COFFER_HELM are for the tests of the installation by Kubernetes
// (../../build/node-image, ../../build/tools/helm). Where they are absent the tests
// are skipped, or fail if COFFER_REQUIRE_K8S is set.
package k8s

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/test/k8s/node"
)

// suite is what the tests share.
type suite struct {
	bin, guest, programs string
	// manifests is deploy/manifests of this repository.
	manifests  string
	core       bool
	containerd string
	handlers   []string
	report     *report

	start  func() (*node.Node, error)
	images func() (*node.Images, error)

	mu    sync.Mutex
	nodes []*node.Node
}

// the is the suite of this test program. It is set once, by TestMain.
var the *suite

func TestMain(m *testing.M) {
	if code, is := node.Init(); is {
		os.Exit(code)
	}
	the = newSuite()
	the.start = sync.OnceValues(func() (*node.Node, error) {
		return the.startNode(the.containerd, os.Getenv("COFFER_K8S_SANDBOXER"))
	})
	the.images = sync.OnceValues(func() (*node.Images, error) {
		n, err := the.start()
		if err != nil {
			return nil, err
		}
		return n.ServeImages()
	})
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, unix.SIGINT, unix.SIGTERM)
	go func() {
		<-stopped
		_ = the.closeNodes()
		os.Exit(1)
	}()
	code := m.Run()
	if err := the.report.write(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := the.closeNodes(); err != nil {
		fmt.Fprintln(os.Stderr, "a node left something behind:", err)
		code = 1
	}
	os.Exit(code)
}

func newSuite() *suite {
	s := &suite{
		bin: directory("COFFER_BIN", "../../bin"), guest: directory("COFFER_GUEST_IMAGE", "../../build/guest"),
		programs: directory("COFFER_K8S_PROGRAMS", "../../build/k8s"), manifests: directory("", "../../deploy/manifests"), core: os.Getenv("COFFER_K8S") == "core",
		containerd: os.Getenv("COFFER_K8S_CONTAINERD"), handlers: []string{runc, node.HandlerProcess, node.HandlerSoft},
	}
	if s.core {
		s.handlers = []string{node.HandlerSoft}
	}
	if s.containerd == "" {
		s.containerd = node.Daemons()[0]
	}
	if h := os.Getenv("COFFER_K8S_HANDLERS"); h != "" {
		s.handlers = strings.Split(h, ",")
	}
	s.report = newReport(directory("COFFER_K8S_REPORT", ""), s.containerd)
	return s
}

func directory(variable, fallback string) string {
	dir := os.Getenv(variable)
	if dir == "" {
		dir = fallback
	}
	if dir == "" {
		return ""
	}
	if abs, err := filepath.Abs(dir); err == nil {
		return abs
	}
	return dir
}

func (s *suite) startNode(containerd, sandboxer string) (*node.Node, error) {
	o := node.Options{Programs: s.programs, Containerd: containerd, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	c := s.coffer()
	c.Sandboxer = sandboxer
	c.Apply(&o)
	return s.startWith(o)
}

// coffer is where the product is.
func (s *suite) coffer() node.Coffer {
	return node.Coffer{Bin: s.bin, Guest: s.guest, Manifests: s.manifests, Debug: true}
}

// startWith starts a node; it is closed in the end.
func (s *suite) startWith(o node.Options) (*node.Node, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	n, err := node.Start(ctx, o)
	if err == nil {
		s.mu.Lock()
		s.nodes = append(s.nodes, n)
		s.mu.Unlock()
	}
	return n, err
}

// closeNodes ends every node that was started.
func (s *suite) closeNodes() error {
	s.mu.Lock()
	nodes := s.nodes
	s.nodes = nil
	s.mu.Unlock()
	var errs []error
	for _, n := range nodes {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}

// need starts the node, or skips the test where there can be none.
func need(t *testing.T) *node.Node {
	t.Helper()
	n, err := the.start()
	if missing := (*node.MissingError)(nil); errors.As(err, &missing) && os.Getenv("COFFER_REQUIRE_K8S") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := the.images(); err != nil {
		t.Fatal(err)
	}
	return n
}
