package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"math"
	"path"
	"strings"
)

// cleanPath turns a tar name into a path below the root: leading slashes and
// "." components are dropped, ".." is refused. The root itself is "".
func cleanPath(name string, depth int) (string, error) {
	if len(name) > maxPath {
		return "", fmt.Errorf("path of %d bytes, at most %d are allowed", len(name), maxPath)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("path has a NUL byte")
	}
	n := 0
	for component := range strings.SplitSeq(name, "/") {
		switch component {
		case "", ".":
		case "..":
			return "", errors.New("path has a \"..\" component, which could lead out of the root")
		default:
			n++
			if len(component) > maxName {
				return "", fmt.Errorf("name of %d bytes in a path, at most %d are allowed", len(component), maxName)
			}
		}
	}
	if n > depth {
		return "", fmt.Errorf("%w of %d path components", ErrLimit, depth)
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

func split(name string) (dir, base string) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return "", name
}

// checkHeader refuses numbers that the kernel would misread.
func checkHeader(hdr *tar.Header) error {
	if !validID(hdr.Uid) || !validID(hdr.Gid) {
		return fmt.Errorf("owner %d:%d: expected a user and a group from 0 to %d", hdr.Uid, hdr.Gid, uint32(math.MaxUint32-1))
	}
	if hdr.Size < 0 {
		return fmt.Errorf("size %d: expected a number of bytes", hdr.Size)
	}
	return nil
}

// validID says whether id is a user or group; the greatest number means
// "leave it as it is" to chown.
func validID(id int) bool { return id >= 0 && int64(id) < math.MaxUint32 }
