package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
	"github.com/coffer-project/coffer/tee/softtee/softport"
)

// stub answers Hello and Shutdown. The other methods are the nil interface's:
// no test calls them.
type stub struct {
	agentapi.AgentService
	bootID   [16]byte
	hostData []byte
	stop     context.CancelFunc
}

func (s *stub) Hello(context.Context, *agentapi.HelloRequest) (*agentapi.HelloResponse, error) {
	return &agentapi.HelloResponse{
		Version: channel.MaxVersion, BootId: s.bootID[:], Build: "testguest", Tee: "snp", Simulated: true,
		Sealed: len(s.hostData) > 0, InitdataDigest: s.hostData,
		BootPhases: []*agentapi.BootPhase{{Name: "stub", AtNs: 1}},
	}, nil
}

func (s *stub) Shutdown(context.Context, *agentapi.ShutdownRequest) (*agentapi.ShutdownResponse, error) {
	time.AfterFunc(200*time.Millisecond, s.stop) // lets the answer out
	return &agentapi.ShutdownResponse{}, nil
}

func serveAgent() error {
	ctx, stop := context.WithCancel(context.Background())
	s := &stub{stop: stop}
	if _, err := rand.Read(s.bootID[:]); err != nil {
		return err
	}
	attester := softport.New(func(context.Context) (io.ReadWriteCloser, error) { return openPort(softport.PortName) })
	var err error
	if s.hostData, err = attester.InitData(ctx); err != nil {
		fmt.Println("testguest: software TEE:", err)
	}
	for ctx.Err() == nil {
		port, err := openPort(channel.SerialPort)
		if err != nil {
			return err
		}
		session, err := channel.Accept(ctx, port, s.bootID)
		if err != nil {
			_ = port.Close()
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}
		serveSession(ctx, session, s)
		_ = session.Close()
	}
	return nil
}

func serveSession(ctx context.Context, session *channel.Session, s *stub) {
	for {
		streams := make(chan net.Conn, 1)
		go func() {
			defer close(streams)
			if conn, err := session.AcceptStream(); err == nil {
				streams <- conn
			}
		}()
		select {
		case <-ctx.Done():
			return
		case conn, ok := <-streams:
			if !ok {
				return
			}
			go serveStream(ctx, conn, s)
		}
	}
}

func serveStream(ctx context.Context, conn net.Conn, s *stub) {
	header, err := channel.ReadHeader(conn)
	if err != nil {
		_ = conn.Close()
		return
	}
	if err := channel.WriteReply(conn, nil); err != nil {
		return
	}
	switch header.GetKind() {
	case agentapi.StreamHeader_CONTROL:
		server, err := ttrpc.NewServer()
		if err != nil {
			return
		}
		agentapi.RegisterAgentService(server, s)
		_ = server.Serve(ctx, &oneConn{conn: conn, done: ctx.Done()})
	case agentapi.StreamHeader_EVENTS:
		for i := range 3 {
			event := &agentapi.Event{Sequence: uint64(i), Body: &agentapi.Event_Oom{Oom: &agentapi.OOM{ContainerId: "c"}}}
			if channel.WriteMessage(conn, event) != nil {
				return
			}
		}
		_ = conn.Close()
	default:
		_, _ = io.Copy(conn, conn)
		_ = conn.Close()
	}
}

// oneConn is a listener for a connection that is already there.
type oneConn struct {
	conn net.Conn
	done <-chan struct{}
	used bool
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.used {
		l.used = true
		return l.conn, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }
