// Package restapi is the HTTP interface that containers have to their guest, on
// 127.0.0.1:8006, as the guest components of Confidential Containers define it
// (api-server-rest): resources of the key broker below /cdh, tokens, evidence
// and the event log below /aa, and /info. Containers share the pod's network,
// and so its loopback address; nobody else reaches it.
//
// What it offers is decided by the measured configuration, in groups: see
// [ParseFeatures]. Without a word it is "resource", as elsewhere. With
// "attestation" a container can speak for the whole pod, in tokens and in
// evidence over data of its choice.
//
// Status codes and texts are those of the original, which answers most failures
// with 500 and a sentence. The sentence says why, in the words of the trustee
// where that refused; it never holds a secret, a token or a key.
package restapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coffer-project/coffer/secret"
)

// Address is where the interface is.
const Address = "127.0.0.1:8006"

// Bounds of the server.
const (
	// requestTimeout bounds the work on a request, as in the original.
	requestTimeout = 50 * time.Second
	// headerTimeout bounds the arrival of a request's head, readTimeout that
	// of all of it.
	headerTimeout = 5 * time.Second
	readTimeout   = 15 * time.Second
	writeTimeout  = requestTimeout + readTimeout
	idleTimeout   = 15 * time.Second
	shutdownGrace = 2 * time.Second

	maxHeader      = 16 << 10
	maxBody        = 64 << 10
	maxConnections = 1024
	// maxRequests are worked on at the same time; others wait for their turn.
	maxRequests = 64
)

// Features are the groups that are offered.
type Features struct{ Resource, Attestation bool }

// ParseFeatures reads a choice of groups: "none", "resource", "attestation" or
// "all"; "" is "resource".
func ParseFeatures(s string) (Features, error) {
	switch s {
	case "none":
		return Features{}, nil
	case "", "resource":
		return Features{Resource: true}, nil
	case "attestation":
		return Features{Attestation: true}, nil
	case "all":
		return Features{Resource: true, Attestation: true}, nil
	}
	return Features{}, fmt.Errorf("features of the REST API: expected none, resource, attestation or all, got %.32q", s)
}

// String is what [ParseFeatures] reads.
func (f Features) String() string {
	switch f {
	case Features{Resource: true}:
		return "resource"
	case Features{Attestation: true}:
		return "attestation"
	case Features{Resource: true, Attestation: true}:
		return "all"
	}
	return "none"
}

// Hub gives resources and tokens. Errors are shown to containers.
type Hub interface {
	// Resource gets what a resource URI names.
	Resource(ctx context.Context, uri string) (secret.Bytes, error)
	// Token gets a token of a kind ("kbs" or "coco_as").
	Token(ctx context.Context, kind string) (secret.Bytes, error)
}

// Evidencer makes evidence over data of the container's choice.
type Evidencer interface {
	// Evidence is that of the primary environment, a JSON document.
	Evidence(ctx context.Context, runtimeData []byte) ([]byte, error)
	// AdditionalEvidence is a JSON object with the evidence of each kind of
	// device by its name, and nothing at all if there are none.
	AdditionalEvidence(ctx context.Context, runtimeData []byte) ([]byte, error)
}

// Recorder measures events at run time. Errors that are not for the container's
// doing wrap [errors.ErrUnsupported] or [ErrNotEnabled]; others are shown to
// it.
type Recorder interface {
	Record(ctx context.Context, domain, operation, content string) error
}

// ErrNotEnabled says that events are not recorded in this guest.
var ErrNotEnabled = errors.New("runtime measurements are not enabled")

// Options configure a [Server].
type Options struct {
	// Version is the guest's, for /info.
	Version  string
	Features Features
	// Hub is required.
	Hub Hub
	// Evidencer and Recorder are for the group "attestation". Without one its
	// requests fail.
	Evidencer Evidencer
	Recorder  Recorder
	// TEE is the environment's name and Devices those of its devices, for
	// /info.
	TEE     string
	Devices []string
	// Logger is told of requests, at debug level: method, path and status.
	// Required.
	Logger *slog.Logger
}

// Server is the interface. It is safe for concurrent use.
type Server struct {
	o     Options
	turns chan struct{}
}

// New checks the options. It opens nothing.
func New(o Options) (*Server, error) {
	if o.Hub == nil || o.Logger == nil {
		return nil, errors.New("restapi: hub and logger are required")
	}
	return &Server{o: o, turns: make(chan struct{}, maxRequests)}, nil
}

// Listen opens [Address].
func Listen(ctx context.Context) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp4", Address)
	if err != nil {
		return nil, fmt.Errorf("restapi: %w", err)
	}
	return l, nil
}

// Serve answers requests until ctx ends, and closes l. Requests under way are
// given a moment to finish.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes:               maxHeader,
		Protocols:                    &protocols,
		DisableGeneralOptionsHandler: true,
		// What containers do wrong is not for the guest's log.
		ErrorLog:    slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	})
	defer stop()
	err := srv.Serve(limit(l, maxConnections))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("restapi: %w", errors.Join(err, srv.Close()))
}

// limit leaves connections beyond n in the kernel's queue.
func limit(l net.Listener, n int) net.Listener {
	return &limited{Listener: l, slots: make(chan struct{}, n), closed: make(chan struct{})}
}

type limited struct {
	net.Listener
	slots  chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &slotted{Conn: c, free: func() { <-l.slots }}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// slotted frees its slot once.
type slotted struct {
	net.Conn
	once sync.Once
	free func()
}

func (c *slotted) Close() error {
	defer c.once.Do(c.free)
	return c.Conn.Close()
}
