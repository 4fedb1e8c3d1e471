package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// now is the clock of what users write as a distance from now.
func (a *app) now() time.Time { return time.Now() }

// maxDays bounds a distance in days, which could not be a duration beyond.
const maxDays = 36500

// parseTime reads a time of RFC 3339, a date (its beginning in UTC), or a
// distance from now ("90m", "12h", "7d") into the direction.
func parseTime(s string, now time.Time, direction int) (time.Time, error) {
	if at, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return at, nil
	}
	if at, err := time.Parse(time.DateOnly, s); err == nil {
		return at, nil
	}
	distance, err := time.ParseDuration(s)
	if number, ok := strings.CutSuffix(s, "d"); ok && err != nil {
		var days int
		if days, err = strconv.Atoi(number); err == nil && days <= maxDays {
			distance = time.Duration(days) * 24 * time.Hour
		}
	}
	if err != nil || distance <= 0 {
		return time.Time{}, fmt.Errorf("expected a date such as 2027-01-31, a time such as 2027-01-31T12:00:00Z, or a distance such as 12h or 90d, got %.80q", s)
	}
	return now.Add(time.Duration(direction) * distance).UTC().Truncate(time.Second), nil
}
