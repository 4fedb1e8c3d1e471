package kubeapi

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Component is who events are from.
const Component = "coffer"

// Event is one of a pod, as `kubectl describe pod` shows it.
type Event struct {
	// Name is the event's own; the pod's namespace is its, too.
	Name string
	// Namespace, Pod and UID name the pod.
	Namespace, Pod, UID string
	// Warning: something to look at; else it is only to be known.
	Warning         bool
	Reason, Message string
	At              time.Time
	// Node is where it happened.
	Node string
}

// CreateEvent posts an event. One of the same name is ErrExists, a namespace that
// is not there ErrNotFound.
func (c *Client) CreateEvent(ctx context.Context, e Event) error {
	kind := "Normal"
	if e.Warning {
		kind = "Warning"
	}
	at := e.At.UTC().Format(time.RFC3339)
	// core/v1: kubernetes@v1.35.4 staging/src/k8s.io/api/core/v1/types.go, Event.
	// Without eventTime it is what components like the kubelet write.
	body := map[string]any{
		"apiVersion": "v1", "kind": "Event",
		"metadata":       map[string]any{"name": e.Name, "namespace": e.Namespace},
		"involvedObject": map[string]any{"apiVersion": "v1", "kind": "Pod", "namespace": e.Namespace, "name": e.Pod, "uid": e.UID},
		"type":           kind, "reason": e.Reason, "message": e.Message,
		"firstTimestamp": at, "lastTimestamp": at, "count": 1,
		"source":             map[string]any{"component": Component, "host": e.Node},
		"reportingComponent": Component, "reportingInstance": e.Node,
	}
	return c.do(ctx, http.MethodPost, "/api/v1/namespaces/"+url.PathEscape(e.Namespace)+"/events", "application/json", body, nil)
}
