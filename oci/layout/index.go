package layout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/coffer-project/coffer/internal/strictjson"
	"github.com/coffer-project/coffer/oci"
)

// CheckVersion checks the content of the file oci-layout.
func CheckVersion(data []byte) error {
	var fields map[string]json.RawMessage
	if err := strictjson.Decode(data, &fields, strictjson.Limits{Bytes: maxVersion}); err != nil {
		return fmt.Errorf("%s: %w", versionFile, err)
	}
	if v := fields["imageLayoutVersion"]; string(v) != `"1.0.0"` {
		return fmt.Errorf("%s: imageLayoutVersion: expected \"1.0.0\", got %.40s", versionFile, v)
	}
	return nil
}

// ParseIndex decodes index.json. No tag may name two manifests: one program
// would take the first, and another the last.
func ParseIndex(data []byte) (*oci.Index, error) {
	index, err := oci.ParseIndex(data, oci.MediaTypeIndex)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", indexFile, err)
	}
	tagged := map[string]oci.Digest{}
	for i, d := range index.Manifests {
		tag := TagOf(d)
		if other, ok := tagged[tag]; ok && tag != "" && other != d.Digest {
			return nil, fmt.Errorf("%s: manifests[%d]: the tag %.128q names %s, and %s before", indexFile, i, tag, d.Digest, other)
		}
		tagged[tag] = d.Digest
	}
	return index, nil
}

// TagOf is the tag of an entry of index.json; empty if it has none.
func TagOf(d oci.Descriptor) string { return d.Annotations[annotationRef] }

// describe finds a manifest that is not listed in index.json itself, but by
// one of its indexes, or nowhere.
func (l *Layout) describe(digest oci.Digest) (oci.Descriptor, error) {
	if _, err := oci.ParseDigest(string(digest)); err != nil {
		return oci.Descriptor{}, err
	}
	data, err := l.readFile(blobPath(digest), oci.MaxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return oci.Descriptor{}, fmt.Errorf("image layout: manifest %s: %w", digest, oci.ErrNotFound)
	}
	if err != nil {
		return oci.Descriptor{}, fmt.Errorf("image layout: manifest %s: %w", digest, err)
	}
	var doc map[string]json.RawMessage
	if err := strictjson.Decode(data, &doc, strictjson.Limits{Bytes: oci.MaxDocument}); err != nil {
		return oci.Descriptor{}, fmt.Errorf("image layout: manifest %s: %w", digest, err)
	}
	mediaType := oci.MediaTypeManifest
	if _, ok := doc["manifests"]; ok {
		mediaType = oci.MediaTypeIndex
	}
	if raw, ok := doc["mediaType"]; ok {
		if err := strictjson.Decode(raw, &mediaType, strictjson.Limits{}); err != nil {
			return oci.Descriptor{}, fmt.Errorf("image layout: manifest %s: mediaType: %w", digest, err)
		}
	}
	return oci.Descriptor{MediaType: mediaType, Digest: digest, Size: int64(len(data))}, nil
}

// Tag implements oci.Pusher. Another manifest that had the tag loses it.
func (l *Layout) Tag(ctx context.Context, d oci.Descriptor, tag string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := oci.CheckTag(tag); err != nil {
		return err
	}
	if _, err := oci.ParseDigest(string(d.Digest)); err != nil {
		return err
	}
	if _, err := l.root.Lstat(blobPath(d.Digest)); err != nil {
		return fmt.Errorf("image layout: tag %s: manifest %s: %w", tag, d.Digest, oci.ErrNotFound)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	d = bare(d)
	d.Annotations = map[string]string{annotationRef: tag}
	others := slices.DeleteFunc(slices.Clone(l.index.Manifests), func(e oci.Descriptor) bool { return TagOf(e) == tag })
	return l.setManifests(append(others, d))
}

// List puts entries, which another layout's index.json had, behind those of
// index.json.
func (l *Layout) List(entries []oci.Descriptor) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.setManifests(slices.Concat(l.index.Manifests, entries))
}

// setManifests replaces the entries of index.json, if the result can be opened
// again.
func (l *Layout) setManifests(entries []oci.Descriptor) error {
	index := *l.index
	index.Manifests = entries
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if _, err := ParseIndex(data); err != nil {
		return fmt.Errorf("image layout: %w", err)
	}
	if err := l.writeFile(indexFile, data); err != nil {
		return err
	}
	l.index = &index
	return nil
}
