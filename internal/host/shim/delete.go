package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	taskv2 "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/coffer-project/coffer/internal/host/pause"
	"github.com/coffer-project/coffer/internal/host/shim/podstate"
)

// containerd gives `delete` five seconds (io.containerd.timeout.shim.cleanup).
const (
	// leaveTime is for a daemon that is just ending by itself.
	leaveTime = time.Second
	// lookTime is between two looks at it.
	lookTime = 10 * time.Millisecond
	// lostLooks are how many of them find a state missing that nobody writes.
	lostLooks = 20
	// termTime is for one that was asked to.
	termTime = 1500 * time.Millisecond
	// cleanTime bounds the rest.
	cleanTime = 2 * time.Second
	// killed is the status of a container whose end nobody saw: 128+SIGKILL.
	killed = 128 + uint32(unix.SIGKILL)
	// pathFileLimit bounds stateFile.
	pathFileLimit = 4096
)

// delete removes what is left of a container. containerd calls it whenever the
// connection to a daemon ends, so mostly there is nothing to do: the daemon
// has removed everything, or still serves the other containers of its pod.
func (p Program) delete(ctx context.Context, proc Process, f flags) error {
	bundle := f.bundle
	if bundle == "" {
		bundle = proc.Dir
	}
	log := slog.New(slog.NewTextHandler(proc.Stderr, nil))
	exit := podstate.Exit{Status: killed, At: time.Now()}
	dir, err := stateOf(bundle, f.id)
	if err != nil {
		return err
	}
	if dir != "" {
		sockets := proc.SocketDir
		if address, err := os.ReadFile(filepath.Join(bundle, addressFile)); err == nil && len(address) > len(unixScheme) {
			sockets = filepath.Dir(strings.TrimPrefix(string(address), unixScheme))
		}
		d := deletion{cleaner: podstate.Cleaner{Release: p.Release, Lost: lostSocket(sockets, f.address), Logger: log}, dir: dir, id: f.id}
		if err := d.run(ctx, &exit); err != nil {
			return err
		}
	}
	out, err := proto.Marshal(&taskv2.DeleteResponse{Pid: exit.PID, ExitStatus: exit.Status, ExitedAt: timestamppb.New(exit.At)})
	if err != nil {
		return err
	}
	_, err = proc.Stdout.Write(out)
	return err
}

// stateOf is the directory of the container's pod; empty when there is none. A
// container that containerd connected with its pod's daemon by itself has no
// note of it in its own bundle, but beside, in its pod's.
func stateOf(bundle, id string) (string, error) {
	dir, err := readStateFile(bundle)
	if dir != "" || err != nil {
		return dir, err
	}
	pod, err := podOf(bundle, id)
	if err != nil || pod == id {
		return "", nil //nolint:nilerr // a broken bundle has to be removed, too
	}
	return readStateFile(filepath.Join(filepath.Dir(bundle), pod))
}

// lostSocket removes the socket of a pod whose state is lost, unless somebody
// listens on it.
func lostSocket(dir, containerd string) func(ctx context.Context, namespace, id string) error {
	return func(ctx context.Context, namespace, id string) error {
		path, err := socketPath(dir, containerd, namespace, id)
		if err != nil || reachable(ctx, path) {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
}

func readStateFile(bundle string) (string, error) {
	path := filepath.Join(bundle, stateFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("bundle: %w", err)
	}
	dir := string(data)
	if dir == "" {
		return "", nil // lost with the node's power
	}
	if len(dir) > pathFileLimit || !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || strings.Count(dir, "/") < 3 {
		return "", fmt.Errorf("bundle: %s: expected the path of a pod's directory, got %.80q", path, dir)
	}
	return dir, nil
}

// deletion is a `delete` of a container whose pod has a directory.
type deletion struct {
	cleaner podstate.Cleaner
	dir, id string
}

func (d deletion) run(ctx context.Context, exit *podstate.Exit) error {
	state, err := podstate.Read(d.dir)
	if errors.Is(err, fs.ErrNotExist) && !d.lost(ctx) {
		return nil // the daemon has removed it
	}
	if err != nil {
		return d.clean(ctx)
	}
	if e, ok := state.Exits[d.id]; ok {
		*exit = e
	}
	if d.id != state.ID {
		// The pod's own `delete` cleans up, unless it came before.
		if _, err := os.Lstat(state.Bundle); state.Shim.Alive() || err == nil {
			return nil
		}
		return d.clean(ctx)
	}
	if d.leave(ctx, state) {
		return nil
	}
	return d.clean(ctx)
}

// lost tells a pod's directory that has no state from one whose daemon is just
// making, or removing, it.
func (d deletion) lost(ctx context.Context) bool {
	for range lostLooks {
		if _, err := os.Lstat(d.dir); err != nil || !pause.For(ctx, lookTime) {
			return false
		}
		if _, err := podstate.Read(d.dir); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}

// leave gives the daemon time to end by itself, then a reason. It tells
// whether the daemon may go on.
func (d deletion) leave(ctx context.Context, state podstate.State) bool {
	now, err := d.await(ctx, state, leaveTime)
	if errors.Is(err, fs.ErrNotExist) {
		return true // it has removed everything, and at most tells containerd so
	}
	if !state.Shim.Alive() {
		return false
	}
	if err == nil && !slices.ContainsFunc(now.Machines, podstate.Process.Alive) && answers(ctx, state.Socket, d.id) {
		return true // it has containers whose ends containerd has not asked for yet
	}
	d.cleaner.Logger.WarnContext(ctx, "ending the shim of a pod that containerd has given up", "pod", d.id, "pid", state.Shim.PID)
	if err := state.Shim.Signal(unix.SIGTERM); err != nil {
		return false
	}
	_, err = d.await(ctx, state, termTime)
	return errors.Is(err, fs.ErrNotExist)
}

// await waits for a while until the daemon has ended or removed the pod's
// directory. It returns the state as it is then.
func (d deletion) await(ctx context.Context, state podstate.State, limit time.Duration) (podstate.State, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		now, err := podstate.Read(d.dir)
		if errors.Is(err, fs.ErrNotExist) || !state.Shim.Alive() || !pause.For(ctx, lookTime) {
			return now, err
		}
	}
}

func (d deletion) clean(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cleanTime)
	defer cancel()
	return d.cleaner.Clean(ctx, d.dir)
}

// answers asks the daemon to end if it has nothing to do any more, and tells
// whether it is well.
func answers(ctx context.Context, socket, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}
	client := ttrpc.NewClient(conn)
	defer func() { _ = client.Close() }()
	_, err = taskv2.NewTTRPCTaskClient(client).Shutdown(ctx, &taskv2.ShutdownRequest{ID: id})
	return err == nil || ctx.Err() == nil && !errors.Is(err, ttrpc.ErrClosed)
}
