package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/coffer-project/coffer/internal/install/conffile"
)

// Flavour is who configures and starts containerd.
type Flavour string

// Flavours of containerd.
const (
	// Plain is containerd as a service of its own.
	Plain Flavour = "containerd"
	// K3s and RKE2 start their own and generate its configuration.
	K3s  Flavour = "k3s"
	RKE2 Flavour = "rke2"
)

// Flavours are all there are.
func Flavours() []Flavour { return []Flavour{Plain, K3s, RKE2} }

func flavourNames() string { return "containerd, k3s or rke2" }

// Containerd is the node's containerd and how it is told of our handlers.
type Containerd struct {
	Flavour Flavour `json:"flavour"`
	// Program is its path on the node; empty where it is not known.
	Program string `json:"program,omitempty"`
	Version string `json:"version"`
	Major   int    `json:"-"`
	Minor   int    `json:"-"`
	// Config is the main file, which may not exist.
	Config string `json:"config"`
	// ConfigVersion is the version of the main file, and so of the drop-in.
	ConfigVersion int `json:"config_version"`
	// DropIn is the path of our file.
	DropIn string `json:"drop_in"`
	// Import is what the main file has to import; empty: it does already.
	Import string `json:"import,omitempty"`
	// Template says that the drop-in is a template, from which k3s or RKE2 make
	// the whole configuration.
	Template bool `json:"template,omitempty"`
	// Units are the services whose restart makes containerd read it.
	Units []string `json:"units"`

	main *conffile.Main
}

// Oldest containerd that shims of this project work with.
const minMajor, minMinor = 1, 6

var versionRE = regexp.MustCompile(`\bv?(\d{1,3})\.(\d{1,3})\.\d{1,4}\S*`)

// discover finds containerd on the node and refuses one that cannot be used.
func discover(ctx context.Context, o Options, n *node) (*Containerd, error) {
	c := &Containerd{Flavour: o.Flavour}
	if c.Flavour == "" {
		var err error
		if c.Flavour, err = flavour(n); err != nil {
			return nil, err
		}
	}
	if c.Flavour != Plain {
		return c, c.embedded(o, n)
	}
	c.Units = []string{"containerd.service"}
	if c.Config = o.Config; c.Config == "" {
		c.Config = "/etc/containerd/config.toml"
	}
	if err := c.askVersion(ctx, o, n); err != nil {
		return nil, err
	}
	data, there, err := readConfig(n, c.Config)
	if err != nil {
		return nil, err
	}
	if c.main, err = parseMain(c.Config, data); err != nil {
		return nil, err
	}
	if err := c.configVersion(there); err != nil {
		return nil, err
	}
	dir := path.Dir(c.Config)
	c.DropIn = path.Join(dir, "conf.d", "coffer.toml")
	if c.main.Importing(dir, c.DropIn) == "" {
		// A pattern, though it means one file: a file that is gone is no error then.
		c.Import = path.Join(dir, "conf.d", "coffer*.toml")
	}
	return c, nil
}

const rancher = "/var/lib/rancher"

func flavour(n *node) (Flavour, error) {
	var found []Flavour
	for f, p := range map[Flavour]string{K3s: rancher + "/k3s/agent/etc/containerd/config.toml", RKE2: rancher + "/rke2/agent/etc/containerd/config.toml"} {
		if there, err := n.exists(p); err != nil {
			return "", err
		} else if there {
			found = append(found, f)
		}
	}
	plain, err := n.exists("/etc/containerd/config.toml")
	if err != nil {
		return "", err
	}
	if plain || len(found) == 0 && program(n) != "" {
		found = append(found, Plain)
	}
	slices.Sort(found)
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return "", fmt.Errorf("this node has the files of several: %v (say which one the kubelet uses with --runtime)", found)
	}
	for _, p := range []string{"/usr/bin/crio", "/usr/local/bin/crio", "/etc/crio/crio.conf"} {
		if there, err := n.exists(p); err == nil && there {
			return "", fmt.Errorf("this node has CRI-O (%s) and no containerd: CRI-O is not supported, the runtime needs containerd 1.6 or newer", p)
		}
	}
	return "", errors.New("no containerd was found: neither /etc/containerd/config.toml nor its program in /usr/local/bin or /usr/bin (install containerd 1.6 or newer, or name its file with --containerd-config and --runtime)")
}

