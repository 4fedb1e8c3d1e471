package install

import (
	"fmt"
	"path"
	"slices"
)

// Verify compares what is installed with its record. The record is nil where
// nothing is installed; problems are what differs.
func Verify(o Options) (record *Record, problems []string, err error) {
	if o, err = o.prepare(); err != nil {
		return nil, nil, err
	}
	n, err := o.open()
	if err != nil {
		return nil, nil, err
	}
	defer n.Close() //nolint:errcheck // a directory
	if record, err = n.load(); err != nil || record == nil {
		return record, nil, err
	}
	if !record.Complete {
		problems = append(problems, "an installation or its removal ended half-way")
	}
	for _, f := range record.Files {
		if f.Target != "" {
			if target, err := n.Readlink(rel(f.Path)); err != nil || target != f.Target {
				problems = append(problems, f.Path+" is not the link that was written")
			}
			continue
		}
		switch sum, err := n.digest(f.Path); {
		case err != nil:
			problems = append(problems, err.Error())
		case sum == "":
			problems = append(problems, f.Path+" is gone")
		case !slices.Contains(f.SHA256, sum):
			problems = append(problems, f.Path+" was changed since it was written")
		}
	}
	return record, append(problems, n.stale(record)...), nil
}

// stale finds what the node's containerd has become since.
func (n *node) stale(record *Record) []string {
	c := record.Containerd
	data, _, err := readConfig(n, c.Config)
	if err != nil {
		return []string{err.Error()}
	}
	if err := c.setVersion(c.Version); err != nil {
		return []string{err.Error()}
	}
	if c.main, err = parseMain(c.Config, data); err != nil {
		return []string{err.Error()}
	}
	if !c.Template && c.main.Importing(path.Dir(c.Config), c.DropIn) == "" {
		return []string{fmt.Sprintf("%s no longer imports %s", c.Config, c.DropIn)}
	}
	// The copy of the plugin's section, where there is one.
	section, err := c.configured(n)
	if err != nil {
		return []string{err.Error()}
	}
	if section == nil {
		return nil
	}
	text, _, err := readConfig(n, c.DropIn)
	if err != nil {
		return []string{err.Error()}
	}
	written, err := parseMain(c.DropIn, text)
	if err != nil {
		return []string{err.Error()}
	}
	if key := missingFrom(section, table(written.Plugins, criPlugin2)); key != "" {
		return []string{fmt.Sprintf("%s repeats the section of containerd's CRI plugin, and %s in it has changed in %s since: run coffer install again", c.DropIn, key, c.Config)}
	}
	return nil
}

// missingFrom names a key of a that b does not have, or has otherwise.
func missingFrom(a, b map[string]any) string {
	return difference("", a, intersect(b, a))
}

// intersect is b with only the keys of a.
func intersect(b, a map[string]any) map[string]any {
	out := make(map[string]any)
	for k, v := range b {
		below, ok := a[k]
		if !ok {
			continue
		}
		if sub, isTable := v.(map[string]any); isTable {
			if want, same := below.(map[string]any); same {
				v = intersect(sub, want)
			}
		}
		out[k] = v
	}
	return out
}
