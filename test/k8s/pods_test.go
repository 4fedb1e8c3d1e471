package k8s

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
)

// ready tells whether a pod's containers all pass, and whether it never will.
func ready(p *corev1.Pod) (bool, error) {
	if p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
		return false, errors.New("the pod has ended")
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return true, nil
		}
	}
	return false, nil
}

// ended tells whether a pod will not run any more.
func ended(p *corev1.Pod) (bool, error) {
	return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded, nil
}

// watchPod waits until cond holds of a pod, or says that it never will.
func (s *space) watchPod(ctx context.Context, name, what string, cond func(*corev1.Pod) (bool, error)) (*corev1.Pod, error) {
	var last *corev1.Pod
	for ctx.Err() == nil {
		w, err := s.n.Client().CoreV1().Pods(s.ns).Watch(ctx, metav1.ListOptions{ResourceVersion: "0", FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()})
		if err != nil {
			return last, err
		}
		for e := range w.ResultChan() {
			p, ok := e.Object.(*corev1.Pod)
			if !ok {
				continue
			}
			last = p
			if e.Type == watch.Deleted {
				w.Stop()
				return last, fmt.Errorf("pod %s was deleted", name)
			}
			if is, err := cond(p); err != nil || is {
				w.Stop()
				if err != nil {
					err = fmt.Errorf("pod %s is not %s: %w: %s", name, what, err, status(p))
				}
				return last, err
			}
		}
	}
	now := "it was never seen"
	if last != nil {
		now = status(last)
	}
	return last, fmt.Errorf("pod %s is not %s in time: %s", name, what, now)
}

// waitPod fails the test if cond does not come to hold of a pod.
func (s *space) waitPod(t *testing.T, name, what string, cond func(*corev1.Pod) (bool, error)) *corev1.Pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), s.h.patience())
	defer cancel()
	p, err := s.watchPod(ctx, name, what, cond)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (s *space) ready(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	return s.waitPod(t, name, "ready", ready)
}

// succeeded waits for the end of a pod, all of whose containers must exit with 0.
func (s *space) succeeded(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	p := s.waitPod(t, name, "ended", ended)
	if p.Status.Phase != corev1.PodSucceeded {
		t.Fatalf("pod %s: %s\n%s", name, status(p), s.describe())
	}
	return p
}

// container returns the status of a container, of whatever list.
func container(p *corev1.Pod, name string) corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for _, c := range list {
			if c.Name == name {
				return c
			}
		}
	}
	return corev1.ContainerStatus{}
}

// event waits for an event of a pod that contains all of the words.
func (s *space) event(t *testing.T, pod string, words ...string) string {
	t.Helper()
	var found string
	s.eventually(t, fmt.Sprintf("an event of pod %s with %q", pod, words), func() error {
		events, err := s.n.Client().CoreV1().Events(s.ns).List(t.Context(), metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return err
		}
		var all []string
		for _, e := range events.Items {
			if e.InvolvedObject.Name != pod {
				continue
			}
			text := e.Reason + ": " + e.Message
			all = append(all, text)
			if containsAll(text, words) {
				found = text
				return nil
			}
		}
		return fmt.Errorf("there are %q", all)
	})
	return found
}

func containsAll(text string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return false
		}
	}
	return true
}

// logs is what a container has printed.
func (s *space) logs(t *testing.T, pod, container string) string {
	t.Helper()
	out, err := s.tryLogs(t, pod, container)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *space) tryLogs(t *testing.T, pod, container string) (string, error) {
	out, err := s.n.Client().CoreV1().Pods(s.ns).GetLogs(pod, &corev1.PodLogOptions{Container: container}).DoRaw(t.Context())
	if err != nil {
		return "", fmt.Errorf("logs of %s/%s: %w: %s", pod, container, err, out)
	}
	return string(out), nil
}

// printed waits until a container has printed a text.
func (s *space) printed(t *testing.T, pod, container, text string) {
	t.Helper()
	s.eventually(t, fmt.Sprintf("%q from %s/%s", text, pod, container), func() error {
		out, err := s.tryLogs(t, pod, container)
		if err == nil && !strings.Contains(out, text) {
			err = fmt.Errorf("it printed %q", clip(out))
		}
		return err
	})
}

func clip(s string) string {
	if len(s) > 400 {
		return "…" + s[len(s)-400:]
	}
	return s
}

// remove deletes a pod and waits until it has gone.
func (s *space) remove(t *testing.T, pod string) {
	t.Helper()
	if err := s.n.Client().CoreV1().Pods(s.ns).Delete(t.Context(), pod, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.eventually(t, "the end of pod "+pod, func() error {
		if _, err := s.n.Client().CoreV1().Pods(s.ns).Get(t.Context(), pod, metav1.GetOptions{}); err == nil {
			return errors.New("it is still there")
		}
		return nil
	})
}