func program(n *node) string {
	return n.firstProgram("/usr/local/bin/containerd", "/usr/bin/containerd", "/usr/local/sbin/containerd", "/usr/sbin/containerd")
}

func (n *node) firstProgram(places ...string) string {
	for _, p := range places {
		// A link may lead anywhere: the program runs inside the node's root.
		if info, err := n.Lstat(rel(p)); err == nil && (info.Mode()&fs.ModeSymlink != 0 || info.Mode().IsRegular() && info.Mode()&0o111 != 0) {
			return p
		}
	}
	return ""
}

func (c *Containerd) askVersion(ctx context.Context, o Options, n *node) error {
	c.Program = program(n)
	text := o.Version
	if text == "" {
		if c.Program == "" {
			return errors.New("containerd's version is not known: its program is not in /usr/local/bin or /usr/bin of the node (give --containerd-version)")
		}
		out, err := o.Exec(ctx, c.Program, "--version")
		if err != nil {
			return fmt.Errorf("containerd's version is not known: %w (give --containerd-version)", err)
		}
		text = string(out)
	}
	return c.setVersion(text)
}

func (c *Containerd) setVersion(text string) error {
	m := versionRE.FindStringSubmatch(text)
	if m == nil {
		return fmt.Errorf("containerd's version: expected N.N.N, got %.80q", text)
	}
	c.Version = strings.TrimPrefix(m[0], "v")
	c.Major, _ = strconv.Atoi(m[1]) // three digits
	c.Minor, _ = strconv.Atoi(m[2])
	if c.Major < minMajor || c.Major == minMajor && c.Minor < minMinor {
		return fmt.Errorf("containerd %s is too old: expected %d.%d or newer (update it)", c.Version, minMajor, minMinor)
	}
	return nil
}

// greatest is the newest configuration version that the daemon reads: 2 until
// 1.7, 3 from 2.0, 4 from 2.3 (containerd's version.ConfigVersion).
func (c *Containerd) greatest() int {
	switch {
	case c.Major < 2:
		return 2
	case c.Major == 2 && c.Minor < 3:
		return 3
	}
	return 4
}

func (c *Containerd) configVersion(there bool) error {
	for _, p := range c.main.Disabled {
		if p == "cri" || p == criPlugin2 || p == criPlugin3 {
			return fmt.Errorf("containerd's configuration %s turns its CRI plugin off (disabled_plugins has %q): the kubelet cannot use this containerd (remove it from the list)", c.Config, p)
		}
	}
	switch v := c.main.Version; {
	case !there:
		c.ConfigVersion = c.greatest()
	case v >= 2 && v <= c.greatest():
		c.ConfigVersion = v
	case v < 2:
		return fmt.Errorf("containerd's configuration %s is of version %d: expected 2 to %d (see `containerd config migrate`, or write `version = 2` and full plugin names)", c.Config, max(v, 1), c.greatest())
	default:
		return fmt.Errorf("containerd's configuration %s is of version %d, but containerd %s reads versions 2 to %d", c.Config, v, c.Version, c.greatest())
	}
	return nil
}

func parseMain(p string, data []byte) (*conffile.Main, error) {
	m, err := conffile.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("containerd's configuration %s: %w", p, err)
	}
	return m, nil
}

// readConfig reads a file that need not be there.
func readConfig(n *node, p string) (data []byte, there bool, err error) {
	f, err := n.Open(rel(p))
	if errors.Is(err, fs.ErrNotExist) {
		if dangling, err := n.exists(p); err != nil || dangling {
			return nil, false, fmt.Errorf("containerd's configuration %s is a link to nothing", p)
		}
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("containerd's configuration %s: %w", p, cause(err))
	}
	defer f.Close() //nolint:errcheck // only read
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, false, fmt.Errorf("containerd's configuration %s: expected a regular file", p)
	}
	if data, err = io.ReadAll(io.LimitReader(f, conffile.MaxBytes+1)); err != nil {
		return nil, false, fmt.Errorf("containerd's configuration %s: %w", p, cause(err))
	}
	if len(data) > conffile.MaxBytes {
		return nil, false, fmt.Errorf("containerd's configuration %s: expected at most %d bytes, got more", p, conffile.MaxBytes)
	}
	return data, true, nil
}

