package podpolicy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

func (v *validator) volume(path string, vol Volume) {
	v.foreign(path, vol)
	if vol.Group != nil && *vol.Group > maxID {
		v.bad(path+".group", "expected at most %d, got %d", uint32(maxID), *vol.Group)
	}
	switch vol.Kind {
	case VolumeEphemeral:
		if vol.Medium != "" && vol.Medium != MediumDisk && vol.Medium != MediumMemory {
			v.bad(path+".medium", "expected disk or memory, got %s", quote(string(vol.Medium)))
		}
		if vol.Size.Host != "" {
			v.bad(path+".size", "the size of a volume is no slot")
		}
	case VolumeFiles:
		v.files(path, vol)
	case VolumeBlock:
		if vol.Key == "" {
			v.bad(path+".key", "expected the KBS URI of the volume's key: a block volume that is not encrypted would be the host's")
		} else if err := checkResourceURI(vol.Key); err != nil {
			v.bad(path+".key", "%s", err)
		}
		if vol.Filesystem != "" && vol.Filesystem != "ext4" {
			v.bad(path+".filesystem", `expected "ext4", or nothing for a volume that containers have as a device, got %s`, quote(vol.Filesystem))
		}
	default:
		v.bad(path+".kind", "expected ephemeral, files or block, got %s", quote(string(vol.Kind)))
	}
}

// foreign reports fields that belong to another kind of volume.
func (v *validator) foreign(path string, vol Volume) {
	for _, f := range []struct {
		name string
		set  bool
		kind VolumeKind
	}{
		{"filesystem", vol.Filesystem != "", VolumeBlock},
		{"host", vol.Host != nil, VolumeFiles},
		{"key", vol.Key != "", VolumeBlock},
		{"medium", vol.Medium != "", VolumeEphemeral},
		{"mode", vol.Mode != "", VolumeFiles},
		{"modes", vol.Modes != nil, VolumeFiles},
		{"pinned", vol.Pinned != nil, VolumeFiles},
		{"resources", vol.Resources != nil, VolumeFiles},
		{"sealed", vol.Sealed != nil, VolumeFiles},
		{"size", vol.Size != Memory{}, VolumeEphemeral},
	} {
		if f.set && f.kind != vol.Kind {
			v.bad(path+"."+f.name, "belongs to %s volumes, this one is %s", f.kind, quote(string(vol.Kind)))
		}
	}
}

func (v *validator) files(path string, vol Volume) {
	names := &fileNames{v: v, seen: map[string]bool{}}
	v.fileMap(path+".pinned", vol.Pinned, names, func(s string) error {
		if !isSHA256(s) {
			return fmt.Errorf("expected sha256: and 64 lower-case hex digits, got %s", quote(s))
		}
		return nil
	})
	v.fileMap(path+".sealed", vol.Sealed, names, checkSealed)
	v.fileMap(path+".resources", vol.Resources, names, checkResourceURI)
	if vol.Host != nil {
		v.hostFiles(path+".host", vol.Host, names)
	}
	names.nesting(path)
	v.mode(path+".mode", vol.Mode)
	if v.count(path+".modes", len(vol.Modes), maxFiles) {
		for _, name := range slices.Sorted(maps.Keys(vol.Modes)) {
			p := keyPath(path+".modes", name)
			if !names.seen[name] {
				v.bad(p, "the volume has no file of this name")
			}
			if vol.Modes[name] == "" {
				v.bad(p, "expected an octal mode such as 0644")
			}
			v.mode(p, vol.Modes[name])
		}
	}
}

func (v *validator) fileMap(path string, files map[string]string, names *fileNames, check func(string) error) {
	if !v.count(path, len(files), maxFiles) {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		p := keyPath(path, name)
		names.add(p, name)
		if err := check(files[name]); err != nil {
			v.bad(p, "%s", err)
		}
	}
}

