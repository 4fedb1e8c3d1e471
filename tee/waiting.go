package tee

import "context"

type waitingKey struct{}

// WithWaiting returns a context for work that occupies something which others
// need: a place among those who verify at once. begin is called when the work
// has to wait for something far away, and the function that it returns before
// the work goes on, which takes the place back and fails where that cannot be.
// Both may be called from several goroutines.
func WithWaiting(ctx context.Context, begin func() (end func() error)) context.Context {
	return context.WithValue(ctx, waitingKey{}, begin)
}

// Waiting says that the work of ctx waits from now on, for example for
// collateral. The function that it returns has to be called when the wait is
// over; the work must not go on where it fails.
func Waiting(ctx context.Context) (end func() error) {
	if begin, ok := ctx.Value(waitingKey{}).(func() func() error); ok {
		return begin()
	}
	return func() error { return nil }
}
