package collateral

import "time"

// EventType is what happened.
type EventType string

// The types of events.
const (
	EventHit       EventType = "hit"       // answered from memory or a store
	EventStale     EventType = "stale"     // answered with a document past its date, for want of a fresher one
	EventFetch     EventType = "fetch"     // a request is sent
	EventStored    EventType = "stored"    // the answer passed the checks and is kept
	EventThrottled EventType = "throttled" // the service wants to be left alone
	EventFailed    EventType = "failed"    // the item could not be had
	EventDamaged   EventType = "damaged"   // a file of a store is not what was written; it was set aside
	EventNotStored EventType = "notstored" // the item is good, but the directory could not be written
)

// Event is what [Options].OnEvent is told. It is small and has no secrets; Item
// and Source name chips and platforms.
type Event struct {
	Type   EventType
	Item   Item
	Source string
	// Wait is how long the service wants to be left alone; EventThrottled only.
	Wait time.Duration
	Err  error
}
