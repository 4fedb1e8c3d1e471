package podpolicy

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestMatches(t *testing.T) {
	t.Parallel()
	tests := []struct {
		pattern, s string
		want       bool
	}{
		{"web-*", "web-1", true}, {"web-*", "web-", true}, {"web-*", "web", false}, {"web-*", "xweb-1", false},
		{"*", "", true}, {"?", "", false}, {"?", "a", true}, {"?", "ä", true}, {"?", "ab", false},
		{"a*b*c", "aXbYc", true}, {"a*b*c", "abcbc", true}, {"a*b*c", "ab", false}, {"*a", "aaa", true}, {"a?c", "abc", true},
		{"a.c", "abc", false}, {"[ab]", "a", false}, {`\*`, "*", false}, {"*", "a\nb", false}, {"*", "a\xff", false},
		{"*", strings.Repeat("a", 256), true}, {"*", strings.Repeat("a", 257), false}, {"x", "", false}, {"ab", "abc", false},
	}
	for _, tt := range tests {
		if got := matches(tt.pattern, tt.s); got != tt.want {
			t.Errorf("matches(%q, %q) = %t", tt.pattern, tt.s, got)
		}
	}
}

// The pattern that is worst for matchers that try all stars again: those would
// never return.
func TestMatchesIsNotExponential(t *testing.T) {
	t.Parallel()
	if matches(strings.Repeat("a*", maxPattern/2-1)+"b", strings.Repeat("a", maxMatched)) {
		t.Error("matches")
	}
}

func FuzzMatches(f *testing.F) {
	f.Add("web-*", "web-1")
	f.Add("a?*b", "axyb")
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if checkPattern(pattern) != nil || len(s) > 64 || !printable(s) {
			return
		}
		if got, want := matches(pattern, s), slowMatch([]rune(pattern), []rune(s), map[[2]int]bool{}); got != want {
			t.Errorf("matches(%q, %q) = %t, want %t", pattern, s, got, want)
		}
	})
}

// slowMatch is the definition; seen remembers what did not match.
func slowMatch(p, s []rune, seen map[[2]int]bool) bool {
	key := [2]int{len(p), len(s)}
	if seen[key] {
		return false
	}
	var ok bool
	switch {
	case len(p) == 0:
		ok = len(s) == 0
	case p[0] == '*':
		ok = slowMatch(p[1:], s, seen) || len(s) > 0 && slowMatch(p, s[1:], seen)
	default:
		ok = len(s) > 0 && (p[0] == '?' || p[0] == s[0]) && slowMatch(p[1:], s[1:], seen)
	}
	seen[key] = !ok
	return ok
}

func TestSlotForms(t *testing.T) {
	t.Parallel()
	legal := map[Slot][]string{
		SlotIP: {"10.0.0.1", "fd00::1"}, SlotIPs: {"10.0.0.1", "10.0.0.1,fd00::1"}, SlotHostIP: {"192.168.1.1"}, SlotHostIPs: {"192.168.1.1"},
		SlotHostname: {"web-1", "a.b"}, SlotPodName: {"web-1.x", strings.Repeat("a", 63)}, SlotPodNamespace: {"shop"}, SlotPodUID: {"0b6f-A"},
		SlotNodeName: {"node-1.example"}, SlotServiceAccount: {"default"},
	}
	illegal := map[Slot][]string{
		SlotIP: {"", "10.0.0.256", "010.0.0.1", " 10.0.0.1", "ff02::1"}, SlotIPs: {"", ",", "10.0.0.1,", "10.0.0.1, 10.0.0.2", strings.Repeat("10.0.0.1,", 8) + "10.0.0.1"},
		SlotHostname: {"", "-a", "a-", "A", "a..b", "a_b", strings.Repeat("a.", 40), "a\n"}, SlotPodName: {strings.Repeat("a.", 130) + "a", strings.Repeat("a", 64)},
		SlotPodNamespace: {"a.b", ""}, SlotPodUID: {"", "a/b", strings.Repeat("a", 65)}, SlotNodeName: {"../x"},
		SlotDNS: {"x"}, SlotServiceEnv: {"x"}, SlotMemory: {"1"}, Slot("x"): {"x"},
	}
	for _, s := range envSlots() {
		if len(legal[s]) == 0 {
			t.Errorf("slot %s is not tested", s)
		}
	}
	for s, values := range legal {
		for _, v := range values {
			if r := checkSlot(s, "p", v); r != nil {
				t.Errorf("%s %q: %v", s, v, r)
			}
		}
	}
	for s, values := range illegal {
		for _, v := range values {
			if checkSlot(s, "p", v) == nil {
				t.Errorf("%s %q is legal", s, v)
			}
		}
	}
}

func TestServiceVariables(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, value string
		want        bool
	}{
		{"MY_DB_SERVICE_HOST", "10.0.0.1", true}, {"MY_DB_SERVICE_PORT", "5432", true}, {"MY_DB_SERVICE_PORT_PG_SQL", "5432", true},
		{"MY_DB_PORT", "tcp://10.0.0.1:5432", true}, {"MY_DB_PORT_5432_TCP", "tcp://10.0.0.1:5432", true}, {"MY_DB_PORT_5432_TCP_PROTO", "tcp", true},
		{"MY_DB_PORT_5432_TCP_PORT", "5432", true}, {"MY_DB_PORT_5432_TCP_ADDR", "10.0.0.1", true}, {"MY_DB_PORT_53_UDP", "udp://[fd00::1]:53", true},
		{"MY_DB_PORT_5432_TCP_PORT", "5433", false}, {"MY_DB_PORT_5432_TCP_PROTO", "udp", false}, {"MY_DB_PORT_5432_HTTP", "tcp://10.0.0.1:1", false},
		{"MY_DB_SERVICE_PORT_", "5432", false}, {"MY_DB_SERVICE_HOST", "127.0.0.1", false}, {"MY_DB_PORT", "tcp://127.0.0.1:1", false},
		{"MY_DB_PORT", "tcp://10.0.0.1:0", false}, {"MY_DB_SERVICE_PORT", "0", false}, {"MY_DB_SERVICE_PORT", "080", false}, {"MY_DB", "x", false}, {"MY_DBX", "x", false},
		{"PATH", "/x", false}, {"MY_DB_PORT_5432_TCP_", "x", false},
	} {
		if got := serviceVariable("my-db", tt.name, tt.value); got != tt.want {
			t.Errorf("%s=%s: %t", tt.name, tt.value, got)
		}
	}
}

