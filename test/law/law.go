// Package law holds the rules about the repository itself, as tests: which
// package may import which, what the guest agent links, that every package says
// what it is for, and that generated code is up to date.
package law
