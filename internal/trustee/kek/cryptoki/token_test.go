package cryptoki

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coffer-project/coffer/secret"
)

// fake is a module with one token in slot 7.
type fake struct {
	mu       sync.Mutex
	label    string
	pin      string
	valid    map[uint]bool // sessions
	next     uint
	loggedIn bool
	up       bool

	initialized, finalized, logins int
	hang                           chan struct{} // OpenSession waits for it
	open                           error
	late                           bool // the token shows after a second Initialize
}

func newFake() *fake {
	return &fake{label: "fake", pin: "1234", valid: map[uint]bool{}}
}

func (f *fake) Initialize() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.up {
		return CryptokiAlreadyInitialed
	}
	f.up = true
	f.initialized++
	return nil
}

func (f *fake) Finalize() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.up {
		return CryptokiNotInitialized
	}
	f.up, f.loggedIn, f.valid = false, false, map[uint]bool{}
	f.finalized++
	return nil
}

func (f *fake) Unload() {}

func (f *fake) Slots() ([]uint, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.up {
		return nil, CryptokiNotInitialized
	}
	return []uint{6, 7}, nil
}

func (f *fake) TokenLabel(slot uint) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slot != 7 || f.late && f.initialized < 2 {
		return "", TokenNotRecognized
	}
	return f.label, nil
}

func (f *fake) OpenSession(uint, bool) (uint, error) {
	if f.hang != nil {
		<-f.hang
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open != nil {
		return 0, f.open
	}
	f.next++
	f.valid[f.next] = true
	return f.next, nil
}

func (f *fake) CloseSession(s uint) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.valid[s] {
		return SessionHandleInvalid
	}
	delete(f.valid, s)
	f.loggedIn = f.loggedIn && len(f.valid) > 0
	return nil
}

func (f *fake) Login(s uint, pin []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.logins++
	switch {
	case f.loggedIn:
		return UserAlreadyLoggedIn
	case string(pin) != f.pin:
		return PINIncorrect
	}
	f.loggedIn = true
	return nil
}

func (f *fake) Session(s, _ uint) Session { return fakeSession{f: f, s: s} }

type fakeSession struct {
	Session
	f *fake
	s uint
}

// Destroy stands for any operation.
func (s fakeSession) Destroy(Object) error {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	switch {
	case !s.f.up:
		return CryptokiNotInitialized
	case !s.f.valid[s.s]:
		return SessionHandleInvalid
	case !s.f.loggedIn:
		return UserNotLoggedIn
	}
	return nil
}

func work(_ context.Context, s Session) error { return s.Destroy(1) }

func load(t testing.TB, f *fake) *Module {
	m := &Module{path: "/fake.so", m: f}
	if err := m.initialize(); err != nil {
		t.Fatal(err)
	}
	return m
}

func pin(s string) func() (secret.Bytes, error) {
	return func() (secret.Bytes, error) { return secret.New([]byte(s)), nil }
}

