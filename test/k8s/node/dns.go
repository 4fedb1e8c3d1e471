package node

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// resolver is the cluster's DNS: Services by SERVICE.NAMESPACE.svc.DOMAIN, pods
// with host names of headless Services, and the names of the node's servers.
type resolver struct {
	client *kubernetes.Clientset
	conn   net.PacketConn
	wg     sync.WaitGroup
	stop   context.CancelFunc
}

func (n *Node) startDNS() error {
	r := &resolver{client: n.client}
	if err := n.inside(func() (err error) {
		var c net.ListenConfig
		r.conn, err = c.ListenPacket(context.Background(), "udp", net.JoinHostPort(IP, "53"))
		return err
	}); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	r.wg.Go(func() { r.serve(ctx) })
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dns = r
	return nil
}

func (r *resolver) Close() {
	r.stop()
	_ = r.conn.Close()
	r.wg.Wait()
}

func (r *resolver) serve(ctx context.Context) {
	buf := make([]byte, 1500)
	for {
		n, from, err := r.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		query := append([]byte(nil), buf[:n]...)
		r.wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			if reply, ok := r.answer(ctx, query); ok {
				_, _ = r.conn.WriteTo(reply, from)
			}
		})
	}
}

func (r *resolver) answer(ctx context.Context, query []byte) ([]byte, bool) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil, false
	}
	q := m.Questions[0]
	addresses, known := r.lookup(ctx, strings.ToLower(strings.TrimSuffix(q.Name.String(), ".")))
	m.Response, m.Authoritative, m.RecursionAvailable = true, true, true
	m.Additionals = nil
	if !known {
		m.RCode = dnsmessage.RCodeNameError
	}
	for _, a := range addresses {
		h := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 1}
		switch {
		case q.Type == dnsmessage.TypeA && a.Is4():
			h.Type = dnsmessage.TypeA
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
		case q.Type == dnsmessage.TypeAAAA && a.Is6():
			h.Type = dnsmessage.TypeAAAA
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	reply, err := m.Pack()
	return reply, err == nil
}

func (r *resolver) lookup(ctx context.Context, name string) ([]netip.Addr, bool) {
	if name == "registry.node" || name == "trustee.node" {
		return parse([]string{IP}), true
	}
	rest, ok := strings.CutSuffix(name, ".svc."+Domain)
	if !ok {
		return nil, false
	}
	labels := strings.Split(rest, ".")
	if len(labels) < 2 || len(labels) > 3 {
		return nil, false
	}
	service, namespace := labels[len(labels)-2], labels[len(labels)-1]
	s, err := r.client.CoreV1().Services(namespace).Get(ctx, service, metav1.GetOptions{})
	if err != nil {
		return nil, false
	}
	if len(labels) == 2 && s.Spec.ClusterIP != "None" {
		return parse(s.Spec.ClusterIPs), true
	}
	slices, err := r.client.DiscoveryV1().EndpointSlices(namespace).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service})
	if err != nil {
		return nil, false
	}
	var list []string
	for _, slice := range slices.Items {
		for _, e := range slice.Endpoints {
			if len(labels) == 2 || (e.Hostname != nil && *e.Hostname == labels[0]) {
				list = append(list, e.Addresses...)
			}
		}
	}
	return parse(list), len(list) > 0
}

func parse(texts []string) []netip.Addr {
	var list []netip.Addr
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil {
			list = append(list, a)
		}
	}
	return list
}
