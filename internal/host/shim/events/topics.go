package events

// Topics of a task's events, as containerd knows them:
// containerd/containerd v2 core/runtime/events.go.
const (
	TopicCreate      = "/tasks/create"
	TopicStart       = "/tasks/start"
	TopicOOM         = "/tasks/oom"
	TopicExit        = "/tasks/exit"
	TopicDelete      = "/tasks/delete"
	TopicExecAdded   = "/tasks/exec-added"
	TopicExecStarted = "/tasks/exec-started"
	TopicPaused      = "/tasks/paused"
	TopicResumed     = "/tasks/resumed"
)
