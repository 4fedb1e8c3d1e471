package podpolicy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Slot is a type of value that a policy leaves to the host. Every type has a
// form that values are checked against; beyond that form a value is untrusted.
type Slot string

// The closed list of slot types.
const (
	SlotIP             Slot = "ip"
	SlotIPs            Slot = "ips"
	SlotHostIP         Slot = "hostIP"
	SlotHostIPs        Slot = "hostIPs"
	SlotHostname       Slot = "hostname"
	SlotPodName        Slot = "podName"
	SlotPodNamespace   Slot = "podNamespace"
	SlotPodUID         Slot = "podUID"
	SlotNodeName       Slot = "nodeName"
	SlotServiceAccount Slot = "serviceAccount"
	SlotServiceEnv     Slot = "serviceEnv"
	SlotMemory         Slot = "memory"
	SlotCPU            Slot = "cpu"
	SlotDNS            Slot = "dns"
	SlotHosts          Slot = "hosts"
)

// slotSpec is what is known of a slot type.
type slotSpec struct {
	// form says in words what check accepts.
	form string
	// check judges a value that is one string; nil where the value has a shape
	// of its own.
	check func(string) bool
	// env: the slot may stand in a container's environment, and its value
	// comes in the proposal's slots.
	env bool
}

// spec returns nil for a type that is not on the list.
func (s Slot) spec() *slotSpec {
	switch s {
	case SlotIP, SlotHostIP:
		return &slotSpec{"a unicast IP address without zone", isUnicast, true}
	case SlotIPs, SlotHostIPs:
		return &slotSpec{"1 to 8 unicast IP addresses, separated by commas", isUnicastList, true}
	case SlotHostname:
		return &slotSpec{"a host name of at most 64 characters (RFC 1123: lower-case letters, digits, - and .)", isHostname, true}
	case SlotPodName, SlotNodeName, SlotServiceAccount:
		return &slotSpec{"a DNS name of at most 253 characters (RFC 1123: lower-case letters, digits, - and .)", isDNSName, true}
	case SlotPodNamespace:
		return &slotSpec{"a DNS label of at most 63 characters (RFC 1123: lower-case letters, digits and -)", isDNSLabel, true}
	case SlotPodUID:
		return &slotSpec{"1 to 64 letters, digits and -", isUID, true}
	case SlotServiceEnv:
		return &slotSpec{"variables that Kubernetes derives from the services the policy names", nil, false}
	case SlotMemory:
		return &slotSpec{"a positive number of bytes", nil, false}
	case SlotCPU:
		return &slotSpec{"a positive number of thousandths of a CPU", nil, false}
	case SlotDNS:
		return &slotSpec{"at most 3 servers, 32 search domains and 16 options", nil, false}
	case SlotHosts:
		return &slotSpec{"at most 256 addresses with names", nil, false}
	}
	return nil
}

func allSlots() []Slot {
	return []Slot{SlotIP, SlotIPs, SlotHostIP, SlotHostIPs, SlotHostname, SlotPodName, SlotPodNamespace, SlotPodUID,
		SlotNodeName, SlotServiceAccount, SlotServiceEnv, SlotMemory, SlotCPU, SlotDNS, SlotHosts}
}

// envSlots are the types whose values come in the slots of a container
// proposal.
func envSlots() []Slot {
	return slices.DeleteFunc(allSlots(), func(s Slot) bool { return !s.spec().env })
}

func slotList(slots []Slot) string {
	names := make([]string, len(slots))
	for i, s := range slots {
		names[i] = string(s)
	}
	return strings.Join(names, ", ")
}

// checkSlot judges a value of a scalar slot.
func checkSlot(s Slot, path, value string) *Refusal {
	spec := s.spec()
	if spec == nil || spec.check == nil {
		return refuse(RuleSlotType, path, "one of "+slotList(envSlots()), string(s), "")
	}
	if !spec.check(value) {
		return refuse(RuleSlotValue, path, spec.form, quote(value), "")
	}
	return nil
}

func isUnicast(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && len(s) <= 45 && unicast(a)
}

