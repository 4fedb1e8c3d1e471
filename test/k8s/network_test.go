package k8s

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const netFixture = `
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 90, targetPort: 9000}, {name: udp, port: 91, protocol: UDP, targetPort: 9002}]}
---
kind: Service
metadata: {name: outside}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 0}]}
---
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - name: a
    command: [/app, serve, "http=:8080", "tcp=:9000", "udp=:9002"]
    ports: [{containerPort: 8080, hostPort: HOSTPORT}]
    readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1, timeoutSeconds: 5}
---
kind: Pod
metadata: {name: client}
spec:
  dnsConfig: {searches: [extra.example], options: [{name: ndots, value: "2"}]}
  containers: [{name: a}]
`

func networkRows() []row {
	return []row{
		{id: "k8s-nginx-connectivity", core: true, on: onAll, asserts: "pod to pod, to a Service by name and address, and to itself through its Service; TCP, UDP and HTTP", run: services},
		{id: "network/node-to-pod", on: onAll, asserts: "the node reaches the pod, by its address, NodePort and hostPort", run: fromNode},
		{id: "k8s-ip6tables", core: true, on: onAll, asserts: "IPv6: the pod has an address and reaches others by it", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "net")
			p, err := s.n.Client().CoreV1().Pods(s.ns).Get(t.Context(), "web", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Status.PodIPs) != 2 {
				t.Fatalf("the pod has %v", p.Status.PodIPs)
			}
			s.comes(t, "client", "a", fmt.Sprintf("/app get http://[%s]:8080/ | cut -d' ' -f1", p.Status.PodIPs[1].IP), "web")
		}},
		{id: "network/interface", on: onAll, asserts: "address, MTU and default route in the pod are those of the CNI", run: func(t *testing.T, c *cluster) {
			s := c.shared(t, "net")
			p, err := s.n.Client().CoreV1().Pods(s.ns).Get(t.Context(), "client", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			s.want(t, "client", "a", "cat /sys/class/net/eth0/mtu", "1500")
			s.want(t, "client", "a", "ip route | awk '$1 == \"default\" {print $3, $5}'", "10.244.0.1 eth0")
			if out := s.sh(t, "client", "a", "ip addr show dev eth0"); !strings.Contains(out, p.Status.PodIP+"/24") {
				t.Errorf("the pod's address is %s; it has %s", p.Status.PodIP, out)
			}
		}},
		{id: "k8s-custom-dns", core: true, on: onAll, asserts: "resolv.conf with the cluster's server, searches and options; and one of the pod's own", run: customDNS},
		{id: "network-policy", core: true, on: onAll, asserts: "a rule of the node about the pod's address holds, as a network plugin would set it", run: networkRule},
		{id: "k8s-openvpn", not: "needs /dev/net/tun of the host in a pod that is not confidential", asserts: "an OpenVPN client and server"},
	}
}

func services(t *testing.T, c *cluster) {
	s := c.shared(t, "net")
	p, err := s.n.Client().CoreV1().Pods(s.ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	service, err := s.n.Client().CoreV1().Services(s.ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.comes(t, "client", "a", "/app get http://"+p.Status.PodIP+":8080/ | cut -d' ' -f1", "web")
	s.comes(t, "client", "a", "/app get http://web/ | cut -d' ' -f1", "web")
	s.comes(t, "client", "a", "/app get http://web."+s.ns+".svc.cluster.local/ | cut -d' ' -f1", "web")
	s.comes(t, "client", "a", "/app dial tcp "+service.Spec.ClusterIP+":90 hello", "echo hello")
	s.comes(t, "client", "a", "/app dial udp "+service.Spec.ClusterIP+":91 hello", "echo hello")
	// By its whole name: the pod's own /etc/hosts knows the short one.
	s.comes(t, "web", "a", "/app get http://web."+s.ns+".svc.cluster.local/ | cut -d' ' -f1", "web")
}

func fromNode(t *testing.T, c *cluster) {
	s := c.shared(t, "net")
	p, err := s.n.Client().CoreV1().Pods(s.ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	service, err := s.n.Client().CoreV1().Services(s.ns).Get(t.Context(), "outside", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{
		p.Status.PodIP + ":8080",
		fmt.Sprintf("192.168.77.1:%d", service.Spec.Ports[0].NodePort),
		fmt.Sprintf("192.168.77.1:%d", p.Spec.Containers[0].Ports[0].HostPort),
	} {
		s.eventually(t, "an answer of "+address, func() error {
			out, err := s.n.Run(t.Context(), the.programs+"/bin/app", "get", "http://"+address+"/")
			if err == nil && !strings.HasPrefix(out, "web from ") {
				err = fmt.Errorf("%q", out)
			}
			return err
		})
	}
}

func customDNS(t *testing.T, c *cluster) {
	s := c.shared(t, "net")
	s.want(t, "client", "a", "grep ^nameserver /etc/resolv.conf; grep -c extra.example /etc/resolv.conf; grep -o 'ndots:.' /etc/resolv.conf | tail -n 1", "nameserver 192.168.77.1\n1\nndots:2")
	c.apply(t, "kind: Pod\nmetadata: {name: own}\nspec: {dnsPolicy: None, dnsConfig: {nameservers: [192.168.77.1], searches: [svc.cluster.local], options: [{name: edns0}]}, containers: [{name: a}]}\n")
	c.ready(t, "own")
	c.want(t, "own", "a", "sort /etc/resolv.conf", "nameserver 192.168.77.1\noptions edns0\nsearch svc.cluster.local")
	c.comes(t, "own", "a", "/app get http://web."+s.ns+"/ | cut -d' ' -f1", "web")
}

func networkRule(t *testing.T, c *cluster) {
	s := c.shared(t, "net")
	c.apply(t, "kind: Pod\nmetadata: {name: closed}\nspec: {containers: [{name: a}]}\n")
	p := c.ready(t, "closed")
	get := "/app get http://" + p.Status.PodIP + ":8080/ >/dev/null 2>&1 && echo open || echo closed"
	s.comes(t, "client", "a", get, "open")
	table := strings.ReplaceAll(c.ns, "-", "_")
	rule := fmt.Sprintf("table bridge %[1]s { chain c { type filter hook forward priority 0; ip daddr %[2]s tcp dport 8080 drop; }; }; table ip %[1]s { chain c { type filter hook forward priority 0; ip daddr %[2]s tcp dport 8080 drop; }; }", table, p.Status.PodIP)
	if _, err := c.n.Run(t.Context(), "nft", rule); err != nil {
		t.Fatal(err)
	}
	s.comes(t, "client", "a", get, "closed")
	if _, err := c.n.Run(t.Context(), "nft", "delete table bridge "+table+"; delete table ip "+table); err != nil {
		t.Fatal(err)
	}
	s.comes(t, "client", "a", get, "open")
}
