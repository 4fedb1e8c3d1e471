package faults

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/coffer-project/coffer/internal/agentapi"
	"github.com/coffer-project/coffer/internal/agentapi/channel"
)

// liarPrefix begins the name under which this program is an agent that lies; how
// it does follows.
const liarPrefix = "coffer-liar-"

// liar makes an agent that lies, and returns its path.
func (n *node) liar(lie string) string {
	n.t.Helper()
	self, err := os.Executable()
	if err != nil {
		n.t.Fatal(err)
	}
	path := filepath.Join(n.dir, liarPrefix+lie)
	if err := os.Symlink(self, path); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// children are a process's, of all its threads.
func (n *node) children(pid int) string {
	var all strings.Builder
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, t := range tasks {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		all.Write(data)
		all.WriteByte(' ')
	}
	return all.String()
}

func atoi(s string) int {
	i, _ := strconv.Atoi(s)
	return i
}

// beLiar serves the agent's protocol on the descriptor that an agent gets.
func beLiar(lie string) int {
	if lie == "deaf" {
		forever()
	}
	conn, err := net.FileConn(os.NewFile(3, "host"))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	l := &liar{lie: lie}
	if _, err := rand.Read(l.boot[:]); err != nil {
		return 1
	}
	session, err := channel.Accept(context.Background(), conn, l.boot)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if lie == "dies" {
		fmt.Println("panic: the guest is broken: \x1b[31mred\x1b[0m")
		return 3
	}
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return 0
		}
		go l.serve(stream)
	}
}

func forever() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	for range signals {
	}
}

// liar answers calls, but for those that its lie is about.
type liar struct {
	lie  string
	boot [16]byte
	wait sync.Map // container or exec → chan
}

func (l *liar) serve(conn net.Conn) {
	header, err := channel.ReadHeader(conn)
	if err != nil {
		return
	}
	if l.lie == "hangs-Streams" && header.GetKind() != agentapi.StreamHeader_CONTROL {
		return
	}
	if channel.WriteReply(conn, nil) != nil {
		return
	}
	switch header.GetKind() {
	case agentapi.StreamHeader_CONTROL:
		server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(l.intercept))
		if err != nil {
			return
		}
		agentapi.RegisterAgentService(server, l)
		_ = server.Serve(context.Background(), &oneConn{conn: conn, closed: make(chan struct{})})
	case agentapi.StreamHeader_EVENTS:
		l.events(conn)
	case agentapi.StreamHeader_STDOUT, agentapi.StreamHeader_STDERR:
		l.output(conn, header.GetContainerId())
	case agentapi.StreamHeader_STDIN:
		_, _ = io.Copy(io.Discard, conn)
	default:
		_ = conn.Close()
	}
}

// intercept lets calls hang, or refuses them.
func (l *liar) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	name := info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]
	switch {
	case l.lie == "hangs-"+name:
		select {}
	case l.lie == "refuses" && name == "CreateContainer":
		st, err := status.New(codes.PermissionDenied, "no\x1b[2J\x07 "+strings.Repeat("never ", 100_000)).WithDetails(&agentapi.Refusal{
			Rule: "ru\x1b[31mle", Path: strings.Repeat("p", 1<<20), Expected: "a\nb\x00c", Got: "\u202egnp.exe", Help: "\xe2\x80\xaehelp",
		})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	case l.lie == "errs":
		if name != "Hello" {
			return nil, status.Error(codes.Internal, "\x1b]0;owned\x07"+strings.Repeat("x", 1<<20))
		}
	}
	return method(ctx, unmarshal)
}

// events are of containers that nobody has, numbered as they should not be.
func (l *liar) events(conn net.Conn) {
	if l.lie != "events" {
		return
	}
	for i := 0; ; i++ {
		e := &agentapi.Event{Sequence: uint64(i), Body: &agentapi.Event_Oom{Oom: &agentapi.OOM{ContainerId: strings.Repeat("x", i%4096)}}}
		if i%3 == 0 {
			e.Sequence = 1<<64 - 1
		}
		if i%5 == 0 {
			e.Body = nil
		}
		if channel.WriteMessage(conn, e) != nil {
			return
		}
	}
}

func (l *liar) output(conn net.Conn, id string) {
	switch l.lie {
	case "output":
	case "silence":
		return // open for ever
	case "exits":
		_ = conn.Close()
		return
	default:
		<-l.ended(id)
		_ = conn.Close()
		return
	}
	line := []byte(strings.Repeat("y\n", 32<<10))
	for {
		if _, err := conn.Write(line); err != nil {
			return
		}
	}
}

func (l *liar) ended(id string) chan struct{} {
	c, _ := l.wait.LoadOrStore(id, make(chan struct{}))
	return c.(chan struct{})
}

