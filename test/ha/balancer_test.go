package ha

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/template"
)

// balancer is haproxy in front of the replicas. It passes TLS through: it has
// none of the trustee's keys and sees nothing of what it carries.
type balancer struct {
	*process
	address, socket string
}

// findBalancer returns haproxy's path, or ends the test.
func findBalancer(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("haproxy")
	if err != nil {
		if _, err := os.Stat("/usr/sbin/haproxy"); err == nil {
			return "/usr/sbin/haproxy"
		}
		if os.Getenv("COFFER_REQUIRE_SERVERS") == "1" {
			t.Fatalf("%v, and COFFER_REQUIRE_SERVERS=1", err)
		}
		t.Skipf("%v (apt-get install haproxy)", err)
	}
	return path
}

// balancerConfig is what a deployment's looks like, with shorter times. While
// no replica is ready, as during a restart of the database, connections go to
// those that are alive: they hold requests until the database is back, and a
// closed connection would make a failure of that pause.
const balancerConfig = `
global
    maxconn 4000
    stats socket {{.Socket}} mode 600 level operator
defaults
    mode tcp
    timeout connect 1s
    timeout client 2m
    timeout server 2m
    timeout check 2s
    retries 3
    option redispatch 1
    balance roundrobin
    default-server source {{.Source}} send-proxy-v2 check check-send-proxy check-ssl verify required ca-file {{.CA}} inter 200ms fastinter 100ms downinter 100ms fall 2 rise 1
frontend trustee
    bind {{.Address}}
    use_backend alive if { nbsrv(ready) eq 0 }
    default_backend ready
backend ready
    option httpchk
    http-check send meth GET uri /readyz ver HTTP/1.1 hdr Host trustee
    http-check expect status 200
{{- range .Replicas}}
    server {{.}}
{{- end}}
backend alive
    option httpchk
    http-check send meth GET uri /healthz ver HTTP/1.1 hdr Host trustee
    http-check expect status 200
{{- range .Replicas}}
    server {{.}}
{{- end}}
`

func (c *cluster) startBalancer(t *testing.T, path string) *balancer {
	t.Helper()
	host := c.prefix + ".10"
	b := &balancer{address: host + ":" + port, socket: filepath.Join(c.dir, "haproxy.sock")}
	var servers []string
	for _, r := range c.replicas {
		servers = append(servers, r.name+" "+r.address)
	}
	file := filepath.Join(c.dir, "haproxy.cfg")
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	err = template.Must(template.New("").Parse(balancerConfig)).Execute(f, map[string]any{
		"Socket": b.socket, "Source": host, "CA": c.replicas[0].file("ca.pem"), "Address": b.address, "Replicas": servers,
	})
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	b.process = start(t, filepath.Join(c.dir, "haproxy.log"), path, "-db", "-f", file)
	t.Cleanup(func() { b.kill(t) })
	for _, r := range c.replicas {
		b.await(t, r, "UP")
	}
	return b
}

// await waits until haproxy takes a replica for what it is: UP or DOWN.
func (b *balancer) await(t *testing.T, r *replica, status string) {
	t.Helper()
	poll(t, "haproxy: "+r.name, func(ctx context.Context) error {
		if err := b.alive(); err != nil {
			return err
		}
		table, err := b.table(ctx)
		if err != nil {
			return err
		}
		if got := table["ready/"+r.name]["status"]; !strings.HasPrefix(got, status) {
			return fmt.Errorf("expected %s, got %q", status, got)
		}
		return nil
	})
}

// awaitIdle waits until a replica has no connection left.
func (b *balancer) awaitIdle(t *testing.T, r *replica) {
	t.Helper()
	poll(t, "haproxy: "+r.name, func(ctx context.Context) error {
		table, err := b.table(ctx)
		if err != nil {
			return err
		}
		if got := table["ready/"+r.name]["scur"]; got != "0" {
			return fmt.Errorf("expected no connection, got %s", got)
		}
		return nil
	})
}

// table is haproxy's view of its servers: "backend/server", then column.
func (b *balancer) table(ctx context.Context) (_ map[string]map[string]string, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", b.socket)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if _, err := io.WriteString(conn, "show stat\n"); err != nil {
		return nil, err
	}
	rows, err := csv.NewReader(conn).ReadAll()
	if err != nil || len(rows) == 0 {
		return nil, fmt.Errorf("show stat: %d rows, %w", len(rows), err)
	}
	out := map[string]map[string]string{}
	for _, row := range rows[1:] {
		columns := map[string]string{}
		for i, name := range rows[0] {
			columns[strings.TrimPrefix(name, "# ")] = row[i]
		}
		out[columns["pxname"]+"/"+columns["svname"]] = columns
	}
	return out, nil
}
