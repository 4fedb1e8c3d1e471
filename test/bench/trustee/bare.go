package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Sizes of the bare server's answers: those of the trustee's.
const (
	bareToken    = 6 << 10
	bareResource = 700
)

// serveBare answers a handshake's requests with fixed bodies: TLS, HTTP, and
// nothing else. dir has address, server.pem and server-key.pem of a trustee.
func serveBare(ctx context.Context, dir string) error {
	address, err := os.ReadFile(filepath.Join(dir, "address"))
	if err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.pem"), filepath.Join(dir, "server-key.pem"))
	if err != nil {
		return err
	}
	token := `{"token":"` + strings.Repeat("t", bareToken) + `"}`
	resource := `{"protected":"` + strings.Repeat("p", bareResource) + `"}`
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/kbs/v0/auth", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "kbs-session-id", Value: strings.Repeat("c", 300), Path: "/kbs/v0", Secure: true})
		answer(w, r, `{"nonce":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=","extra-params":""}`)
	})
	mux.HandleFunc("/kbs/v0/attest", func(w http.ResponseWriter, r *http.Request) { answer(w, r, token) })
	mux.HandleFunc("/kbs/v0/resource/", func(w http.ResponseWriter, r *http.Request) { answer(w, r, resource) })
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 1 << 20}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", string(address))
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	err = s.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, NextProtos: []string{"http/1.1"}}))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func answer(w http.ResponseWriter, r *http.Request, body string) {
	_, _ = io.Copy(io.Discard, r.Body) // a client that went away is no matter here
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprint(w, body)
}