// embedded is the containerd of k3s or RKE2. They generate its main file when
// they start: newer ones let it import config-v3.toml.d/*.toml, older ones make
// it from a template, which may extend the one that is built in. (k3s
// documentation, "Configuring containerd" and "Base template".)
func (c *Containerd) embedded(o Options, n *node) error {
	dir := path.Join(rancher, string(c.Flavour), "agent/etc/containerd")
	c.Units = []string{"k3s.service", "k3s-agent.service"}
	if c.Flavour == RKE2 {
		c.Units = []string{"rke2-server.service", "rke2-agent.service"}
	}
	c.Config = path.Join(dir, "config.toml")
	if o.Config != "" && o.Config != c.Config {
		return fmt.Errorf("containerd config: %s generates %s, expected no other, got %s", c.Flavour, c.Config, o.Config)
	}
	data, there, err := readConfig(n, c.Config)
	if err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("%s has not generated %s yet (start it once)", c.Flavour, c.Config)
	}
	if c.main, err = parseMain(c.Config, data); err != nil {
		return err
	}
	version := o.Version
	if version == "" {
		version = map[bool]string{true: "2.0.0", false: "1.7.0"}[c.main.Version >= 3]
	}
	if err := c.setVersion(version); err != nil {
		return err
	}
	if err := c.configVersion(true); err != nil {
		return err
	}
	name := "config.toml"
	if c.ConfigVersion >= 3 {
		name = "config-v3.toml"
	}
	// A drop-in replaces a whole section before containerd 2.0, a template does not.
	c.DropIn = path.Join(dir, name+".d", "coffer.toml")
	if c.Major < 2 || c.main.Importing(dir, c.DropIn) == "" {
		c.DropIn, c.Template = path.Join(dir, name+".tmpl"), true
	}
	return nil
}

// section is the CRI plugin's section in effect without our drop-in, where the
// drop-in has to repeat it: containerd before 2.0 replaces sections of plugins,
// later ones merge them. (Seen in `containerd config dump` of 1.6.20 and of
// 2.2.9 and 2.4.2.) A table of runtimes replaces that of the defaults, which then
// stands in it too.
func (c *Containerd) section(n *node, before dumped) (map[string]any, error) {
	section, err := c.configured(n)
	if err != nil || section == nil || table(table(section, "containerd"), "runtimes") != nil {
		return section, err
	}
	runtimes := maps.Clone(before.runtimes(criPlugin2))
	maps.DeleteFunc(runtimes, func(name string, _ any) bool {
		return slices.ContainsFunc(Handlers(), func(h Handler) bool { return h.Name == name })
	})
	if len(runtimes) == 0 {
		runtimes = map[string]any{"runc": map[string]any{"runtime_type": "io.containerd.runc.v2"}}
	}
	return merge(section, map[string]any{"containerd": map[string]any{"runtimes": runtimes}}), nil
}

// configured is the section as the files have it; nil where it need not be
// repeated.
func (c *Containerd) configured(n *node) (map[string]any, error) {
	if c.Major >= 2 || c.Template {
		return nil, nil
	}
	section := map[string]any{}
	seen := map[string]bool{c.DropIn: true}
	for pending := []string{c.Config}; len(pending) > 0; pending = pending[1:] {
		p := pending[0]
		if seen[p] {
			continue
		}
		if seen[p] = true; len(seen) > maxImports {
			return nil, fmt.Errorf("containerd's configuration %s imports more than %d files", c.Config, maxImports)
		}
		data, there, err := readConfig(n, p)
		if err != nil {
			return nil, err
		}
		if !there && p != c.Config {
			return nil, fmt.Errorf("containerd's configuration %s imports %s, which does not exist: containerd would not start", c.Config, p)
		}
		m, err := parseMain(p, data)
		if err != nil {
			return nil, err
		}
		if s, ok := m.Plugins[criPlugin2].(map[string]any); ok {
			section = s
		}
		for _, pattern := range m.Imports {
			matches, err := n.glob(path.Dir(p), pattern)
			if err != nil {
				return nil, err
			}
			pending = append(pending, matches...)
		}
	}
	return section, nil
}

// maxImports bounds the files of a configuration.
const maxImports = 256

// glob is what containerd reads for a pattern.
func (n *node) glob(dir, pattern string) ([]string, error) {
	if pattern = path.Clean(pattern); !path.IsAbs(pattern) {
		pattern = path.Join(dir, pattern)
	}
	if !strings.Contains(pattern, "*") {
		return []string{pattern}, nil
	}
	matches, err := fs.Glob(n.FS(), rel(pattern))
	for i := range matches {
		matches[i] = "/" + matches[i]
	}
	return matches, err
}
