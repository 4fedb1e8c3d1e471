package deploy_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coffer-project/coffer/internal/host/notice"
	"github.com/coffer-project/coffer/internal/install/doctor"
	"github.com/coffer-project/coffer/internal/install/kubeapi"
	"github.com/coffer-project/coffer/internal/install/podevents"
)

// kubernetesVariable names the directory that `make k8s-node` writes; without it,
// build/k8s is used.
const kubernetesVariable = "COFFER_K8S_PROGRAMS"

// cluster is etcd and an API server, and nothing else.
type cluster struct {
	t                *testing.T
	dir, bin, server string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), bin: filepath.Join(cmp.Or(os.Getenv(kubernetesVariable), "../build/k8s"), "bin")}
	etcd, err := exec.LookPath("etcd")
	if _, e := os.Stat(filepath.Join(c.bin, "kube-apiserver")); err != nil || e != nil {
		if os.Getenv("COFFER_REQUIRE_K8S") != "" {
			t.Fatalf("no kube-apiserver or no etcd, and COFFER_REQUIRE_K8S is set: %v", errors.Join(err, e))
		}
		t.Skip("no kube-apiserver or no etcd: run `make k8s-node`, or set " + kubernetesVariable)
	}
	c.keys()
	store, peer, api := address(t), address(t), address(t)
	c.run(etcd, "--data-dir", c.dir+"/etcd", "--listen-client-urls", "http://"+store, "--advertise-client-urls", "http://"+store,
		"--listen-peer-urls", "http://"+peer, "--initial-advertise-peer-urls", "http://"+peer, "--initial-cluster", "default=http://"+peer)
	host, port, err := net.SplitHostPort(api)
	if err != nil {
		t.Fatal(err)
	}
	c.server = "https://" + api
	c.put("tokens.csv", "admin,admin,1,system:masters\n")
	c.run(filepath.Join(c.bin, "kube-apiserver"), "--etcd-servers=http://"+store, "--bind-address="+host, "--secure-port="+port,
		"--tls-cert-file="+c.dir+"/ca.crt", "--tls-private-key-file="+c.dir+"/key", "--token-auth-file="+c.dir+"/tokens.csv",
		"--authorization-mode=RBAC", "--allow-privileged=true", "--service-cluster-ip-range=10.77.0.0/24", "--service-account-issuer=https://kubernetes.test",
		"--service-account-key-file="+c.dir+"/key", "--service-account-signing-key-file="+c.dir+"/key", "--cert-dir="+c.dir+"/certs")
	for range 600 {
		if _, err = c.try("get", "--raw", "/readyz"); err == nil {
			return c
		}
		<-time.After(200 * time.Millisecond)
	}
	t.Fatalf("the API server did not get ready: %v", err)
	return nil
}

// address is a free one of the loopback.
func address(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (c *cluster) put(name, text string) string {
	c.t.Helper()
	p := filepath.Join(c.dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return p
}

// keys makes one key for everything, and its certificate.
func (c *cluster) keys() {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		c.t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		c.t.Fatal(err)
	}
	c.put("ca.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	c.put("key", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private})))
}

// run starts a program that ends with the test.
func (c *cluster) run(program string, args ...string) {
	c.t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if text := log.String(); c.t.Failed() {
			c.t.Logf("%s ended with:\n%s", filepath.Base(program), text[max(0, len(text)-3000):])
		}
	})
}

// try calls kubectl as the administrator.
func (c *cluster) try(args ...string) (string, error) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), filepath.Join(c.bin, "kubectl"), append([]string{
		"--server=" + c.server, "--certificate-authority=" + c.dir + "/ca.crt", "--token=admin", "--kubeconfig=/dev/null", "--cache-dir=" + c.dir + "/cache",
	}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *cluster) kubectl(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	if err != nil {
		c.t.Fatalf("kubectl %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(out)
}

// agent is the API with the credentials of the agent's pod on a node.
func (c *cluster) agent(node string) *kubeapi.Client {
	c.t.Helper()
	c.kubectl("apply", "-f", c.put(node+".yaml", fmt.Sprintf(
		"apiVersion: v1\nkind: Pod\nmetadata: {name: agent-%s, namespace: coffer-system}\nspec: {nodeName: %s, serviceAccountName: coffer-node, containers: [{name: c, image: x}]}\n", node, node)))
	uid := c.kubectl("get", "pod", "-n", "coffer-system", "agent-"+node, "-o", "jsonpath={.metadata.uid}")
	token := c.kubectl("create", "token", "coffer-node", "-n", "coffer-system", "--bound-object-kind=Pod", "--bound-object-name=agent-"+node, "--bound-object-uid="+uid)
	ca, err := os.ReadFile(c.dir + "/ca.crt")
	if err != nil {
		c.t.Fatal(err)
	}
	c.put(node+"/ca.crt", string(ca))
	c.put(node+"/token", token)
	client, err := kubeapi.New(c.server, filepath.Join(c.dir, node))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(client.Close)
	return client
}

// TestAgentsRights: at a real API server the manifests are taken, and the agent
// may do what it has to, and no more.
func TestAgentsRights(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.kubectl("apply", "-f", c.put("nodes.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {a: b, coffer-project.io/soft: \"true\"}}\n---\napiVersion: v1\nkind: Node\nmetadata: {name: n2}\n"))
	c.kubectl("apply", "-f", "manifests")
	api := c.agent("n1")
	// The policy takes a moment to be in force.
	denied := false
	for i := 0; i < 100 && !denied; i++ {
		err := api.Label(t.Context(), "n2", map[string]string{doctor.LabelPrefix + "snp": "true"}, nil)
		denied = err != nil && strings.Contains(err.Error(), "may change no other node")
		<-time.After(100 * time.Millisecond)
	}
	if !denied {
		t.Error("the agent of n1 may label n2")
	}
	if err := api.Label(t.Context(), "n1", map[string]string{doctor.LabelPrefix + "runtime": "true"}, doctor.LabelNames()); err != nil {
		t.Error(err)
	}
	if got := c.kubectl("get", "node", "n1", "-o", "jsonpath={.metadata.labels}"); got != `{"a":"b","coffer-project.io/runtime":"true"}` {
		t.Errorf("labels of n1: %s", got)
	}
	for _, bad := range []map[string]string{{"node-role.kubernetes.io/control-plane": ""}, {"a": "c"}} {
		if err := api.Label(t.Context(), "n1", bad, nil); err == nil || !strings.Contains(err.Error(), "may change no labels but coffer-project.io/") {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if err := api.Label(t.Context(), "n1", nil, []string{"a"}); err == nil {
		t.Error("the agent may remove labels of others")
	}
	token, err := os.ReadFile(filepath.Join(c.dir, "n1", "token"))
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"patch", "node", "n1", "--type=merge", "-p", `{"spec":{"unschedulable":true}}`},
		{"patch", "node", "n1", "--type=merge", "-p", `{"metadata":{"annotations":{"x":"y"}}}`},
		{"create", "-f", c.put("event.yaml", "apiVersion: v1\nkind: Event\nmetadata: {name: x, namespace: coffer-system}\ninvolvedObject: {kind: Node, name: n1, namespace: coffer-system}\nsource: {component: coffer, host: n1}\nreportingComponent: coffer\nreason: X\ntype: Normal\n")},
		{"get", "events", "-A"}, {"delete", "events", "--all", "-n", "default"},
		{"get", "secrets", "-A"}, {"delete", "node", "n2"}, {"get", "daemonsets", "-n", "coffer-system"},
	} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(c.bin, "kubectl"), append([]string{
			"--server=" + c.server, "--certificate-authority=" + c.dir + "/ca.crt", "--token=" + string(token), "--kubeconfig=/dev/null", "--cache-dir=" + c.dir + "/cache-agent",
		}, args...)...)
		out, err := cmd.CombinedOutput()
		if err == nil || args[0] == "create" && !strings.Contains(string(out), "may post no events but its own, of pods") {
			t.Errorf("%q: %v, %s", args, err, out)
		}
	}
	notices(t, c, api)
	wanted(t, c, api)
}

