package podpolicy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
)

// FilesUpdate is one version of a files volume on its way in. The caller writes
// it to a place of its own and makes it visible, as a whole, in Commit. It is
// for one goroutine.
type FilesUpdate struct {
	guard   *Guard
	volume  string
	version uint64
	rule    Volume
	// sizes of the files that File has let in; whole once Content was called.
	sizes map[string]int64
	whole map[string]bool
	// hostBytes and bytes are sums of sizes.
	hostBytes, bytes int64
}

// helpFiles is what to do about a file that the policy does not have.
const helpFiles = "take the file out of the ConfigMap or Secret, or run coffer prepare again"

// PutFiles decides a version of a files volume. Versions only grow.
func (g *Guard) PutFiles(volume string, version uint64) (*FilesUpdate, error) {
	return decide(g,
		func(p *Policy) (*Policy, *Refusal) { return deriveFiles(p, volume) },
		func(p *Policy, s *state) (*FilesUpdate, *state, *Refusal) {
			if r := decidePutFiles(p, s, volume, version); r != nil {
				return nil, nil, r
			}
			u := &FilesUpdate{guard: g, volume: volume, version: version, rule: p.Volumes[volume], sizes: map[string]int64{}, whole: map[string]bool{}}
			return u, s, nil
		})
}

func decidePutFiles(p *Policy, s *state, volume string, version uint64) *Refusal {
	if r := needSandbox(s); r != nil {
		return r
	}
	v, ok := p.Volumes[volume]
	if !ok || v.Kind != VolumeFiles {
		return refuse(RuleFilesVolume, "volume", "a files volume of the policy", quote(volume), "the host selects the files of the policy's volumes; add the volume to the policy (coffer prepare does), or take it out of the pod")
	}
	if last, ok := s.files[volume]; ok && version <= last {
		return refuse(RuleFilesVersion, "version", fmt.Sprintf("more than %d", last), fmt.Sprint(version), "versions of a volume only grow; an old one is a replay")
	}
	return nil
}

// File lets one regular file in before its content is read: name is the path
// in the archive, relative to the volume, and size its length in bytes. It
// returns the file's permission bits. Anything in the archive that is no regular
// file or directory must be refused by the caller.
func (u *FilesUpdate) File(name string, size int64) (mode uint32, err error) {
	r := u.file(name, size)
	if r != nil {
		return 0, r
	}
	octal := orDefault(u.rule.Mode, defaultFileMode)
	if u.fromHost(name) {
		octal = orDefault(u.rule.Host.Mode, defaultFileMode)
	}
	if mode, err = parseMode(orDefault(u.rule.Modes[name], octal)); err != nil || u.guard.decider == nil {
		return mode, err
	}
	return mode, step(u.guard, func(_ *Policy, s *state) (*state, *Refusal) {
		return s, u.guard.consult(s, Question{Kind: AskFile, Volume: u.volume, File: name, Mode: mode, Size: size})
	})
}

// Discard reports whether the content of a file that File has let in is to be
// thrown away once Content has judged it: what the host has is the sealed text
// of a file that the guest makes itself.
func (u *FilesUpdate) Discard(name string) bool {
	_, sealed := u.rule.Sealed[name]
	return sealed
}

// Attributes reports whether mode and owner of a file are the archive's: in an
// unsealed pod they are the host's, as all of the file is.
func (u *FilesUpdate) Attributes(name string) bool {
	return u.guard.unsealed && u.guard.decider == nil && u.fromHost(name)
}

// fromHost reports whether the policy leaves a file's content to the host.
func (u *FilesUpdate) fromHost(name string) bool {
	host := u.rule.Host
	return host != nil && (host.any || slices.Contains(host.Names, name))
}

