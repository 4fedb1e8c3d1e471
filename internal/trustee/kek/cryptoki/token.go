package cryptoki

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/coffer-project/coffer/secret"
)

// Options of [Module.Token].
type Options struct {
	// Label is the token's label. No two tokens of a module may share it.
	Label string
	// PIN is asked for at every login; see [PINFile].
	PIN func() (secret.Bytes, error)
	// Sessions is how many calls are carried out at the same time, 0 for 8.
	Sessions int
	// Write: objects are created and destroyed.
	Write bool
}

// Token lends sessions. It is safe for concurrent use.
type Token struct {
	o      Options
	module *Module
	slots  chan struct{} // one for each call under way

	mu     sync.Mutex // never held during a call into the module
	idle   []handle
	closed bool

	opening sync.Mutex
	refused [sha256.Size]byte // of the PIN that the token refused; zero for none
}

// maxLost is how often a lost session is replaced within one call.
const maxLost = 3

// handle is an open session. No session has handle 0.
type handle struct {
	session, slot uint
}

// Token finds a token by its label and logs in once, so that a wrong PIN shows
// at once.
func (m *Module) Token(ctx context.Context, o Options) (*Token, error) {
	if o.Label == "" || len(o.Label) > 32 || o.PIN == nil {
		return nil, fmt.Errorf("PKCS#11 token: expected a label of 1 to 32 bytes and a PIN, got label %.40q", o.Label)
	}
	if o.Sessions == 0 {
		o.Sessions = 8
	}
	if o.Sessions < 1 {
		return nil, fmt.Errorf("PKCS#11 token %q: expected at least 1 session, got %d", o.Label, o.Sessions)
	}
	t := &Token{o: o, module: m, slots: make(chan struct{}, o.Sessions)}
	if err := t.Do(ctx, func(context.Context, Session) error { return nil }); err != nil {
		return nil, err
	}
	return t, nil
}

// Label is the token's label.
func (t *Token) Label() string { return t.o.Label }

// Do lends a session to f and waits for f or for ctx. A session that the token
// no longer knows is replaced, and f is called a second time: f makes at most
// one change, as the last thing it does. When ctx ends first, f may still be
// going on: it takes nothing with it that the caller then changes, and looks at
// its ctx before it makes its change.
func (t *Token) Do(ctx context.Context, f func(context.Context, Session) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case t.slots <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%w: all %d sessions are in use: %w", ErrUnavailable, t.o.Sessions, ctx.Err())
	}
	t.module.busy.Add(1)
	done := make(chan error, 1)
	go func() {
		err := t.do(ctx, f)
		t.module.busy.Add(-1)
		<-t.slots
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: it has not answered: %w", ErrUnavailable, ctx.Err())
	}
}

