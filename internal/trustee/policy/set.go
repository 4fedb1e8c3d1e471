package policy

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// Source is where policy texts are kept. Versions count from 1; 0 means that
// there is none.
type Source interface {
	PolicyVersion(ctx context.Context, id string) (int64, error)
	PolicyText(ctx context.Context, id string, version int64) (string, error)
}

// SetOptions of [NewSet].
type SetOptions struct {
	Source Source
	// Defaults are the texts in force where the source has none, by id.
	Defaults  map[string]string
	Rules     []string
	Functions map[string]Function
	Timeout   time.Duration
}

// Set hands out prepared policies by id. Each version is prepared once; a
// new version in the source is in force at the next [Set.Get], whichever
// process stored it. It is safe for concurrent use, and holds no lock while
// it compiles.
type Set struct {
	o SetOptions

	mu       sync.RWMutex
	prepared map[string]prepared
}

type prepared struct {
	version int64
	policy  *Policy
}

// NewSet returns an empty set.
func NewSet(o SetOptions) *Set { return &Set{o: o, prepared: map[string]prepared{}} }

// Get returns the policy in force and its label, "id@version" or
// "id (built in)". ok is false where neither the source nor the defaults know
// the id.
func (s *Set) Get(ctx context.Context, id string) (p *Policy, label string, ok bool, err error) {
	version, err := s.o.Source.PolicyVersion(ctx, id)
	if err != nil {
		return nil, "", false, err
	}
	label = id + "@" + strconv.FormatInt(version, 10)
	if version == 0 {
		label = id + " (built in)"
	}
	s.mu.RLock()
	have, found := s.prepared[id]
	s.mu.RUnlock()
	if found && have.version == version {
		return have.policy, label, true, nil
	}
	text, ok := s.o.Defaults[id]
	if version > 0 {
		if text, err = s.o.Source.PolicyText(ctx, id, version); err != nil {
			return nil, "", false, err
		}
	} else if !ok {
		return nil, "", false, nil
	}
	if p, err = s.compile(ctx, id, text); err != nil {
		return nil, "", false, fmt.Errorf("stored policy %s cannot be used: %w", label, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now, found := s.prepared[id]; !found || now.version < version {
		s.prepared[id] = prepared{version, p}
	}
	return p, label, true, nil
}

// Check reports whether a text could be used under an id. Its error is a
// *[CompileError].
func (s *Set) Check(ctx context.Context, id, text string) error {
	_, err := s.compile(ctx, id, text)
	return err
}

func (s *Set) compile(ctx context.Context, id, text string) (*Policy, error) {
	return Compile(ctx, Options{Name: id + ".rego", Text: text, Rules: s.o.Rules, Functions: s.o.Functions, Timeout: s.o.Timeout})
}