func (u *FilesUpdate) file(name string, size int64) *Refusal {
	_, pinned := u.rule.Pinned[name]
	host := u.fromHost(name)
	if !pinned && !host && !u.Discard(name) || checkFileName(name) != nil {
		return refuse(RuleFilesName, keyPath("files", name), "a file that the policy names", quote(name), helpFiles)
	}
	if _, twice := u.sizes[name]; twice {
		return refuse(RuleFilesName, keyPath("files", name), "each file once", quote(name), "")
	}
	if len(u.sizes) >= 4*maxFiles {
		return tooMany(RuleFilesName, "files", 4*maxFiles, len(u.sizes)+1)
	}
	limit, used := int64(maxFilesBytes), u.bytes
	if host {
		limit, used = u.rule.Host.MaxBytes, u.hostBytes
	}
	if size < 0 || size > limit-used || size > maxFilesBytes-u.bytes {
		return refuse(RuleFilesSize, keyPath("files", name), fmt.Sprintf("at most %d bytes more", max(0, min(limit-used, maxFilesBytes-u.bytes))), fmt.Sprint(size), "make the file smaller, or raise host.maxBytes of the volume in the policy")
	}
	u.sizes[name] = size
	u.bytes += size
	if host {
		u.hostBytes += size
	}
	return nil
}

// Content tells the SHA-256 and the length of what was read for a file that
// File has let in.
func (u *FilesUpdate) Content(name string, size int64, digest [sha256.Size]byte) error {
	if r := u.content(name, size, digest); r != nil {
		return r
	}
	return nil
}

func (u *FilesUpdate) content(name string, size int64, digest [sha256.Size]byte) *Refusal {
	path := keyPath("files", name)
	announced, ok := u.sizes[name]
	if !ok || u.whole[name] {
		return refuse(RuleFilesName, path, "a file that was announced", quote(name), "")
	}
	if size != announced {
		return refuse(RuleFilesSize, path, fmt.Sprintf("%d bytes", announced), fmt.Sprint(size), "")
	}
	got := "sha256:" + hex.EncodeToString(digest[:])
	if want, pinned := u.rule.Pinned[name]; pinned && got != want {
		return refuse(RuleFilesDigest, path, want, got, "the policy pins another content: restore it, or run coffer prepare again")
	}
	if text, sealed := u.rule.Sealed[name]; sealed && got != digestOf(text) && got != digestOf(text+"\n") {
		return refuse(RuleFilesDigest, path, digestOf(text)+", the policy's sealed text", got, "leave the file out; the guest makes it")
	}
	u.whole[name] = true
	return nil
}

func digestOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Commit ends the update: every file that the policy names must have come
// whole, and no later version in the meantime. Then publish makes the files
// visible, while no other decision is made: a container that waits for them is
// started with them, or not at all. If publish fails, so does Commit, and the
// version is as if it had not come.
func (u *FilesUpdate) Commit(publish func() error) error {
	var failure error
	err := step(u.guard, func(p *Policy, s *state) (*state, *Refusal) {
		if r := u.complete(p, s); r != nil {
			return nil, r
		}
		if failure = publish(); failure != nil {
			return s, nil //nolint:nilerr // the state stays; the caller gets failure
		}
		next := s.clone()
		next.files = with(s.files, u.volume, u.version)
		return next, nil
	})
	if err != nil {
		return err
	}
	return failure
}

func (u *FilesUpdate) complete(p *Policy, s *state) *Refusal {
	if r := decidePutFiles(p, s, u.volume, u.version); r != nil {
		return r
	}
	for _, name := range slices.Sorted(maps.Keys(u.sizes)) {
		if !u.whole[name] {
			return refuse(RuleFilesMissing, keyPath("files", name), "the whole content", "a part", "")
		}
	}
	required := slices.Sorted(maps.Keys(u.rule.Pinned))
	if u.rule.Host != nil {
		required = append(required, u.rule.Host.Names...)
	}
	for _, name := range required {
		if !u.whole[name] {
			return refuse(RuleFilesMissing, keyPath("files", name), "every file that the policy names", nothing, "a volume is replaced as a whole: put the file back, or run coffer prepare again")
		}
	}
	return nil
}
