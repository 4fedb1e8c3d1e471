package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// patience is for one connection or request.
const patience = 10 * time.Second

// serve runs servers until it is told to end: http, tcp (echoes lines), udp
// (echoes packets) and grpc (health). Each NAME=ADDRESS is one; without any it is
// http on port 8080.
func serve(args []string) error {
	if len(args) == 0 {
		args = []string{"http=:8080"}
	}
	servers := map[string]func(string) error{"http": serveHTTP, "tcp": serveTCP, "udp": serveUDP, "grpc": serveGRPC}
	failed := make(chan error, len(args)+1)
	for _, a := range args {
		name, address, _ := strings.Cut(a, "=")
		f, ok := servers[name]
		if !ok {
			return errUsage
		}
		go func() { failed <- fmt.Errorf("%s: %w", a, f(address)) }()
	}
	go func() { failed <- pause(nil) }()
	fmt.Println("serving", strings.Join(args, " "))
	return <-failed
}

// serveHTTP answers / with the host's name and the caller, /env with the
// environment, /file?PATH with a file, /get?URL with what another server answers,
// and /health as the last of /healthy, /sick says.
func serveHTTP(address string) error {
	var mu sync.Mutex
	sick := false
	set := func(to bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			sick = to
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		name, err := os.Hostname()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = fmt.Fprintf(w, "%s from %s to %s\n", name, r.RemoteAddr, r.Host)
	})
	mux.HandleFunc("/env", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Join(os.Environ(), "\n"))
	})
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, r.URL.RawQuery) })
	mux.HandleFunc("/sick", set(true))
	mux.HandleFunc("/healthy", set(false))
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if sick {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) {
		if err := fetch(w, r.URL.RawQuery); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
		}
	})
	s := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: patience}
	return s.ListenAndServe()
}

func fetch(w io.Writer, url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	r, err := (&http.Client{}).Do(q)
	if err != nil {
		return err
	}
	defer func() { _ = r.Body.Close() }()
	if _, err := io.Copy(w, r.Body); err != nil {
		return err
	}
	if r.StatusCode != http.StatusOK {
		return errors.New(r.Status)
	}
	return nil
}

// get prints what a URL answers.
func get(args []string) error {
	if len(args) != 1 {
		return errUsage
	}
	return fetch(os.Stdout, args[0])
}

func echoLines(c net.Conn) {
	defer func() { _ = c.Close() }()
	s := bufio.NewScanner(c)
	for s.Scan() {
		if _, err := fmt.Fprintf(c, "echo %s\n", s.Text()); err != nil {
			return
		}
	}
}

func accept(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go echoLines(c)
	}
}

func serveTCP(address string) error {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
	if err != nil {
		return err
	}
	return accept(l)
}

func serveUDP(address string) error {
	c, err := (&net.ListenConfig{}).ListenPacket(context.Background(), "udp", address)
	if err != nil {
		return err
	}
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(append([]byte("echo "), buf[:n]...), from); err != nil {
			return err
		}
	}
}

func serveGRPC(address string) error {
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	return s.Serve(l)
}

// listen echoes lines on a UNIX socket.
func listen(args []string) error {
	if len(args) != 1 {
		return errUsage
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", args[0])
	if err != nil {
		return err
	}
	fmt.Println("listening")
	return accept(l)
}

// dial sends a line and prints the answer.
func dial(args []string) error {
	if len(args) != 3 {
		return errUsage
	}
	c, err := (&net.Dialer{Timeout: patience}).DialContext(context.Background(), args[0], args[1])
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "%s\n", args[2]); err != nil {
		return err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return err
	}
	fmt.Print(line)
	return nil
}
