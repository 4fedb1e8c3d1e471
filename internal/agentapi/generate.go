// Package agentapi is the protocol between the host and the guest agent: protobuf
// messages, the ttrpc service, and (in channel) the multiplexed transport that
// carries them. It is the only package that both wings share, and it imports
// nothing else of this module. The guest is the server; what the host sends is
// a proposal that the pod policy judges.
package agentapi

//go:generate sh generate.sh
