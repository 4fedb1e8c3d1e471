package signature

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/coffer-project/coffer/secret"
)

// Files is a KeyGetter for the owner's own machine: it reads the files that a
// policy names, by path or as file:///PATH, and asks next for everything else.
// next may be nil.
func Files(next KeyGetter) KeyGetter { return files{next} }

type files struct{ next KeyGetter }

// Key implements KeyGetter.
func (f files) Key(ctx context.Context, uri string) (secret.Bytes, error) {
	name, isFile := strings.CutPrefix(uri, "file://")
	if !isFile && strings.Contains(uri, "://") {
		if f.next == nil {
			return secret.Bytes{}, fmt.Errorf("expected the path of a file; there is no trustee to ask for %s", clip(uri))
		}
		return f.next.Key(ctx, uri)
	}
	file, err := os.Open(name)
	if err != nil {
		return secret.Bytes{}, err
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, maxMaterial+1))
	if err != nil {
		return secret.Bytes{}, err
	}
	if len(data) > maxMaterial {
		return secret.Bytes{}, fmt.Errorf("%s: longer than %d bytes", name, maxMaterial)
	}
	return secret.New(data), nil
}
