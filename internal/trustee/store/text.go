package store

import (
	"errors"
	"strings"
)

// clean makes text that both databases store: PostgreSQL refuses NUL and what
// is not UTF-8.
func clean(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", "\ufffd")
}

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }

func isConflict(err error) bool { return errors.Is(err, ErrConflict) }