func (l *liar) Hello(context.Context, *agentapi.HelloRequest) (*agentapi.HelloResponse, error) {
	return &agentapi.HelloResponse{Version: channel.MaxVersion, BootId: l.boot[:], Build: "liar\x1b[31m" + strings.Repeat("z", 1000)}, nil
}

func (l *liar) CreateSandbox(context.Context, *agentapi.CreateSandboxRequest) (*agentapi.CreateSandboxResponse, error) {
	return &agentapi.CreateSandboxResponse{}, nil
}

func (l *liar) UpdateNetwork(context.Context, *agentapi.UpdateNetworkRequest) (*agentapi.UpdateNetworkResponse, error) {
	return &agentapi.UpdateNetworkResponse{}, nil
}

func (l *liar) CreateContainer(context.Context, *agentapi.CreateContainerRequest) (*agentapi.CreateContainerResponse, error) {
	return &agentapi.CreateContainerResponse{}, nil
}

func (l *liar) Start(context.Context, *agentapi.StartRequest) (*agentapi.StartResponse, error) {
	return &agentapi.StartResponse{}, nil
}

func (l *liar) Exec(context.Context, *agentapi.ExecRequest) (*agentapi.ExecResponse, error) {
	return &agentapi.ExecResponse{}, nil
}

func (l *liar) Signal(_ context.Context, r *agentapi.SignalRequest) (*agentapi.SignalResponse, error) {
	defer func() { _ = recover() }() // signalled before
	close(l.ended(r.GetContainerId()))
	return &agentapi.SignalResponse{}, nil
}

func (l *liar) Resize(context.Context, *agentapi.ResizeRequest) (*agentapi.ResizeResponse, error) {
	return &agentapi.ResizeResponse{}, nil
}

func (l *liar) CloseStdin(context.Context, *agentapi.CloseStdinRequest) (*agentapi.CloseStdinResponse, error) {
	return &agentapi.CloseStdinResponse{}, nil
}

func (l *liar) Wait(_ context.Context, r *agentapi.WaitRequest) (*agentapi.WaitResponse, error) {
	if l.lie == "exits" {
		// At once, and long before it began.
		return &agentapi.WaitResponse{ExitCode: 1<<32 - 7, ExitedAt: -1 << 62, Reason: "\x1b[2J" + strings.Repeat("r", 1<<20)}, nil
	}
	<-l.ended(r.GetContainerId())
	return &agentapi.WaitResponse{ExitCode: 137}, nil
}

func (l *liar) Update(context.Context, *agentapi.UpdateRequest) (*agentapi.UpdateResponse, error) {
	return &agentapi.UpdateResponse{}, nil
}

func (l *liar) Stats(context.Context, *agentapi.StatsRequest) (*agentapi.StatsResponse, error) {
	const most = 1<<64 - 1
	return &agentapi.StatsResponse{MemoryBytes: most, CpuUsageNs: most, Pids: most, MemoryInactiveFileBytes: most, OomKills: most, PageFaults: most, CpuThrottledNs: most}, nil
}

func (l *liar) Delete(context.Context, *agentapi.DeleteRequest) (*agentapi.DeleteResponse, error) {
	return &agentapi.DeleteResponse{}, nil
}

func (l *liar) PutFiles(context.Context, *agentapi.PutFilesRequest) (*agentapi.PutFilesResponse, error) {
	return &agentapi.PutFilesResponse{}, nil
}

func (l *liar) AttachVolume(context.Context, *agentapi.AttachVolumeRequest) (*agentapi.AttachVolumeResponse, error) {
	return &agentapi.AttachVolumeResponse{}, nil
}

func (l *liar) TerminationMessage(context.Context, *agentapi.TerminationMessageRequest) (*agentapi.TerminationMessageResponse, error) {
	return &agentapi.TerminationMessageResponse{}, nil
}

func (l *liar) Shutdown(context.Context, *agentapi.ShutdownRequest) (*agentapi.ShutdownResponse, error) {
	time.AfterFunc(50*time.Millisecond, func() { os.Exit(0) })
	return &agentapi.ShutdownResponse{}, nil
}

// oneConn is a listener for a connection that is there already.
type oneConn struct {
	mu     sync.Mutex
	conn   net.Conn
	closed chan struct{}
}

func (o *oneConn) Accept() (net.Conn, error) {
	o.mu.Lock()
	conn := o.conn
	o.conn = nil
	o.mu.Unlock()
	if conn != nil {
		return conn, nil
	}
	<-o.closed
	return nil, net.ErrClosed
}

func (o *oneConn) Close() error   { return nil }
func (o *oneConn) Addr() net.Addr { return &net.UnixAddr{} }
