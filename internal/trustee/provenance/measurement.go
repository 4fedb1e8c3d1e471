package provenance

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/coffer-project/coffer/internal/trustee/refvalues"
)

// ClassID is the class id (#6.37) of environments whose measurement keys are
// names of references as they stand: the version 5 UUID of the URL
// https://coffer-project.github.io/reference-values/v1.
const ClassID = "ad28427f-292c-5fe2-ba6d-1d33031bf3b8"

// Map keys of draft-ietf-rats-corim.
const (
	envClass    = 0
	envInstance = 1
	envGroup    = 2

	classID     = 0
	classVendor = 1
	classModel  = 2
	classLayer  = 3
	classIndex  = 4

	measurementKey = 0
	measurementVal = 1
	authorizedBy   = 2

	valSVN     = 1
	valDigests = 2
	valRaw     = 4
	valRawMask = 5

	tagBytes  = 560
	tagSVN    = 552
	tagMinSVN = 553
)

// maxMeasured bounds the measurements of one triple.
const maxMeasured = 1024

// collection gathers values by name: a digest may be listed in several triples.
type collection struct {
	refs  map[string]*refvalues.Reference
	order []string
	seen  map[string]bool
}

func newCollection() *collection {
	return &collection{refs: make(map[string]*refvalues.Reference), seen: make(map[string]bool)}
}

// add appends a value to a list.
func (c *collection) add(name, value string) error {
	v, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if c.seen[name+"\x00"+value] {
		return nil
	}
	c.seen[name+"\x00"+value] = true
	r := c.refs[name]
	if r == nil {
		if len(c.refs) == MaxReferences {
			return fmt.Errorf("expected at most %d reference values", MaxReferences)
		}
		r = &refvalues.Reference{Name: name}
		c.refs[name] = r
		c.order = append(c.order, name)
	}
	if len(r.Entries) == refvalues.MaxEntries {
		return fmt.Errorf("reference value %.256q: expected at most %d values", name, refvalues.MaxEntries)
	}
	r.Entries = append(r.Entries, refvalues.Entry{Value: v})
	return nil
}

// scalar sets a number, once.
func (c *collection) scalar(name string, n uint64) error {
	if c.refs[name] != nil {
		return fmt.Errorf("reference value %.256q: is set twice", name)
	}
	if len(c.refs) == MaxReferences {
		return fmt.Errorf("expected at most %d reference values", MaxReferences)
	}
	c.refs[name] = &refvalues.Reference{Name: name, Scalar: true, Entries: []refvalues.Entry{{Value: fmt.Appendf(nil, "%d", n)}}}
	c.order = append(c.order, name)
	return nil
}

func (c *collection) references() []refvalues.Reference {
	out := make([]refvalues.Reference, 0, len(c.order))
	for _, n := range c.order {
		out = append(out, *c.refs[n])
	}
	return out
}

// triple reads one reference triple: an environment and what is measured there.
func (d decoder) triple(set *collection, env, measurements []byte) error {
	prefix, own, err := d.environment(env)
	if err != nil {
		return fmt.Errorf("environment: %w", err)
	}
	var list []cborMap
	if err := d.mode.Unmarshal(measurements, &list); err != nil {
		return fmt.Errorf("measurements: %w", err)
	}
	if len(list) == 0 || len(list) > maxMeasured {
		return fmt.Errorf("measurements: expected 1 to %d, got %d", maxMeasured, len(list))
	}
	for i, m := range list {
		if err := d.measurement(set, m, prefix, own); err != nil {
			return fmt.Errorf("measurement %d: %w", i, err)
		}
	}
	return nil
}

// environment returns the prefix of names, vendor/model/, or own for our class.
// What narrows an environment further cannot be expressed in a name, and
// leaving it out would let the values count where they were not meant to.
func (d decoder) environment(raw []byte) (prefix string, own bool, err error) {
	var m, class cborMap
	if err := d.mode.Unmarshal(raw, &m); err != nil {
		return "", false, err
	}
	_, hasInstance := m[envInstance]
	_, hasGroup := m[envGroup]
	if hasInstance || hasGroup {
		return "", false, errors.New("expected a class alone: values for one instance or group are not supported")
	}
	if ok, err := get(d, m, envClass, "class", &class); err != nil || !ok {
		return "", false, errors.Join(err, errors.New("expected a class"))
	}
	if raw, ok := class[classID]; ok {
		id, err := d.identifier(raw)
		if err != nil {
			return "", false, fmt.Errorf("class-id: %w", err)
		}
		own = id == ClassID
	}
	_, hasLayer := class[classLayer]
	_, hasIndex := class[classIndex]
	if hasLayer || hasIndex {
		return "", false, errors.New("class: layers and indices are not supported: names cannot tell them apart")
	}
	if own {
		return "", true, nil
	}
	for _, part := range []struct {
		key  int64
		name string
	}{{classVendor, "vendor"}, {classModel, "model"}} {
		raw, ok := class[part.key]
		if !ok {
			return "", false, fmt.Errorf("class: expected a %s", part.name)
		}
		s, err := d.identifier(raw)
		if err != nil {
			return "", false, fmt.Errorf("class: %s: %w", part.name, err)
		}
		prefix += s + "/"
	}
	return prefix, false, nil
}

