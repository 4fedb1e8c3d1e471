package pgtest

import "sync"

// Shared is one server for the tests of a package, so that each costs a
// database and not a cluster. The zero value is ready; keep it in a variable
// of the test package.
type Shared struct {
	mu     sync.Mutex
	server *Server
	users  int
	stop   []func()
}

// URL makes a new empty database on the server, which it starts where it does
// not run. The server stops when the last test that uses it has ended.
func (s *Shared) URL(tb TB) string {
	tb.Helper()
	u, err := s.use(tb).database(tb.Context(), "")
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	return u
}

func (s *Shared) use(tb TB) *Server {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		s.server = Start(owner{TB: tb, s: s})
	}
	s.users++
	tb.Cleanup(s.release)
	return s.server
}

func (s *Shared) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users > 0 {
		return
	}
	for _, f := range s.stop {
		f()
	}
	s.server, s.stop = nil, nil
}

// owner keeps the server from being stopped with its first user.
type owner struct {
	TB
	s *Shared
}

func (o owner) Cleanup(f func()) { o.s.stop = append(o.s.stop, f) }
