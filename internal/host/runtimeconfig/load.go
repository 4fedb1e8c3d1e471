package runtimeconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/coffer-project/coffer/internal/boundedtoml"
)

// maxFile bounds a configuration.
const maxFile = 64 << 10

// Load reads a file; an empty path is DefaultPath.
func Load(path string) (*Config, error) {
	if path == "" {
		path = DefaultPath
	}
	data, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("runtime configuration: %w (the handler's option ConfigPath in containerd's configuration names the file; coffer install writes one)", err)
	}
	c, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("runtime configuration %s: %w", path, err)
	}
	return c, nil
}

func read(path string) ([]byte, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%s: expected an absolute path", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: expected a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: expected at most %d bytes, got more", path, maxFile)
	}
	return data, nil
}

// Parse reads a configuration over the defaults and reports everything that is
// wrong with it.
func Parse(data []byte) (*Config, error) {
	if _, err := boundedtoml.Decode(data, maxFile); err != nil {
		return nil, err
	}
	c := Default()
	meta, err := toml.NewDecoder(bytes.NewReader(data)).Decode(c)
	if err != nil {
		if e, ok := errors.AsType[toml.ParseError](err); ok {
			return nil, fmt.Errorf("line %d: %s", e.Position.Line, strings.TrimSpace(e.Message+" "+e.LastKey))
		}
		return nil, err
	}
	var problems []error
	for _, key := range meta.Undecoded() {
		problems = append(problems, fmt.Errorf("%s: unknown key (the comments of the file that coffer install writes list all)", key))
	}
	for _, key := range meta.Keys() {
		// The library takes keys in any letter case, and of two spellings either.
		if s := key.String(); s != strings.ToLower(s) {
			problems = append(problems, fmt.Errorf("%s: expected the key in lower case", s))
		}
	}
	problems = append(problems, c.problems()...)
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return c, nil
}
