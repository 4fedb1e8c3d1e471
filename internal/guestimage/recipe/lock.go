package recipe

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// Locked is one line of the lock file: a package the recipe asks for and the one
// to take for it.
type Locked struct {
	// For is the name in the recipe. It differs from Name for a meta package.
	For string
	// Name, Version, Architecture and SHA256 are the package file's.
	Name, Version, Architecture, SHA256 string
}

const lockHeader = `# Packages of the guest image; written by: coffer guest build --update-lock
# asked for            package  version  architecture  SHA-256 of the .deb
`

// ParseLock reads a lock file: lines of five fields, # starts a comment line.
func ParseLock(data []byte) ([]Locked, error) {
	if len(data) > maxBytes {
		return nil, fmt.Errorf("lock file: %d bytes, at most %d are read", len(data), maxBytes)
	}
	var all []Locked
	seen := map[string]bool{}
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 5 {
			return nil, fmt.Errorf("lock file, line %d: expected 5 fields, got %d", n, len(fields))
		}
		l := Locked{For: fields[0], Name: fields[1], Version: fields[2], Architecture: fields[3], SHA256: fields[4]}
		if sum, err := hex.DecodeString(l.SHA256); err != nil || len(sum) != 32 || strings.ToLower(l.SHA256) != l.SHA256 {
			return nil, fmt.Errorf("lock file, line %d: package %s: expected a SHA-256 of 64 lower-case hexadecimal digits, got %q", n, l.For, l.SHA256)
		}
		// Names and versions become arguments of apt: deb-version(7) and policy 5.6.1 know
		// these characters only.
		for _, value := range fields[:4] {
			if value[0] == '-' || strings.Trim(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.+-~:") != "" {
				return nil, fmt.Errorf("lock file, line %d: %q is no package name, version or architecture", n, value)
			}
		}
		if seen[l.For] {
			return nil, fmt.Errorf("lock file, line %d: package %s is named twice", n, l.For)
		}
		seen[l.For] = true
		all = append(all, l)
	}
	return all, nil
}

// FormatLock returns the lock file's text, sorted.
func FormatLock(all []Locked) []byte {
	sorted := slices.SortedFunc(slices.Values(all), func(a, b Locked) int { return strings.Compare(a.For, b.For) })
	var b bytes.Buffer
	b.WriteString(lockHeader)
	for _, l := range sorted {
		fmt.Fprintln(&b, l.For, l.Name, l.Version, l.Architecture, l.SHA256)
	}
	return b.Bytes()
}
