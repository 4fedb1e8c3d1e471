package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coffer-project/coffer/kbs"
)

// The files that the bare server answers with: a trustee's answers, byte for
// byte, so that both send the same.
const (
	fileAddress   = "address"
	fileChallenge = "challenge.json"
	fileCookie    = "cookie"
	fileToken     = "token.json"
	fileResource  = "resource.json"
)

// serveBare answers a handshake's requests with fixed bodies: TLS, HTTP, and
// nothing else. dir has the files above, and server.pem and server-key.pem of
// a trustee.
func serveBare(ctx context.Context, dir string) error {
	file := map[string][]byte{}
	for _, name := range []string{fileAddress, fileChallenge, fileCookie, fileToken, fileResource} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		file[name] = text
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.pem"), filepath.Join(dir, "server-key.pem"))
	if err != nil {
		return err
	}
	cookie := http.Cookie{
		Name: kbs.SessionCookie, Value: strings.TrimSpace(string(file[fileCookie])), Path: kbs.PathPrefix, MaxAge: 300, Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc(kbs.AuthPath, func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &cookie)
		answer(w, r, file[fileChallenge])
	})
	mux.HandleFunc(kbs.AttestPath, func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &cookie)
		answer(w, r, file[fileToken])
	})
	mux.HandleFunc(kbs.PathPrefix+"/resource/", func(w http.ResponseWriter, r *http.Request) { answer(w, r, file[fileResource]) })
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 1 << 20}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", string(file[fileAddress]))
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	err = s.Serve(tls.NewListener(l, &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, NextProtos: []string{"http/1.1"},
	}))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func answer(w http.ResponseWriter, r *http.Request, body []byte) {
	var sink bytes.Buffer
	_, _ = io.Copy(&sink, r.Body) // a client that went away is no matter here
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}
