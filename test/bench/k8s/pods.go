package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	gort "runtime"
	"strings"
	"sync"
	"time"
)

// mostDoubling is how much longer twice as many pods may take than the machine's
// processors explain.
const mostDoubling = 1.3

// burst is one start of several pods at once.
type burst struct {
	wall float64 // seconds until every pod's container runs
	cpu  float64 // seconds of processors, of all shims and what they started
	free float64 // processors that nobody else used meanwhile
}

// startMany starts 1, 2, 4, 8 pods at once, each with one container, whose image
// it pulls.
//
// What a machine with P free processors needs at least for n pods that take c
// seconds of processors each, and w of time alone, is max(w, n·c/P). The
// CPU-normalised time is the measured one divided by that: what waiting for each
// other, and doing more work because there are others, cost. It is 1 for one
// pod.
func (b *bench) startMany(ctx context.Context) error {
	if err := b.startMachines(ctx); err != nil {
		return err
	}
	config, err := b.world.processConfig()
	if err != nil {
		return err
	}
	var counts []int
	for n := 1; n <= b.pods; n *= 2 {
		counts = append(counts, n)
	}
	const repeats = 9
	all := map[int][]burst{}
	for round := range repeats + 1 {
		for turn := range counts {
			n := counts[turn]
			if round%2 == 1 {
				n = counts[len(counts)-1-turn]
			}
			m, err := b.burst(ctx, b.coffer(config), n)
			if err != nil {
				return fmt.Errorf("%d pods: %w", n, err)
			}
			if round > 0 { // the first is for warmth
				all[n] = append(all[n], m)
			}
		}
	}
	b.reportMany(counts, all)
	return nil
}

// startMachines starts some in virtual machines. There is no target: the
// translator takes all processors for the time of a boot.
func (b *bench) startMachines(ctx context.Context) error {
	config, err := b.world.machineConfig(b.guest, machineMemory)
	if err != nil {
		return err
	}
	for _, n := range []int{1, 4} {
		m, err := b.burst(ctx, b.coffer(config), n)
		if err != nil {
			return fmt.Errorf("%d machines: %w", n, err)
		}
		name := fmt.Sprintf("pods/machines/%d", n)
		b.report.Add(name+"/wall", m.wall, "s", "")
		b.report.Add(name+"/cpu-per-pod", m.cpu/float64(n), "s", "")
	}
	return nil
}

func (b *bench) reportMany(counts []int, all map[int][]burst) {
	of := func(n int, f func(burst) float64) float64 {
		var list []float64
		for _, m := range all[n] {
			list = append(list, f(m))
		}
		return median(list)
	}
	wall := func(m burst) float64 { return m.wall }
	alone, work := of(1, wall), of(1, func(m burst) float64 { return m.cpu })
	for _, n := range counts {
		name := fmt.Sprintf("pods/%d", n)
		least := func(m burst) float64 { return max(alone, float64(n)*work/m.free) }
		normalised := of(n, func(m burst) float64 { return m.wall / least(m) })
		b.report.Add(name+"/wall", of(n, wall), "s", "")
		b.report.Add(name+"/cpu-per-pod", of(n, func(m burst) float64 { return m.cpu / float64(n) }), "s", "")
		b.report.Add(name+"/free-processors", of(n, func(m burst) float64 { return m.free }), "", "")
		if n > 1 {
			b.report.AtMost(name+"/normalised", normalised, "×", math.Pow(mostDoubling, math.Log2(float64(n))), "1 pod; processors' share")
		}
	}
}

// burst starts n pods at once and removes them again.
func (b *bench) burst(ctx context.Context, h handler, n int) (m burst, err error) {
	group, err := newGroup(fmt.Sprintf("bench-%d-%d", n, b.world.pods))
	if err != nil {
		return m, err
	}
	var shims []*shim
	defer func() {
		for _, s := range shims {
			if s.client != nil {
				err = errors.Join(err, s.end(ctx))
			}
		}
		err = errors.Join(err, group.remove(ctx))
	}()
	for range n {
		s, err := b.world.prepare(ctx, h)
		if err != nil {
			return m, err
		}
		s.cgroup = group.dir
		shims = append(shims, s)
	}
	before, err := processors()
	if err != nil {
		return m, err
	}
	begun := time.Now()
	errs := make([]error, n)
	var all sync.WaitGroup
	for i, s := range shims {
		all.Go(func() { errs[i] = s.wholePod(ctx) })
	}
	all.Wait()
	m.wall = time.Since(begun).Seconds()
	after, err := processors()
	if err := errors.Join(err, errors.Join(errs...)); err != nil {
		return m, err
	}
	if m.cpu, err = group.cpu(shims); err != nil {
		return m, err
	}
	// What is idle was free, and so was what the pods and this program took.
	m.free = min(float64(gort.NumCPU()), max(1, (after.idle-before.idle+m.cpu+after.own-before.own)/m.wall))
	return m, nil
}

// wholePod does all that containerd has a shim do until a container runs.
func (s *shim) wholePod(ctx context.Context) error {
	if err := s.connect(ctx); err != nil {
		return err
	}
	if err := s.boot(ctx); err != nil {
		return err
	}
	c, err := s.newContainer(s.pod.id + "-app")
	if err != nil {
		return err
	}
	if err := errors.Join(c.create(ctx), c.start(ctx)); err != nil {
		return err
	}
	s.first = c
	return nil
}

// use is what processors did, in seconds.
type use struct{ idle, own float64 }

// processors reads idle time and this program's own (proc_stat(5),
// getrusage(2)).
func processors() (u use, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return u, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	var label string
	var user, nice, system, idle, iowait float64
	if _, err := fmt.Sscan(line, &label, &user, &nice, &system, &idle, &iowait); err != nil {
		return u, fmt.Errorf("/proc/stat: %w", err)
	}
	const ticksPerSecond = 100 // USER_HZ
	u.idle = (idle + iowait) / ticksPerSecond
	u.own, err = ownTime()
	return u, err
}

// group is a cgroup that shims are started in; the kernel counts its time.
type group struct {
	path string
	dir  *os.File
}

const groupRoot = "/sys/fs/cgroup"

func newGroup(name string) (*group, error) {
	g := &group{path: filepath.Join(groupRoot, name)}
	err := os.Mkdir(g.path, 0o755)
	if err != nil {
		return nil, err
	}
	g.dir, err = os.Open(g.path)
	return g, err
}

// cpu is the time of the shims until they are in their pods' groups, and of these.
func (g *group) cpu(shims []*shim) (float64, error) {
	paths := []string{g.path}
	for _, s := range shims {
		paths = append(paths, filepath.Join(groupRoot, groupOf(s.pod.id)))
	}
	var sum float64
	for _, path := range paths {
		text, err := os.ReadFile(filepath.Join(path, "cpu.stat"))
		if errors.Is(err, fs.ErrNotExist) && path != g.path {
			continue
		}
		if err != nil {
			return 0, err
		}
		var usec float64
		if _, err := fmt.Sscanf(string(text), "usage_usec %f", &usec); err != nil {
			return 0, fmt.Errorf("%s/cpu.stat: %w", path, err)
		}
		sum += usec / 1e6
	}
	return sum, nil
}

// remove waits until the last process has been collected.
func (g *group) remove(ctx context.Context) error {
	_ = g.dir.Close()
	const limit, wait = 10 * time.Second, 10 * time.Millisecond
	for end := time.Now().Add(limit); ; {
		err := os.Remove(g.path)
		if err == nil || time.Now().After(end) {
			return err
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}
