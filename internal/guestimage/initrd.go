package guestimage

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/coffer-project/coffer/internal/guestimage/cpio"
	"github.com/coffer-project/coffer/internal/guestimage/manifest"
)

// contents gathers the initrd's objects by path.
type contents map[string]cpio.Entry

func (c contents) add(e cpio.Entry) error {
	if _, ok := c[e.Name]; ok {
		return fmt.Errorf("two things want to be /%s in the guest", e.Name)
	}
	c[e.Name] = e
	return nil
}

func (c contents) file(name string, mode uint32, data []byte) error {
	return c.add(cpio.Entry{Name: name, Mode: cpio.TypeRegular | mode, Data: data})
}

// resolve looks an absolute path up, following links in every part of it.
func (c contents) resolve(name string) (cpio.Entry, bool) {
	const maxLinks = 16
	rest := strings.Split(strings.Trim(path.Clean(name), "/"), "/")
	at := ""
	for links := 0; len(rest) > 0; {
		next := path.Join(at, rest[0])
		e, ok := c[next]
		if !ok {
			return cpio.Entry{}, false
		}
		rest = rest[1:]
		if e.Mode&cpio.TypeMask != cpio.TypeLink {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return cpio.Entry{}, false
		}
		target := string(e.Data)
		if !path.IsAbs(target) {
			target = path.Join("/", at, target)
		}
		rest = append(strings.Split(strings.Trim(path.Clean(target), "/"), "/"), rest...)
		at = ""
	}
	e, ok := c[at]
	return e, ok
}

// archive writes the objects in the order of their paths.
func archive(in contents) ([]byte, []manifest.Entry, error) {
	var out bytes.Buffer
	var entries []manifest.Entry
	w := cpio.NewWriter(&out)
	sorted := make([]cpio.Entry, 0, len(in))
	for _, e := range in {
		sorted = append(sorted, e)
	}
	slices.SortFunc(sorted, func(a, b cpio.Entry) int { return cmp.Compare(a.Name, b.Name) })
	for _, e := range sorted {
		if err := w.Add(e); err != nil {
			return nil, nil, err
		}
		listed := manifest.Entry{Path: "/" + e.Name, Mode: fmt.Sprintf("%07o", e.Mode)}
		switch e.Mode & cpio.TypeMask {
		case cpio.TypeRegular:
			sum := sha256.Sum256(e.Data)
			listed.Size, listed.SHA256 = int64(len(e.Data)), hex.EncodeToString(sum[:])
		case cpio.TypeLink:
			listed.Target = string(e.Data)
		}
		entries = append(entries, listed)
	}
	if err := w.Close(); err != nil {
		return nil, nil, err
	}
	return out.Bytes(), entries, nil
}