// unicast refuses what would make a name or route mean the pod itself.
func unicast(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsValid() && a.Zone() == "" && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func isUnicastList(s string) bool {
	if len(s) > 8*46 {
		return false
	}
	parts := strings.Split(s, ",")
	return len(parts) <= 8 && !slices.ContainsFunc(parts, func(p string) bool { return !isUnicast(p) })
}

func isHostname(s string) bool { return len(s) <= 64 && isDNSName(s) }

func isDNSName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !isDNSLabel(label) {
			return false
		}
	}
	return true
}

func isDNSLabel(s string) bool {
	return len(s) >= 1 && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-' && only(s, "abcdefghijklmnopqrstuvwxyz0123456789-")
}

func isUID(s string) bool { return len(s) >= 1 && len(s) <= 64 && only(s, alnum+"-") }

const alnum = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

func only(s, chars string) bool {
	for _, c := range []byte(s) {
		if strings.IndexByte(chars, c) < 0 {
			return false
		}
	}
	return true
}

// serviceVariable reports whether name is a variable that Kubernetes derives
// from a service (a DNS label), and value fits it. The forms are those of the
// Kubernetes documentation, "Service", environment variables: X_SERVICE_HOST,
// X_SERVICE_PORT, X_SERVICE_PORT_<NAME>, and the Docker link variables X_PORT,
// X_PORT_<n>_<PROTO> and its _PROTO, _PORT, _ADDR.
func serviceVariable(service, name, value string) bool {
	rest, ok := strings.CutPrefix(name, servicePrefix(service))
	if !ok || len(value) > 80 {
		return false
	}
	switch rest {
	case "_SERVICE_HOST":
		return isUnicast(value)
	case "_SERVICE_PORT":
		return isPort(value)
	case "_PORT":
		return isServiceURL(value)
	}
	if portName, ok := strings.CutPrefix(rest, "_SERVICE_PORT_"); ok {
		return portName != "" && len(portName) <= 63 && only(portName, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") && isPort(value)
	}
	rest, ok = strings.CutPrefix(rest, "_PORT_")
	if !ok {
		return false
	}
	number, rest, _ := strings.Cut(rest, "_")
	proto, part, cut := strings.Cut(rest, "_")
	if !isPort(number) || !slices.Contains([]string{"TCP", "UDP", "SCTP"}, proto) {
		return false
	}
	switch {
	case !cut:
		return isServiceURL(value)
	case part == "PROTO":
		return value == strings.ToLower(proto)
	case part == "PORT":
		return value == number
	case part == "ADDR":
		return isUnicast(value)
	}
	return false
}

func servicePrefix(service string) string {
	return strings.ToUpper(strings.ReplaceAll(service, "-", "_"))
}

func isPort(s string) bool {
	n, err := parseDigits(s)
	return err == nil && n >= 1 && n <= 65535 && s[0] != '0'
}

func isServiceURL(s string) bool {
	proto, rest, ok := strings.Cut(s, "://")
	if !ok || !slices.Contains([]string{"tcp", "udp", "sctp"}, proto) {
		return false
	}
	a, err := netip.ParseAddrPort(rest)
	return err == nil && unicast(a.Addr()) && a.Port() != 0
}

// maxPattern and maxMatched bound a pattern and what is held against it, and so
// the work of matching.
const (
	maxPattern = 128
	maxMatched = 256
)

// checkPattern judges a pattern of the policy.
func checkPattern(p string) error {
	if p == "" || len(p) > maxPattern || !printable(p) {
		return fmt.Errorf("a pattern has 1 to %d printable characters", maxPattern)
	}
	if strings.Contains(p, "**") {
		return fmt.Errorf("** means the same as *; write *")
	}
	return nil
}

// matches holds s against a pattern in which * stands for any characters, also
// none, and ? for exactly one; everything else stands for itself. Only the last
// star is ever tried again, so the work is at most len(pattern)·len(s).
func matches(pattern, s string) bool {
	if len(s) > maxMatched || !printable(s) {
		return false
	}
	p, t := []rune(pattern), []rune(s)
	i, j, star, mark := 0, 0, -1, 0
	for j < len(t) {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == t[j]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}