// notices has a person see what shims of a node say of their pods.
func notices(t *testing.T, c *cluster, api *kubeapi.Client) {
	t.Helper()
	uid := c.kubectl("get", "pod", "-n", "coffer-system", "agent-n1", "-o", "jsonpath={.metadata.uid}")
	own := kubeapi.Event{Name: "e", Namespace: "coffer-system", Pod: "agent-n1", UID: uid, Reason: "Tried", Message: "m", At: time.Now(), Node: "n2"}
	denied := false
	for i := 0; i < 100 && !denied; i++ { // until the policy is in force
		own.Name = fmt.Sprint("e-", i)
		err := api.CreateEvent(t.Context(), own)
		denied = errors.Is(err, kubeapi.ErrInvalid) && strings.Contains(err.Error(), "may post no events from another node")
		<-time.After(100 * time.Millisecond)
	}
	if !denied {
		t.Error("the agent of n1 may post events of n2")
	}
	state := t.TempDir()
	pod := notice.Pod{ID: "box", Namespace: "coffer-system", Name: "agent-n1", UID: uid}
	dir := filepath.Join(state, "k8s.io/box")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := notice.New(dir, time.Now)
	said := []string{"unsealed: \x1b[31mno policy", strings.Repeat("long ", 500)}
	for _, message := range said {
		if _, err := file.Add(pod, notice.Unsealed, message); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := file.Add(notice.Pod{ID: "box", Namespace: "gone", Name: "x", UID: "y"}, notice.Refused, "m"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds all of them there
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		(&podevents.Poster{Dirs: func() []string { return []string{state} }, API: api, Node: "n1", Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}).Run(ctx)
		cancel()
	}
	if out := c.kubectl("get", "events", "-n", "coffer-system", "--field-selector=reason=Unsealed", "-o", "name"); len(strings.Fields(out)) != 2 {
		t.Errorf("events: %s", out)
	}
	out := c.kubectl("describe", "pod", "-n", "coffer-system", "agent-n1")
	for _, want := range []string{"Warning  Unsealed", "coffer", "unsealed: \uFFFD[31mno policy", "long long"} {
		if !strings.Contains(out, want) {
			t.Errorf("kubectl describe pod has no %q:\n%s", want, out)
		}
	}
}

// wanted follows the DaemonSet from its life to its deletion, and the account's.
func wanted(t *testing.T, c *cluster, api *kubeapi.Client) {
	t.Helper()
	check := func(want bool) {
		t.Helper()
		got, err := api.Wanted(t.Context(), "coffer-system", "coffer-node")
		if err != nil || got != want {
			t.Errorf("wanted: %t, %v; expected %t", got, err, want)
		}
	}
	check(true)
	// In the foreground it waits for pods, which nobody deletes here.
	c.kubectl("delete", "daemonset", "-n", "coffer-system", "coffer-node", "--cascade=foreground", "--wait=false")
	check(false)
	c.kubectl("delete", "serviceaccount", "-n", "coffer-system", "coffer-node")
	unauthorized := false
	for i := 0; i < 300 && !unauthorized; i++ {
		_, err := api.Wanted(t.Context(), "coffer-system", "coffer-node")
		unauthorized = errors.Is(err, kubeapi.ErrUnauthorized)
		<-time.After(100 * time.Millisecond)
	}
	if !unauthorized {
		t.Error("a deleted service account is still known")
	}
}