func TestLostSessions(t *testing.T) {
	t.Parallel()
	f := newFake()
	tok, err := load(t, f).Token(t.Context(), Options{Label: "fake", PIN: pin("1234"), Sessions: 3})
	if err != nil {
		t.Fatal(err)
	}
	fill := func() { // several idle sessions
		var wg sync.WaitGroup
		gate := make(chan struct{})
		for i := range 3 {
			wg.Go(func() {
				err := tok.Do(t.Context(), func(ctx context.Context, s Session) error {
					if i == 2 {
						close(gate)
					}
					<-gate
					return work(ctx, s)
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	for name, lose := range map[string]func(){
		"closed by another": func() { f.valid, f.loggedIn = map[uint]bool{}, false },
		"logged out":        func() { f.loggedIn = false },
		"finalized":         func() { f.up, f.valid, f.loggedIn = false, map[uint]bool{}, false },
	} {
		fill()
		f.mu.Lock()
		lose()
		f.mu.Unlock()
		for range 5 {
			if err := tok.Do(t.Context(), work); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	// A device that fails is reported, not asked twice: what it did is unknown.
	for _, c := range []Code{DeviceRemoved, DeviceError, GeneralError, FunctionFailed, TokenNotPresent} {
		calls := 0
		err := tok.Do(t.Context(), func(context.Context, Session) error { calls++; return c })
		if !errors.Is(err, ErrUnavailable) || !errors.Is(err, c) || calls != 1 {
			t.Errorf("%v: got %v after %d calls", c, err, calls)
		}
	}
	if f.finalized != 1 {
		t.Errorf("%d resets in a row, want 1", f.finalized)
	}
	// Sessions that do not last end in an error.
	calls := 0
	if err := tok.Do(t.Context(), func(_ context.Context, s Session) error {
		calls++
		if err := f.CloseSession(s.(fakeSession).s); err != nil {
			t.Error(err)
		}
		return SessionClosed
	}); !errors.Is(err, ErrUnavailable) || calls != maxLost+1 {
		t.Errorf("got %v after %d calls", err, calls)
	}
	mine := errors.New("mine")
	if err := tok.Do(t.Context(), func(context.Context, Session) error { return mine }); err != mine {
		t.Errorf("the caller's own error: %v", err)
	}
	if err := tok.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if len(f.valid) != 0 {
		t.Errorf("%d sessions were left open", len(f.valid))
	}
	if err := tok.Do(t.Context(), work); !errors.Is(err, ErrUnavailable) {
		t.Errorf("closed: %v", err)
	}
}

// A token locks itself after some wrong PINs: a refused one is shown once.
func TestWrongPIN(t *testing.T) {
	t.Parallel()
	f := newFake()
	m := load(t, f)
	if _, err := m.Token(t.Context(), Options{Label: "fake", PIN: pin("0000")}); !errors.Is(err, ErrPIN) {
		t.Fatalf("got %v", err)
	}
	current := atomic.Pointer[string]{}
	set := func(s string) { current.Store(&s) }
	set("1234")
	tok, err := m.Token(t.Context(), Options{Label: "fake", PIN: func() (secret.Bytes, error) { return secret.New([]byte(*current.Load())), nil }})
	if err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.pin, f.valid, f.loggedIn, f.logins = "5678", map[uint]bool{}, false, 0
	f.mu.Unlock()
	for range 5 {
		err := tok.Do(t.Context(), work)
		if !errors.Is(err, ErrPIN) || strings.Contains(err.Error(), "1234") {
			t.Errorf("got %v", err)
		}
	}
	if f.logins != 1 {
		t.Errorf("the wrong PIN was shown %d times", f.logins)
	}
	set("5678")
	if err := tok.Do(t.Context(), work); err != nil {
		t.Errorf("after the PIN was corrected: %v", err)
	}
}

func TestHangingModule(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		m := load(t, f)
		tok, err := m.Token(t.Context(), Options{Label: "fake", PIN: pin("1234"), Sessions: 2})
		if err != nil {
			t.Fatal(err)
		}
		release := make(chan struct{})
		for range 4 { // two that hang, two that get no session
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			err := tok.Do(ctx, func(context.Context, Session) error { <-release; return nil })
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrUnavailable) {
				t.Errorf("got %v", err)
			}
			cancel()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := tok.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := m.Close(); err == nil || !strings.Contains(err.Error(), "2 calls have not returned") {
			t.Errorf("close the module: %v", err)
		}
		close(release)
		synctest.Wait()
		if err := m.Close(); err != nil || len(f.valid) != 0 {
			t.Errorf("close the module: %v; %d sessions left", err, len(f.valid))
		}
	})
}

func TestHangingOpen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.hang = make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := load(t, f).Token(ctx, Options{Label: "fake", PIN: pin("1234")}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		close(f.hang)
	})
}

func TestTokenOptions(t *testing.T) {
	t.Parallel()
	f := newFake()
	m := load(t, f)
	for want, o := range map[string]Options{
		"expected a label":                     {PIN: pin("1234")},
		"a PIN":                                {Label: "fake"},
		"at least 1 session":                   {Label: "fake", PIN: pin("1234"), Sessions: -1},
		`no slot of /fake.so holds a token`:    {Label: "other", PIN: pin("1234")},
		"expected 1 to 255 bytes":              {Label: "fake", PIN: PINFile("/dev/null")},
		"PIN: open /does/not/exist: no such f": {Label: "fake", PIN: PINFile("/does/not/exist")},
	} {
		if _, err := m.Token(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	late := newFake()
	late.late = true
	if _, err := load(t, late).Token(t.Context(), Options{Label: "fake", PIN: pin("1234")}); err != nil {
		t.Errorf("a token that shows after the module is started anew: %v", err)
	}
	if _, err := Load("libsofthsm2.so"); err == nil || !strings.Contains(err.Error(), "absolute path") {
		t.Errorf("relative path: %v", err)
	}
}

func TestPINFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "pin")
	for content, want := range map[string]string{"1234": "1234", "1234\n": "1234", "1234\r\n": "1234", " 12 ": " 12 ", "\n": "", "": "", strings.Repeat("x", 300): ""} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := PINFile(file)()
		if string(got.Expose()) != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %d bytes, %v", content, got.Len(), err)
		}
	}
}

func TestCode(t *testing.T) {
	t.Parallel()
	if DeviceRemoved.Error() != "CKR_DEVICE_REMOVED" || Code(0x80000001).Error() != "CKR 0x80000001" {
		t.Error("codes do not name themselves")
	}
}