func (t *Token) do(ctx context.Context, f func(context.Context, Session) error) error {
	for attempt := 0; ; attempt++ {
		h, err := t.attempt(ctx, f)
		if err == nil {
			return nil
		}
		c, _ := errors.AsType[Code](err)
		switch {
		case attempt == 0 && errors.Is(err, errNoToken):
			t.module.reset()
		case c == 0 && h != (handle{}): // f's own error
			t.give(h)
			return err
		case c == CryptokiNotInitialized:
			t.abandon()
			if e := t.module.initialize(); e != nil {
				return e
			}
		case c == SessionHandleInvalid || c == SessionClosed:
			t.abandon()
		case c == UserNotLoggedIn:
			t.forget(h)
		case c.deviceLost():
			// What was under way may have been done: only the caller can know
			// whether to do it again.
			if c.gone() {
				t.forget(h)
				t.module.reset()
			} else if h != (handle{}) {
				t.drop(h)
			}
			return fmt.Errorf("token %q: %w: %w", t.o.Label, ErrUnavailable, err)
		default:
			if h != (handle{}) {
				t.drop(h) // in whatever state an operation left it
			}
			return fmt.Errorf("token %q: %w", t.o.Label, err)
		}
		if attempt >= maxLost {
			return fmt.Errorf("token %q: %w: sessions are lost as soon as they are opened: %w", t.o.Label, ErrUnavailable, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// attempt lends one session once. With an error it returns the session, if
// there was one, for its caller to judge.
func (t *Token) attempt(ctx context.Context, f func(context.Context, Session) error) (handle, error) {
	t.module.calls.RLock()
	defer t.module.calls.RUnlock()
	h, err := t.take(ctx)
	if err != nil {
		return handle{}, err
	}
	if err := f(ctx, t.module.m.Session(h.session, h.slot)); err != nil {
		return h, err
	}
	t.give(h)
	return h, nil
}

// deviceLost: the call failed for reasons of the device, and may have had its
// effect.
func (c Code) deviceLost() bool {
	switch c {
	case GeneralError, FunctionFailed, DeviceError, DeviceMemory, SessionCount:
		return true
	}
	return c.gone()
}

// gone: the device must be looked for anew.
func (c Code) gone() bool {
	switch c {
	case DeviceRemoved, SlotIDInvalid, TokenNotPresent, TokenNotRecognized:
		return true
	}
	return false
}

// take returns an idle session or opens one.
func (t *Token) take(ctx context.Context) (handle, error) {
	if h, err := t.takeIdle(); err != nil || h != (handle{}) {
		return h, err
	}
	t.opening.Lock()
	defer t.opening.Unlock()
	if err := ctx.Err(); err != nil {
		return handle{}, err
	}
	slot, err := t.find()
	if err != nil {
		return handle{}, err
	}
	session, err := t.module.m.OpenSession(slot, t.o.Write)
	if err != nil {
		return handle{}, fmt.Errorf("open a session: %w", err)
	}
	h := handle{session, slot}
	if err := t.login(h); err != nil {
		_ = t.module.m.CloseSession(session)
		return handle{}, err
	}
	return h, nil
}

// takeIdle returns the zero handle where no session is idle.
func (t *Token) takeIdle() (handle, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return handle{}, fmt.Errorf("%w: it was closed", ErrUnavailable)
	}
	n := len(t.idle)
	if n == 0 {
		return handle{}, nil
	}
	h := t.idle[n-1]
	t.idle = t.idle[:n-1]
	return h, nil
}

var errNoToken = errors.New("it is not there")

// find looks for the slot with our token, which moves when a device is plugged
// in anew.
func (t *Token) find() (uint, error) {
	slots, err := t.module.m.Slots()
	if err != nil {
		return 0, fmt.Errorf("list slots: %w", err)
	}
	var found []uint
	var seen []string
	for _, slot := range slots {
		label, err := t.module.m.TokenLabel(slot)
		if err != nil {
			continue // pulled out meanwhile, or not initialized
		}
		if label == t.o.Label {
			found = append(found, slot)
		}
		seen = append(seen, fmt.Sprintf("%q", label))
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return 0, fmt.Errorf("%w: %w: no slot of %s holds a token labelled %q, only %s", ErrUnavailable, errNoToken, t.module.path, t.o.Label, strings.Join(seen, ", "))
	}
	return 0, fmt.Errorf("expected one token labelled %q, got %d: give them different labels", t.o.Label, len(found))
}

// login needs t.opening.
func (t *Token) login(h handle) error {
	pin, err := t.o.PIN()
	if err != nil {
		return err
	}
	defer pin.Clear()
	sum := sha256.Sum256(pin.Expose())
	if sum == t.refused {
		return fmt.Errorf("%w earlier and it was not changed since: correct the PIN, it is not tried again because the token would lock itself", ErrPIN)
	}
	err = t.module.m.Login(h.session, pin.Expose())
	switch c, _ := errors.AsType[Code](err); c {
	case UserAlreadyLoggedIn: // by another session of this process
		return nil
	case PINIncorrect, PINInvalid, PINLenRange, PINLocked:
		t.refused = sum
		return fmt.Errorf("%w: %w", ErrPIN, err)
	}
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	return nil
}

// give returns a session.
func (t *Token) give(h handle) {
	t.mu.Lock()
	closed := t.closed
	if !closed {
		t.idle = append(t.idle, h)
	}
	t.mu.Unlock()
	if closed {
		t.drop(h)
	}
}

// drop closes one session.
func (t *Token) drop(h handle) { _ = t.module.m.CloseSession(h.session) }

// abandon forgets the idle sessions without closing them: the token has done
// so, and may have given their handles to others since.
func (t *Token) abandon() []handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	idle := t.idle
	t.idle = nil
	return idle
}

// forget closes h and all idle sessions.
func (t *Token) forget(h handle) {
	for _, i := range append(t.abandon(), h) {
		if i != (handle{}) {
			t.drop(i)
		}
	}
}

// Close closes the idle sessions, waiting no longer than ctx; those in use are
// closed when they come back.
func (t *Token) Close(ctx context.Context) error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.module.busy.Add(1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer t.module.busy.Add(-1)
		t.forget(handle{})
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close the sessions of token %q: %w", t.o.Label, ctx.Err())
	}
}
