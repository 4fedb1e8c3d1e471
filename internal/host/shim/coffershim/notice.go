package coffershim

import (
	"github.com/coffer-project/coffer/internal/host/notice"
)

// tell writes down what a person should know of the pod, in its directory. The
// caller has logged it.
func (n *node) tell(reason notice.Reason, message string) bool {
	added, err := n.notices.Add(n.who(), reason, message)
	if err != nil {
		n.d.Logger.Warn("a notice of the pod could not be written down", "reason", reason, "message", notice.Clean(message), "error", err)
	}
	return added
}

// refused is tell for what the guest, which is not trusted, may tell at any rate:
// it is logged once.
func (n *node) refused(reason notice.Reason, message string) {
	if n.tell(reason, message) {
		n.d.Logger.Warn("of the pod", "reason", reason, "message", notice.Clean(message))
	}
}

// who the pod is, as far as it is known.
func (n *node) who() notice.Pod {
	who := notice.Pod{ID: n.d.ID}
	p := n.pod.Load()
	if p == nil {
		return who
	}
	if s := p.Sandbox(); s != nil {
		who.Namespace, who.Name, who.UID = s.Namespace, s.Name, s.UID
	}
	return who
}