func TestParseImage(t *testing.T) {
	t.Parallel()
	d := "sha256:" + strings.Repeat("0a", 32)
	for in, want := range map[string]string{
		"nginx": "docker.io/library/nginx", "nginx:1": "docker.io/library/nginx:1", "a/b": "docker.io/a/b", "index.docker.io/nginx": "docker.io/library/nginx",
		"r.example/a": "r.example/a", "r.example:5000/a/b:t@" + d: "r.example:5000/a/b:t@" + d, "localhost/a": "localhost/a", "localhost:5000/a": "localhost:5000/a",
		"host:5000/a": "host:5000/a", "[fd00::1]:5000/a": "[fd00::1]:5000/a", "a/b@" + d: "docker.io/a/b@" + d, "r.example/a__b": "r.example/a__b",
	} {
		if got, err := parseImage(in); err != nil || got.String() != want {
			t.Errorf("%q: got %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", ":", "@", "a:", "a@", "a@sha256:00", "A", "r.example/", "r.example//a", "r.example/../a", "r.example/a:b:c", "r.example/a:-t", "r.example/a b", "r.example:0/a", "r.example:x/a",
		"http://r.example/a", "r.example/a\n", "[/a", "[]:1/", "r.example/-a", "r.example/a-", strings.Repeat("a", 600), "a@" + d + "@" + d, "@" + d, ":t@" + d} {
		if got, err := parseImage(in); err == nil {
			t.Errorf("%q: got %q", in, got)
		}
	}
}

func FuzzParseImage(f *testing.F) {
	for _, s := range []string{"nginx", "r.example:5000/a/b:t@sha256:" + strings.Repeat("0a", 32), "[::1]:5/a", "@", "a:b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := parseImage(s)
		if err != nil {
			return
		}
		if again, err := parseImage(ref.String()); err != nil || again != ref {
			t.Errorf("%q → %q → %q, %v", s, ref, again, err)
		}
	})
}

func TestSignals(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]uint32{"SIGTERM": 15, "TERM": 15, "15": 15, "SIGRTMIN+3": 37, "RTMIN+3": 37, "": 0, "SIG": 0, "NOPE": 0, "65": 0, "SIGRTMIN+31": 0, "SIGRTMIN+03": 0} {
		if got := stopSignal(in); got != want {
			t.Errorf("%q: %d, want %d", in, got, want)
		}
	}
}

func TestCapabilitiesAreSorted(t *testing.T) {
	t.Parallel()
	if !slices.IsSorted(capabilities()) || len(capabilities()) != 41 {
		t.Error("capabilities are not sorted, or not all of Linux's 41")
	}
	for _, c := range DefaultCapabilities() {
		if !slices.Contains(capabilities(), c) {
			t.Errorf("%s is no capability", c)
		}
	}
}

// The reference names every field, slot type and rule.
func TestReferenceIsComplete(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../docs/pod-policy.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	var missing []string
	for _, rule := range Rules() {
		if !strings.Contains(page, "| `"+rule+"` |") {
			missing = append(missing, "rule "+rule)
		}
	}
	for _, s := range allSlots() {
		if s.spec() == nil || !strings.Contains(page, "| `"+string(s)+"` |") {
			missing = append(missing, "slot "+string(s))
		}
	}
	for _, typ := range []reflect.Type{
		reflect.TypeFor[Policy](), reflect.TypeFor[Pod](), reflect.TypeFor[Container](), reflect.TypeFor[Image](), reflect.TypeFor[User](), reflect.TypeFor[Mount](),
		reflect.TypeFor[Allow](), reflect.TypeFor[Limits](), reflect.TypeFor[Volume](), reflect.TypeFor[HostFiles](), reflect.TypeFor[Network](), reflect.TypeFor[DNS](),
		reflect.TypeFor[Hosts](), reflect.TypeFor[HostEntry](), reflect.TypeFor[EnvValue](), reflect.TypeFor[execObject](), reflect.TypeFor[nameObject](),
	} {
		for f := range typ.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if f.IsExported() && !strings.Contains(page, "`"+name+"`") {
				missing = append(missing, "field "+typ.Name()+"."+name)
			}
		}
	}
	if len(missing) > 0 {
		t.Errorf("docs/pod-policy.md lacks %s", strings.Join(missing, ", "))
	}
}

// Every rule constant is in Rules, and none twice.
func TestRulesAreListed(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("refusal.go")
	if err != nil {
		t.Fatal(err)
	}
	constants := 0
	for line := range strings.Lines(string(source)) {
		if strings.HasPrefix(line, "\tRule") && strings.Contains(line, "= \"") {
			constants++
		}
	}
	rules := Rules()
	slices.Sort(rules)
	if len(rules) != constants || len(slices.Compact(rules)) != constants {
		t.Errorf("%d constants, %d rules listed", constants, len(rules))
	}
}
