package podpolicy

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ParseBytes reads a number of bytes: a positive decimal integer with an
// optional suffix Ki, Mi, Gi, Ti (powers of 1024) or k, M, G, T (powers of
// 1000).
func ParseBytes(s string) (uint64, error) {
	digits := strings.TrimRight(s, "KMGTik")
	var unit uint64
	switch s[len(digits):] {
	case "":
		unit = 1
	case "k":
		unit = 1e3
	case "M":
		unit = 1e6
	case "G":
		unit = 1e9
	case "T":
		unit = 1e12
	case "Ki":
		unit = 1 << 10
	case "Mi":
		unit = 1 << 20
	case "Gi":
		unit = 1 << 30
	case "Ti":
		unit = 1 << 40
	}
	n, err := parseDigits(digits)
	if unit == 0 || err != nil || n == 0 || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is not a number of bytes: expected a positive integer with one of the suffixes Ki, Mi, Gi, Ti, k, M, G, T, or none", clip(s))
	}
	return n * unit, nil
}

// FormatBytes writes n as ParseBytes reads it, with the greatest binary suffix
// that loses nothing.
func FormatBytes(n uint64) string {
	for _, u := range []struct {
		shift  int
		suffix string
	}{{40, "Ti"}, {30, "Gi"}, {20, "Mi"}, {10, "Ki"}} {
		if n != 0 && n&(1<<u.shift-1) == 0 {
			return strconv.FormatUint(n>>u.shift, 10) + u.suffix
		}
	}
	return strconv.FormatUint(n, 10)
}

// maxCPUMillis is 1024 CPUs.
const maxCPUMillis = 1024 * 1000

// ParseCPUs reads processor time in thousandths of a CPU: "1500m", or CPUs with
// up to three decimals, "1.5".
func ParseCPUs(s string) (uint32, error) {
	bad := fmt.Errorf("%q is not processor time: expected thousandths (1500m) or CPUs with up to three decimals (1.5), more than 0 and at most %d CPUs", clip(s), maxCPUMillis/1000)
	var millis uint64
	if digits, ok := strings.CutSuffix(s, "m"); ok {
		n, err := parseDigits(digits)
		if err != nil {
			return 0, bad
		}
		millis = n
	} else {
		whole, fraction, point := strings.Cut(s, ".")
		if point && fraction == "" || len(fraction) > 3 {
			return 0, bad
		}
		n, err := parseDigits(whole)
		if err != nil || n > maxCPUMillis {
			return 0, bad
		}
		f, err := parseDigits((fraction + "000")[:3])
		if err != nil {
			return 0, bad
		}
		millis = n*1000 + f
	}
	if millis == 0 || millis > maxCPUMillis {
		return 0, bad
	}
	return uint32(millis), nil
}

// FormatCPUs writes millis as ParseCPUs reads it.
func FormatCPUs(millis uint32) string {
	if millis%1000 == 0 {
		return strconv.FormatUint(uint64(millis/1000), 10)
	}
	return strconv.FormatUint(uint64(millis), 10) + "m"
}

// parseDigits takes decimal digits only: no sign, no underscore.
func parseDigits(s string) (uint64, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseUint(s, 10, 64)
}

// clip bounds text of the other side that a message quotes.
func clip(s string) string {
	const limit = 256
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}