// measurement reads one measurement-map: digests and raw values become lists in
// hex, <prefix><key>/digests and …/raw_bytes, a security version a number,
// …/svn. With our own class the key is the whole name.
func (d decoder) measurement(set *collection, m cborMap, prefix string, own bool) error {
	if _, ok := m[authorizedBy]; ok {
		return errors.New("authorized-by is not supported")
	}
	raw, ok := m[measurementKey]
	if !ok {
		return errors.New("expected a key: without one the value has no name")
	}
	key, err := d.identifier(raw)
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	var val cborMap
	if ok, err := get(d, m, measurementVal, "values", &val); err != nil || !ok {
		return errors.Join(err, errors.New("expected values"))
	}
	name := func(suffix string) string {
		if own {
			return key
		}
		return prefix + key + "/" + suffix
	}
	found := 0
	if raw, ok := val[valDigests]; ok {
		found++
		if err := d.digests(set, name("digests"), raw); err != nil {
			return fmt.Errorf("digests: %w", err)
		}
	}
	if raw, ok := val[valRaw]; ok {
		found++
		if _, masked := val[valRawMask]; masked {
			return errors.New("raw-value: masks are not supported")
		}
		number, content, err := d.tag(raw)
		if err != nil || number != tagBytes {
			return errors.Join(err, fmt.Errorf("raw-value: expected bytes (tag %d)", tagBytes))
		}
		var b []byte
		if err := d.mode.Unmarshal(content, &b); err != nil {
			return fmt.Errorf("raw-value: %w", err)
		}
		if err := set.add(name("raw_bytes"), hex.EncodeToString(b)); err != nil {
			return err
		}
	}
	if raw, ok := val[valSVN]; ok {
		found++
		if err := d.svn(set, name("svn"), raw); err != nil {
			return fmt.Errorf("svn: %w", err)
		}
	}
	if own && found > 1 {
		return errors.New("expected one kind of value for one name")
	}
	if found == 0 {
		return errors.New("values: expected digests, a raw value or a security version: others are not supported")
	}
	return nil
}

// digestSize is the size of a hash algorithm of IANA's registry "Named
// Information Hash Algorithm", by number or name; 0 for one that is not
// accepted.
func digestSize(alg cbor.RawMessage, mode cbor.DecMode) int {
	var n int64
	var s string
	if mode.Unmarshal(alg, &n) != nil && mode.Unmarshal(alg, &s) != nil {
		return 0
	}
	switch {
	case n == 1, s == "sha-256":
		return 32
	case n == 7, s == "sha-384":
		return 48
	case n == 8, s == "sha-512":
		return 64
	}
	return 0
}

func (d decoder) digests(set *collection, name string, raw []byte) error {
	var list [][]cbor.RawMessage
	if err := d.mode.Unmarshal(raw, &list); err != nil {
		return err
	}
	if len(list) == 0 {
		return errors.New("expected at least one")
	}
	for i, pair := range list {
		if len(pair) != 2 {
			return fmt.Errorf("%d: expected an algorithm and a value", i)
		}
		var value []byte
		if err := d.mode.Unmarshal(pair[1], &value); err != nil {
			return fmt.Errorf("%d: %w", i, err)
		}
		if n := digestSize(pair[0], d.mode); n == 0 || n != len(value) {
			return fmt.Errorf("%d: expected a SHA-256, SHA-384 or SHA-512 digest of its size, got algorithm %x with %d bytes", i, clipped(pair[0]), len(value))
		}
		if err := set.add(name, hex.EncodeToString(value)); err != nil {
			return err
		}
	}
	return nil
}

// svn reads a security version: an exact one (#6.552 or bare) or a least one
// (#6.553); which it is, is for the policy to say.
func (d decoder) svn(set *collection, name string, raw []byte) error {
	if !bytes.HasPrefix(raw, []byte{0xd9}) { // a tag with a 16-bit number
		return d.svnNumber(set, name, raw)
	}
	number, content, err := d.tag(raw)
	if err != nil {
		return err
	}
	if number != tagSVN && number != tagMinSVN {
		return fmt.Errorf("expected tag %d or %d, got %d", tagSVN, tagMinSVN, number)
	}
	return d.svnNumber(set, name, content)
}

func (d decoder) svnNumber(set *collection, name string, raw []byte) error {
	var n uint64
	if err := d.mode.Unmarshal(raw, &n); err != nil {
		return err
	}
	return set.scalar(name, n)
}

// clipped is the beginning of what goes into an error.
func clipped(b []byte) []byte { return b[:min(len(b), 16)] }
