package podcgroup

import (
	"bufio"
	"path"
	"slices"
	"strconv"
	"strings"
)

// unlimited is more than any limit: version 1 says it with the largest multiple
// of a page.
const unlimited = 1 << 60

// Limit is how many bytes of memory the pod may have, as its own group says, the
// one above ours; 0: that says nothing.
func (g *Group) Limit() int64 {
	h, ok := g.memory()
	if !ok {
		return 0
	}
	file := "memory.limit_in_bytes"
	if h.unified {
		file = "memory.max"
	}
	text, err := g.tree.ReadFile(h.at(path.Dir(g.path), file))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n <= 0 || n >= unlimited {
		return 0
	}
	return n
}

// OutOfMemory reports whether the kernel has killed a process in the group for
// want of memory, and whether that was the pod's own limit; else a group above
// the pod's, or the node, had no more.
func (g *Group) OutOfMemory() (killed, own bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.removed {
		return false, false
	}
	now := g.counts()
	return now.kills > g.before.kills, now.refused > g.before.refused && g.Limit() > 0
}

// counts are the kernel's, which only grow.
type counts struct {
	// kills are processes that were killed, refused how often the limit of the
	// pod's group was met.
	kills, refused int64
}

func (g *Group) counts() counts {
	h, ok := g.memory()
	if !ok {
		return counts{}
	}
	pod := path.Dir(g.path)
	if !h.unified {
		return counts{
			kills:   g.number(h.at(g.path, "memory.oom_control"), "oom_kill"),
			refused: g.number(h.at(pod, "memory.failcnt"), ""),
		}
	}
	// A group whose parent does not pass on the controller has no file.
	events := h.at(g.path, "memory.events")
	if _, err := g.tree.ReadFile(events); err != nil {
		events = h.at(pod, "memory.events")
	}
	return counts{kills: g.number(events, "oom_kill"), refused: g.number(h.at(pod, "memory.events"), "oom")}
}

// number reads a file's value of a key, or its only one; 0: there is none.
func (g *Group) number(name, key string) int64 {
	text, err := g.tree.ReadFile(name)
	if err != nil {
		return 0
	}
	for s := bufio.NewScanner(strings.NewReader(string(text))); s.Scan(); {
		fields := strings.Fields(s.Text())
		if key != "" {
			if len(fields) != 2 || fields[0] != key {
				continue
			}
			fields = fields[1:]
		}
		if len(fields) == 1 {
			n, _ := strconv.ParseInt(fields[0], 10, 64)
			return n
		}
	}
	return 0
}

// memory is the hierarchy with the controller of memory.
func (g *Group) memory() (hierarchy, bool) {
	i := slices.IndexFunc(g.trees, func(h hierarchy) bool { return slices.Contains(h.controllers, "memory") })
	if i < 0 {
		return hierarchy{}, false
	}
	return g.trees[i], true
}
