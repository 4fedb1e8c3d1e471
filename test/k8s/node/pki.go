package node

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority signs every certificate of a node.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func writePEM(file, kind string, der []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func writeKey(file string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(file, "PRIVATE KEY", der)
}

func newAuthority(dir string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "coffer-node-ca"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:  x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	a := &authority{dir: dir, cert: cert, key: key}
	if err := writePEM(filepath.Join(dir, "ca.crt"), "CERTIFICATE", der); err != nil {
		return nil, err
	}
	return a, writeKey(filepath.Join(dir, "ca.key"), key)
}

// issue writes NAME.crt and NAME.key: a server's if it has hosts, else a client's.
func (a *authority) issue(name string, subject pkix.Name, hosts ...string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: subject, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if len(hosts) > 0 {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(a.dir, name+".crt"), "CERTIFICATE", der); err != nil {
		return err
	}
	return writeKey(filepath.Join(a.dir, name+".key"), key)
}

// writePKI makes the certificates of the node's programs, and the kubeconfigs.
func (n *Node) writePKI() error {
	dir := filepath.Join(n.dir, "pki")
	a, err := newAuthority(dir)
	if err != nil {
		return err
	}
	account, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(account.Public())
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, "sa.pub"), "PUBLIC KEY", public); err != nil {
		return err
	}
	if err := writeKey(filepath.Join(dir, "sa.key"), account); err != nil {
		return err
	}
	clients := map[string]pkix.Name{
		"admin":     {CommonName: "admin", Organization: []string{"system:masters"}},
		"kcm":       {CommonName: "system:kube-controller-manager"},
		"scheduler": {CommonName: "system:kube-scheduler"},
		"kubelet":   {CommonName: "system:node:" + Name, Organization: []string{"system:nodes"}},
	}
	for name, subject := range clients {
		if err := a.issue(name, subject); err != nil {
			return err
		}
		if err := n.writeKubeconfig(name+".kubeconfig", name, "127.0.0.1:6443"); err != nil {
			return err
		}
	}
	servers := map[string][]string{
		"apiserver":      {"kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1", IP, IP6, "10.96.0.1"},
		"kubelet-server": {Name, IP, IP6, "127.0.0.1"},
		// For servers of the tests that listen on the node.
		"service": {"localhost", "127.0.0.1", IP, IP6, "registry.node", "trustee.node"},
	}
	for name, hosts := range servers {
		if err := a.issue(name, pkix.Name{CommonName: name}, hosts...); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) writeOuterKubeconfig(address string) error {
	return n.writeKubeconfig("outside.kubeconfig", "admin", address)
}

func (n *Node) writeKubeconfig(file, user, address string) error {
	pki := filepath.Join(n.dir, "pki")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: node, cluster: {server: "https://%s", certificate-authority: %s/ca.crt}}]
users: [{name: user, user: {client-certificate: %s/%s.crt, client-key: %s/%s.key}}]
contexts: [{name: node, context: {cluster: node, user: user}}]
current-context: node
`, address, pki, pki, user, pki, user)
	return os.WriteFile(filepath.Join(pki, file), []byte(text), 0o600)
}

// CA is the file of the authority that signed the certificate of ServerTLS.
func (n *Node) CA() string { return filepath.Join(n.dir, "pki", "ca.crt") }

// ServerTLS is for servers of the test process that listen on the node: the
// certificate is for [IP], [IP6], 127.0.0.1 and the names registry.node and
// trustee.node.
func (n *Node) ServerTLS() (*tls.Config, error) {
	pki := filepath.Join(n.dir, "pki")
	pair, err := tls.LoadX509KeyPair(filepath.Join(pki, "service.crt"), filepath.Join(pki, "service.key"))
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}, nil
}
