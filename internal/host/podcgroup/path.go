package podcgroup

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// Bounds on a path: PATH_MAX and NAME_MAX of linux/limits.h.
const (
	maxPath = 4096
	maxName = 255
)

// Parse returns the path, below a hierarchy's mount point, of the group that a
// container runtime means: a path as it is ("/kubepods/burstable/podUID/ID"), or
// systemd's form SLICE:PREFIX:NAME ("kubepods-burstable-podUID.slice:cri-containerd:ID"),
// of which the slice's ancestors are in its name (systemd.slice(5)). Two levels
// at the least are expected of a path of neither: a group of the pod's own is
// never the top.
func Parse(cgroupsPath string) (string, error) {
	p, err := expand(cgroupsPath)
	if err != nil {
		return "", fmt.Errorf("linux.cgroupsPath: expected /PATH or SLICE:PREFIX:NAME, got %.200q: %w", cgroupsPath, err)
	}
	return p, nil
}

func expand(s string) (string, error) {
	switch {
	case s == "":
		return "", errors.New("it is empty")
	case len(s) > maxPath:
		return "", fmt.Errorf("it is longer than %d bytes", maxPath)
	case strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\uFFFD' }):
		return "", errors.New("it has characters that no group's name has")
	}
	if parts := strings.Split(s, ":"); len(parts) == 3 && !strings.Contains(s, "/") {
		return scope(parts[0], parts[1], parts[2])
	}
	p := path.Clean("/" + s)
	if p == "/" || strings.TrimSuffix("/"+strings.TrimPrefix(s, "/"), "/") != p {
		return "", errors.New("a clean path below the top has none of \"..\", \".\" and \"//\" in it")
	}
	return p, names(p)
}

// names checks each part of a path.
func names(p string) error {
	for name := range strings.SplitSeq(p[1:], "/") {
		if len(name) > maxName {
			return fmt.Errorf("one of its names is longer than %d bytes", maxName)
		}
	}
	return nil
}

const sliceSuffix = ".slice"

// scope is the path of systemd's unit PREFIX-NAME.scope in a slice; without a
// slice in the one of services.
func scope(slice, prefix, name string) (string, error) {
	if slice == "" {
		slice = "system" + sliceSuffix
	}
	base, ok := strings.CutSuffix(slice, sliceSuffix)
	if !ok || name == "" {
		return "", errors.New("a slice's name ends in .slice, and a unit has a name")
	}
	p := "/"
	if base != "-" { // the root slice
		above := ""
		for part := range strings.SplitSeq(base, "-") {
			if part == "" || part == "." || part == ".." {
				return "", errors.New("a slice's name has something before and after each '-'")
			}
			above += part
			p = path.Join(p, above+sliceSuffix)
			above += "-"
		}
	}
	if prefix != "" {
		name = prefix + "-" + name
	}
	p = path.Join(p, name+".scope")
	return p, names(p)
}
