package debian

import (
	"bufio"
	"fmt"
	"io"
	"strings"
)

// Package names one binary package in one version.
type Package struct {
	Name         string
	Version      string
	Architecture string
	// SHA256 of the .deb file, 64 lower-case hexadecimal digits.
	SHA256 string
}

// String is name=version, as apt-get takes it.
func (p Package) String() string { return p.Name + "=" + p.Version }

// stanza is one paragraph of a control file (deb-control(5)). Names are lower case;
// only the first line of a folded field is kept.
type stanza map[string]string

// parseStanzas reads the output of apt-cache show.
func parseStanzas(r io.Reader) ([]stanza, error) {
	var all []stanza
	current := stanza{}
	end := func() {
		if len(current) > 0 {
			all = append(all, current)
			current = stanza{}
		}
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case line == "":
			end()
		case line[0] == ' ' || line[0] == '\t' || line[0] == '#':
		default:
			name, value, ok := strings.Cut(line, ":")
			if !ok {
				return nil, fmt.Errorf("control data: line %q has no colon", line)
			}
			current[strings.ToLower(name)] = strings.TrimSpace(value)
		}
	}
	end()
	return all, lines.Err()
}

func (s stanza) pkg() Package {
	return Package{Name: s["package"], Version: s["version"], Architecture: s["architecture"], SHA256: strings.ToLower(s["sha256"])}
}

// dependency returns the first package a meta package depends on that
// starts with prefix.
func (s stanza) dependency(prefix string) (string, bool) {
	for clause := range strings.SplitSeq(s["depends"], ",") {
		first, _, _ := strings.Cut(clause, "|")
		name, _, _ := strings.Cut(strings.TrimSpace(first), " ")
		if strings.HasPrefix(name, prefix) && name != s["package"] {
			return name, true
		}
	}
	return "", false
}
