// Package notice is what a person should know of a pod that runs: that it is
// unsealed, what of it has no effect, what its policy has refused.
//
// The pod's shim keeps them in a file in the pod's directory ([File.Add]).
// Whoever tells people reads it there: the node's DaemonSet makes events of the
// pods of it ([Scan]), so that `kubectl describe pod` shows them, and `coffer
// doctor` prints them. When the pod ends, and its directory with it, the file is
// moved ([Keep]) to where it waits for the DaemonSet ([Kept], [Drop]): within
// bounds of number, size and age, and until the node is started anew.
//
// Texts may be of the guest, which is not trusted: they are one printable line
// of bounded length, and there is a bounded number of them, of each [Reason] and
// in all. They are for everybody who may read the pod's events and never have
// secrets in them.
package notice

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"
)

// Reason is the kind of a notice, a word for machines as in an event of
// Kubernetes.
type Reason string

// The reasons that there are. A reader may meet others, of a newer shim.
const (
	// Unsealed: no policy is in force in the pod, and it gets no secrets.
	Unsealed Reason = "Unsealed"
	// NoEffect: a field of the pod has none.
	NoEffect Reason = "NoEffect"
	// Volume: a volume is not what its pod may expect.
	Volume Reason = "Volume"
	// Degraded: the pod runs, with less than the node should have given it.
	Degraded Reason = "Degraded"
	// Refused: the pod's policy has refused a request.
	Refused Reason = "Refused"
	// PortForward: a connection to a port of the pod was not forwarded.
	PortForward Reason = "PortForward"
	// Closed: the pod's policy does not let the node see a stream.
	Closed Reason = "StreamClosed"
)

// Warning tells what needs attention from what is only to be known.
func (r Reason) Warning() bool { return r != Closed }

// Bounds of the notices of one pod.
const (
	// MaxMessage is of one, in bytes: events of Kubernetes have room for 1,024
	// (kubernetes@v1.35.4 pkg/apis/core/validation/events.go, NoteLengthLimit).
	MaxMessage = 1000
	// MaxEach is how many there are of a reason, MaxAll of all.
	MaxEach = 8
	MaxAll  = 32
	// maxLine bounds one in the file, maxFile the file.
	maxLine = 4 << 10
	maxFile = MaxAll * maxLine
)

// Pod is whom a notice is about.
type Pod struct {
	// ID is the sandbox's.
	ID string `json:"id"`
	// Namespace, Name and UID are the pod's in Kubernetes; empty without it.
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
}

// Kubernetes tells that the pod is one of Kubernetes.
func (p Pod) Kubernetes() bool { return p.UID != "" && p.Name != "" && p.Namespace != "" }

// Notice is one.
type Notice struct {
	Pod Pod `json:"pod"`
	// At is when it was noticed first.
	At     time.Time `json:"at"`
	Reason Reason    `json:"reason"`
	// Message is one line: what happened and what to do.
	Message string `json:"message"`
}

// Key is the same for the same notice of the same pod, and for no other: 32
// characters of [0-9a-f].
func (n Notice) Key() string {
	sum := sha256.Sum256([]byte(strings.Join([]string{n.Pod.UID, n.Pod.Namespace, n.Pod.Name, string(n.Reason), n.Message}, "\x00")))
	return hex.EncodeToString(sum[:16])
}

var (
	reasonForm = regexp.MustCompile(`^[A-Z][A-Za-z]*$`)
	// Names of containerd and Kubernetes: RFC 1123 subdomains, and identifiers.
	nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
)

// The longest reason and the longest name, in bytes.
const (
	maxReason = 64
	maxName   = 253
)

// check refuses what is not a notice.
func (n Notice) check() error {
	if len(n.Reason) > maxReason || !reasonForm.MatchString(string(n.Reason)) {
		return fmt.Errorf("notice: reason: expected a word of letters, got %.80q", string(n.Reason))
	}
	if !isName(n.Pod.ID) {
		return fmt.Errorf("notice: pod.id: expected an identifier, got %.80q", n.Pod.ID)
	}
	for field, value := range map[string]string{"namespace": n.Pod.Namespace, "name": n.Pod.Name, "uid": n.Pod.UID} {
		if value != "" && !isName(value) {
			return fmt.Errorf("notice: pod.%s: expected a name of Kubernetes, got %.80q", field, value)
		}
	}
	if n.Message == "" {
		return errors.New("notice: message: expected a text, got nothing")
	}
	return nil
}

func isName(s string) bool { return len(s) <= maxName && nameForm.MatchString(s) }

// Clean makes a text one printable line of at most MaxMessage bytes.
func Clean(text string) string {
	const ellipsis = "…"
	long := len(text) > MaxMessage
	if long {
		text = text[:MaxMessage]
	}
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.IsPrint(r):
			return r
		}
		return unicode.ReplacementChar
	}, strings.ToValidUTF8(text, string(unicode.ReplacementChar)))
	text = strings.Join(strings.Fields(text), " ")
	if !long && len(text) <= MaxMessage {
		return text
	}
	// A replacement is longer than what it stands for.
	return strings.ToValidUTF8(text[:min(len(text), MaxMessage-len(ellipsis))], "") + ellipsis
}
