package pod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/coffer-project/coffer/internal/host/notice"
)

// scores are how readily the kernel is to kill the machine when the node has no
// memory left (oom_score_adj, proc_pid_oom_score_adj(5)).
//
// The machine is all of the pod's memory, and would have what its shim has of
// containerd: next to no chance to be chosen, however much it takes. So it gets
// what the OCI specifications say. Of a pod in Kubernetes it is the containers'
// that tell its class (kubernetes@v1.35.4 pkg/kubelet/qos: -997 guaranteed, 1000
// best effort, between them by its request); the machine gets the lowest of
// those that there are, since it ends for all of them. The pause container's
// always says -998 (containerd v2.2.9 internal/cri/server/podsandbox,
// defaultSandboxOOMAdj): it counts until there is a container. Where nothing is
// said it is 0, as of any process.
type scores struct {
	mu         sync.Mutex
	containers map[string]int // by id
	sandbox    int            // without any
	now        *int           // as it was set last
	failed     bool
}

// want is what the machine is to have. Without containers it keeps what it has.
func (s *scores) want() int {
	switch {
	case len(s.containers) > 0:
		return slices.Min(slices.Collect(maps.Values(s.containers)))
	case s.now != nil:
		return *s.now
	default:
		return s.sandbox
	}
}

// score has the machine judged anew after a change. That it could not be is no
// reason to fail: the pod is told once.
func (p *Pod) score(ctx context.Context, change func(s *scores)) {
	m := p.Machine()
	s := &p.scores
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
	if want := s.want(); alive(m) && (s.now == nil || *s.now != want) {
		err := p.o.OOMScore(m.PID(), want)
		if err != nil && alive(m) && !s.failed {
			s.failed = true
			p.warn(ctx, notice.Degraded, "the machine's OOM score is not the pod's, so that the node, short of memory, may kill it sooner or later than it should: %v", err)
		}
		if err == nil {
			s.now = &want
		}
	}
}

// scoreContainer counts a container, if its bundle says something.
func (p *Pod) scoreContainer(ctx context.Context, id string, score *int) {
	if score == nil {
		return
	}
	p.score(ctx, func(s *scores) {
		if s.containers == nil {
			s.containers = map[string]int{}
		}
		s.containers[id] = *score
	})
}

// unscoreContainer forgets it.
func (p *Pod) unscoreContainer(ctx context.Context, id string) {
	p.score(ctx, func(s *scores) { delete(s.containers, id) })
}

// setOOMScore sets that of a child of this process. It is no error that the child
// has ended.
func setOOMScore(pid, score int) error {
	proc, err := os.OpenRoot("/proc/" + strconv.Itoa(pid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer proc.Close() //nolint:errcheck // what is written was closed
	// The directory is of one process for ever; whose the id is now is seen here.
	stat, err := proc.ReadFile("stat")
	if err != nil {
		return ended(err)
	}
	text := string(stat)
	if fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]); len(fields) < 2 || fields[1] != strconv.Itoa(os.Getpid()) {
		return nil // another's: ours has ended
	}
	f, err := proc.OpenFile("oom_score_adj", os.O_WRONLY, 0)
	if err != nil {
		return ended(err)
	}
	_, err = f.WriteString(strconv.Itoa(score))
	if err := ended(errors.Join(err, f.Close())); err != nil {
		return fmt.Errorf("set it to %d: %w (containerd and its shims need CAP_SYS_RESOURCE to lower one)", score, err)
	}
	return nil
}

// ended takes away that the process has.
func ended(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
