package install

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/coffer-project/coffer/internal/boundedtoml"
)

// errNotChecked: containerd could not be asked.
var errNotChecked = errors.New("containerd did not check its configuration")

// dumped is a configuration as containerd prints it.
type dumped map[string]any

// dump has containerd print its configuration with all imports; nil where its
// program is not known, or the configuration is made from a template.
func (p *Plan) dump(ctx context.Context) (dumped, error) {
	c := p.Containerd
	if c.Program == "" || c.Template || c.Flavour != Plain {
		return nil, nil //nolint:nilnil // cannot be asked
	}
	argv := []string{c.Program, "--config", c.Config, "config", "dump"}
	if there, err := p.node.exists(c.Config); err != nil {
		return nil, err
	} else if !there {
		argv = []string{c.Program, "config", "default"} // as the daemon does
	}
	out, err := p.options.Exec(ctx, argv...)
	if err != nil {
		return nil, err
	}
	doc, err := boundedtoml.Decode(out, execOutput)
	if err != nil {
		return nil, fmt.Errorf("containerd config dump: %w", err)
	}
	return dumped(doc), nil
}

// runtimes is the table of runtimes of a plugin.
func (d dumped) runtimes(plugin string) map[string]any {
	return table(table(table(table(map[string]any(d), "plugins"), plugin), "containerd"), "runtimes")
}

// verify has containerd read its configuration again: our handlers are in it,
// and nothing else has changed.
func (p *Plan) verify(ctx context.Context) error {
	before := p.before
	if before == nil {
		return fmt.Errorf("%w: its program is not where it can be asked, or the configuration is generated at its start; look at `kubectl describe node` after the restart", errNotChecked)
	}
	after, err := p.dump(ctx)
	if err != nil {
		return fmt.Errorf("containerd does not read its configuration with our handlers: %w", err)
	}
	found := after.take(p.allHandlers())
	for _, h := range p.Handlers {
		if !slices.Contains(found, h) {
			return fmt.Errorf("containerd does not see the handler %s: another file that it imports replaces %s (see `%s --config %s config dump`)", h, p.Containerd.DropIn, p.Containerd.Program, p.Containerd.Config)
		}
	}
	before.take(p.allHandlers())
	delete(before, "imports")
	delete(after, "imports")
	// Where there is no file, the daemon prints its newest version.
	delete(before, "version")
	delete(after, "version")
	if changed := difference("", before, after); changed != "" {
		return fmt.Errorf("with our drop-in containerd would see another value of %s: please report this configuration", changed)
	}
	return nil
}

func (p *Plan) allHandlers() []string {
	all := slices.Clone(p.Handlers)
	if p.old != nil {
		all = append(all, p.old.Handlers...)
	}
	return all
}

// take removes the handlers from the tables of runtimes and names those that
// were there.
func (d dumped) take(handlers []string) []string {
	var found []string
	for _, plugin := range []string{criPlugin2, criPlugin3} {
		runtimes := d.runtimes(plugin)
		for _, h := range handlers {
			if _, ok := runtimes[h]; ok {
				delete(runtimes, h)
				found = append(found, h)
			}
		}
	}
	return found
}

func table(t map[string]any, key string) map[string]any {
	sub, _ := t[key].(map[string]any)
	return sub
}

// difference names the first key in which two tables differ.
func difference(at string, a, b map[string]any) string {
	keys := slices.Sorted(maps.Keys(a))
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	for _, k := range keys {
		below, ok1 := a[k].(map[string]any)
		over, ok2 := b[k].(map[string]any)
		if ok1 && ok2 {
			if d := difference(at+k+".", below, over); d != "" {
				return d
			}
		} else if !reflect.DeepEqual(a[k], b[k]) {
			return at + k
		}
	}
	return ""
}
