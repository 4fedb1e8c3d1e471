#!/bin/sh
# Regenerates agent.pb.go and agent_ttrpc.pb.go with Debian's protoc and the
# plugins pinned in tools/go.mod.
set -eu
cd "$(dirname "$0")"
root=../..
out=${1:-.}
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
(cd "$root/tools" && go build -o "$bin/" google.golang.org/protobuf/cmd/protoc-gen-go github.com/containerd/ttrpc/cmd/protoc-gen-go-ttrpc)
PATH="$bin:$PATH" protoc --go_out="$out" --go_opt=paths=source_relative \
	--go-ttrpc_out="$out" --go-ttrpc_opt=paths=source_relative agent.proto
