package k8s

import (
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func controllerRows() []row {
	return []row{
		{id: "k8s-job", core: true, on: onAll, asserts: "a Job runs to its end, again after a failure", run: func(t *testing.T, c *cluster) {
			c.apply(t, `
apiVersion: batch/v1
kind: Job
metadata: {name: sum}
spec:
  backoffLimit: 3
  template:
    spec: {restartPolicy: OnFailure, volumes: [{name: d, emptyDir: {}}], containers: [{name: a, command: [sh, -c, "test -f /d/x || { touch /d/x; exit 1; }; echo $((6*7))"], volumeMounts: [{name: d, mountPath: /d}]}]}
`)
			c.eventually(t, "the job's success", func() error {
				j, err := c.n.Client().BatchV1().Jobs(c.ns).Get(t.Context(), "sum", metav1.GetOptions{})
				if err == nil && j.Status.Succeeded != 1 {
					err = fmt.Errorf("%+v", j.Status)
				}
				return err
			})
			if out := c.kubectl(t, "logs", "job/sum"); out != "42\n" {
				t.Errorf("it printed %q", out)
			}
		}},
		{id: "k8s-cron-job", on: onAll, asserts: "a job of a CronJob's template runs to its end", run: func(t *testing.T, c *cluster) {
			c.apply(t, `
apiVersion: batch/v1
kind: CronJob
metadata: {name: hourly}
spec:
  schedule: "0 * * * *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: a, command: [echo, now]}]}}}}
`)
			c.kubectl(t, "create", "job", "now", "--from=cronjob/hourly")
			c.eventually(t, "the job's success", func() error {
				j, err := c.n.Client().BatchV1().Jobs(c.ns).Get(t.Context(), "now", metav1.GetOptions{})
				if err == nil && j.Status.Succeeded != 1 {
					err = fmt.Errorf("%+v", j.Status)
				}
				return err
			})
		}},
		{id: "stateful-set", on: onAll, asserts: "a StatefulSet's pods have their names, in order, and can be found by them", run: func(t *testing.T, c *cluster) {
			c.apply(t, `
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template: {metadata: {labels: {app: db}}, spec: {containers: [{name: a}]}}
`)
			c.kubectl(t, "rollout", "status", "statefulset/db", "--timeout="+c.h.patience().String())
			c.want(t, "db-1", "a", "hostname", "db-1")
			c.comes(t, "db-1", "a", "/app get http://db-0.db."+c.ns+".svc.cluster.local:8080/ | cut -d' ' -f1", "db-0")
		}},
		{id: "k8s-scale-nginx", on: onAll, wide: true, asserts: "a Deployment of ten pods at once, behind a Service, and back to none", run: func(t *testing.T, c *cluster) {
			c.apply(t, deployment("ten", 10))
			c.kubectl(t, "rollout", "status", "deployment/ten", "--timeout="+(2*c.h.patience()).String())
			pods, err := c.n.Client().CoreV1().Pods(c.ns).List(t.Context(), metav1.ListOptions{})
			if err != nil || len(pods.Items) != 10 {
				t.Fatalf("%d pods: %v", len(pods.Items), err)
			}
			seen := map[string]bool{}
			for _, p := range pods.Items {
				if seen[p.Status.PodIP] {
					t.Errorf("two pods have the address %s", p.Status.PodIP)
				}
				seen[p.Status.PodIP] = true
			}
			c.kubectl(t, "scale", "deployment/ten", "--replicas=0")
			c.gone(t)
		}},
		{id: "k8s-parallel", on: onAll, wide: true, asserts: "four Jobs at once", run: func(t *testing.T, c *cluster) {
			for i := range 4 {
				c.apply(t, fmt.Sprintf("apiVersion: batch/v1\nkind: Job\nmetadata: {name: j%d}\nspec: {template: {spec: {restartPolicy: Never, containers: [{name: a, command: [echo, \"%d\"]}]}}}\n", i, i))
			}
			c.kubectl(t, "wait", "--for=condition=complete", "job/j0", "job/j1", "job/j2", "job/j3", "--timeout="+c.h.patience().String())
		}},
		{id: "k8s-replication", on: onAll, wide: true, asserts: "a ReplicationController keeps two pods, a deleted one is made anew", run: func(t *testing.T, c *cluster) {
			c.apply(t, "kind: ReplicationController\nmetadata: {name: rc}\nspec: {replicas: 2, selector: {app: rc}, template: {metadata: {labels: {app: rc}}, spec: {containers: [{name: a}]}}}\n")
			two := func() error {
				rc, err := c.n.Client().CoreV1().ReplicationControllers(c.ns).Get(t.Context(), "rc", metav1.GetOptions{})
				if err == nil && rc.Status.ReadyReplicas != 2 {
					err = fmt.Errorf("%+v", rc.Status)
				}
				return err
			}
			c.eventually(t, "two pods", two)
			pods, err := c.n.Client().CoreV1().Pods(c.ns).List(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			c.remove(t, pods.Items[0].Name)
			c.eventually(t, "two pods again", two)
		}},
		{id: "rollout", on: onAll, wide: true, asserts: "a Deployment rolls over to another image", run: func(t *testing.T, c *cluster) {
			c.apply(t, deployment("roll", 1))
			c.kubectl(t, "rollout", "status", "deployment/roll", "--timeout="+c.h.patience().String())
			c.kubectl(t, "set", "env", "deployment/roll", "VERSION=2")
			c.kubectl(t, "rollout", "status", "deployment/roll", "--timeout="+c.h.patience().String())
			if out := strings.TrimSpace(c.kubectl(t, "exec", "deploy/roll", "--", "sh", "-c", "echo $VERSION")); out != "2" {
				t.Errorf("VERSION is %q", out)
			}
		}},
	}
}

func deployment(name string, replicas int) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  progressDeadlineSeconds: 1200
  selector: {matchLabels: {app: %[1]s}}
  template: {metadata: {labels: {app: %[1]s}}, spec: {containers: [{name: a, resources: {limits: {memory: 64Mi}}, readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, timeoutSeconds: 10}}]}}
`, name, replicas)
}

// gone waits until the namespace has no pods.
func (s *space) gone(t *testing.T) {
	t.Helper()
	s.eventually(t, "the end of all pods", func() error {
		pods, err := s.n.Client().CoreV1().Pods(s.ns).List(t.Context(), metav1.ListOptions{})
		if err == nil && len(pods.Items) > 0 {
			err = fmt.Errorf("%d are left", len(pods.Items))
		}
		return err
	})
}