func (v *validator) hostFiles(path string, host *HostFiles, names *fileNames) {
	if len(host.Names) == 0 {
		v.bad(path+".names", "expected at least one name")
	}
	if v.count(path+".names", len(host.Names), maxFiles) {
		for i, name := range host.Names {
			names.add(indexPath(path+".names", i), name)
		}
	}
	if host.MaxBytes < 1 || host.MaxBytes > maxFilesBytes {
		v.bad(path+".maxBytes", "expected 1 to %d, got %d", maxFilesBytes, host.MaxBytes)
	}
	v.mode(path+".mode", host.Mode)
}

func (v *validator) mode(path, mode string) {
	if mode == "" {
		return
	}
	if _, err := parseMode(mode); err != nil {
		v.bad(path, "%s", err)
	}
}

// fileNames collects the names of one volume, which all live in one directory.
type fileNames struct {
	v    *validator
	seen map[string]bool
}

func (n *fileNames) add(path, name string) {
	if err := checkFileName(name); err != nil {
		n.v.bad(path, "%s", err)
	} else if n.seen[name] {
		n.v.bad(path, "%s is named before", quote(name))
	}
	n.seen[name] = true
}

// nesting reports a name that is a file and a directory at once.
func (n *fileNames) nesting(path string) {
	for _, name := range slices.Sorted(maps.Keys(n.seen)) {
		for dir := parentOf(name); dir != ""; dir = parentOf(dir) {
			if n.seen[dir] {
				n.v.bad(path, "%s is a file and the directory of %s", quote(dir), quote(name))
			}
		}
	}
}

// parentOf is the directory of a relative path; empty for a plain name.
func parentOf(name string) string { return name[:max(0, strings.LastIndexByte(name, '/'))] }

// checkFileName: a plain name, or a clean relative path of such names.
func checkFileName(name string) error {
	parts := strings.Split(name, "/")
	bad := slices.ContainsFunc(parts, func(p string) bool {
		return p == "" || len(p) > 253 || !only(p, alnum+"._-") || p == "." || strings.HasPrefix(p, "..")
	})
	if bad || len(name) > maxFileName || len(parts) > maxFileDepth {
		return fmt.Errorf("expected a file name of letters, digits, ., _ and - that does not begin with .., or a relative path of at most %d such names and %d characters, got %s", maxFileDepth, maxFileName, quote(name))
	}
	return nil
}

// parseMode takes permission bits without set-id, sticky or write for others.
func parseMode(s string) (uint32, error) {
	n := uint32(0)
	if len(s) < 3 || len(s) > 4 || !only(s, "01234567") {
		return 0, fmt.Errorf("expected an octal mode such as 0644, got %s", quote(s))
	}
	for _, c := range []byte(s) {
		n = n<<3 | uint32(c-'0')
	}
	if n&^0o775 != 0 {
		return 0, fmt.Errorf("expected a mode within 0775 (no set-id bits, no write for others), got %s", quote(s))
	}
	return n, nil
}

// checkResourceURI takes kbs:///repository/type/tag, of the default trustee,
// and kbs://name/repository/type/tag, of one that initdata declares by a DNS
// label. An address of a key broker in the URI would be the policy choosing
// whom to ask past initdata, and is refused.
func checkResourceURI(uri string) error {
	rest, ok := strings.CutPrefix(uri, "kbs://")
	trustee, rest, cut := strings.Cut(rest, "/")
	segments := strings.Split(rest, "/")
	bad := slices.ContainsFunc(segments, func(s string) bool {
		return s == "" || strings.Trim(s, ".") == "" || len(s) > 128 || !only(s, alnum+"._-")
	})
	if !ok || !cut || trustee != "" && !isDNSLabel(trustee) || len(segments) != 3 || bad {
		return fmt.Errorf("expected kbs:///REPOSITORY/TYPE/TAG or kbs://TRUSTEE/REPOSITORY/TYPE/TAG of letters, digits, ., _ and -, with a trustee that initdata names, got %s", quote(uri))
	}
	return nil
}
