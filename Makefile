# Coffer. Everything a target needs it installs or builds itself; what is up to date
# is left alone. Recipes talk on standard error, so that standard output holds
# what was asked for and nothing else.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS   += --no-builtin-rules
# Two recipes must not install packages at once; go build uses all processors anyway.
.NOTPARALLEL:

GO       ?= $(shell scripts/find-go)
PROGRAMS := coffer coffer-agent coffer-trustee containerd-shim-coffer-v2
GUEST    := build/guest
CACHE    := build/cache/packages
LINT     := build/tools/golangci-lint
# Where test tools find things; absolute, since tests run in their packages.
TEST_ENV := COFFER_BIN=$(CURDIR)/bin COFFER_GUEST_IMAGE=$(CURDIR)/$(GUEST) \
            COFFER_GUEST_CACHE=$(CURDIR)/$(CACHE) COFFER_GUEST_AGENT=$(CURDIR)/bin/coffer-agent \
            COFFER_K8S_PROGRAMS=$(CURDIR)/build/k8s COFFER_HELM=$(CURDIR)/build/tools/helm COFFER_NODE_IMAGE=$(CURDIR)/build/node-image

# OUTPUT=json: the demo's report, and nothing else, on standard output.
OUTPUT ?=

# What the programs are made from: every file that a package could compile or embed.
SOURCES := go.mod go.sum Makefile $(shell find . \
	\( -path ./.git -o -path ./bin -o -path ./build -o -path ./docs -o -path ./test -o -path ./tools -o -name testdata \) -prune \
	-o -type f \( -name '*.go' ! -name '*_test.go' -o -name '*.s' -o -name '*.rego' -o -name '*.sql' -o -name '*.toml' -o -name '*.lock' -o -name '*.json' -o -name '*.pem' -o -name '*.tmpl' \) -print)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: deps deps-demo
deps: ## Install what is missing from Debian's packages, for everything here
	@scripts/deps demo test >&2

deps-demo:
	@scripts/deps demo >&2

.PHONY: build
build: $(PROGRAMS:%=bin/%) ## Build the programs in bin/: static, reproducible

# Nothing of the building machine may reach the bytes: no paths, no VCS state, no
# build id. The agent's bytes are part of every launch measurement.
bin/%: $(SOURCES) build/sources | check-go
	@echo "building $@" >&2
	@CGO_ENABLED=0 GOFLAGS= $(GO) build $(TAGS) -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o $@ ./cmd/$* >&2
	@touch $@

# containerd's API knows gRPC as well; a shim is asked by ttrpc only, and every
# pod has one.
bin/containerd-shim-coffer-v2: TAGS := -tags no_grpc

# PKCS#11 modules are shared libraries, which takes cgo: a trustee for hardware
# security modules is a program of its own, linked to the machine's C library.
.PHONY: build-pkcs11
build-pkcs11: bin/coffer-trustee-pkcs11 ## Build bin/coffer-trustee-pkcs11, a trustee that can use hardware security modules

bin/coffer-trustee-pkcs11: $(SOURCES) build/sources | check-go
	@echo "building $@" >&2
	@CGO_ENABLED=1 GOFLAGS= $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o $@ ./cmd/coffer-trustee >&2
	@touch $@

# NVIDIA's library is a shared one too, and comes with the driver. What loads it
# is a program of its own, linked to the machine's C library but made without cgo,
# by the rule above; the guest's agent runs it.
.PHONY: build-nvidia-attester
build-nvidia-attester: bin/coffer-nvidia-attester ## Build bin/coffer-nvidia-attester, which makes evidence of NVIDIA's GPUs

# The list of them, written anew only when it changes: a file that is gone is no
# prerequisite any more, but makes another program.
build/sources: FORCE
	@mkdir -p build
	@printf '%s\n' $(SOURCES) | cmp -s - $@ || printf '%s\n' $(SOURCES) >$@

.PHONY: FORCE
FORCE:

.PHONY: check-go
check-go:
	@scripts/deps >&2

.PHONY: guest-image
guest-image: $(GUEST)/manifest.json ## Build the guest image in build/guest

# The builder compares the image with its inputs and may leave it alone; the
# touch tells make so.
$(GUEST)/manifest.json: bin/coffer bin/coffer-agent | deps-demo
	@bin/coffer guest build --out $(GUEST) --cache $(CACHE) --agent bin/coffer-agent >&2
	@touch $@

NODE_IMAGE := build/node-image

.PHONY: node-image
node-image: bin/coffer bin/containerd-shim-coffer-v2 guest-image ## Make the image of the nodes' DaemonSet in build/node-image (an OCI layout)
	@rm -rf $(NODE_IMAGE)
	@$(GO) run ./deploy/nodeimage --programs bin --guest-image $(GUEST) --out $(NODE_IMAGE) --tag 0.1.0

.PHONY: demo
demo: deps-demo build guest-image ## Show an attested pod, and the host's attacks refused (OUTPUT=json: a report)
	@bin/coffer demo --guest-image $(GUEST) $(if $(OUTPUT),--output $(OUTPUT))

.PHONY: test
test: deps build build-pkcs11 guest-image k8s-node build/tools/helm ## Lint, unit tests and end-to-end tests in virtual machines
	@GO=$(GO) LINT=$(LINT) $(TEST_ENV) scripts/test >&2

# Kubernetes' own programs, in one file, and two versions of containerd, for tests on
# a real node. Minutes when cold, kept until the versions in go.mod change.
K8S := build/k8s
KUBE := kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl

.PHONY: k8s-node
k8s-node: deps-k8s $(K8S)/bin/kube $(K8S)/bin/app $(K8S)/containerd-2.2/containerd $(K8S)/containerd-2.4/containerd ## Build the programs of a Kubernetes node in build/k8s

.PHONY: deps-k8s
deps-k8s:
	@scripts/deps k8s >&2

$(K8S)/bin/kube: test/k8s/kube/main.go test/k8s/go.mod test/k8s/go.sum scripts/build-k8s | check-go
	@GO=$(GO) scripts/build-k8s kube $(K8S)/bin $(KUBE) >&2

$(K8S)/bin/app: $(wildcard test/k8s/app/*.go) test/k8s/go.mod test/k8s/go.sum scripts/build-k8s | check-go
	@GO=$(GO) scripts/build-k8s app $(K8S)/bin >&2

$(K8S)/containerd-%/containerd: tools/containerd-%/go.mod tools/containerd-%/go.sum scripts/build-k8s | check-go
	@GO=$(GO) scripts/build-k8s containerd $(K8S)/containerd-$* tools/containerd-$* >&2

.PHONY: test-k8s
test-k8s: deps build guest-image k8s-node $(if $(filter core,$(COFFER_K8S)),,node-image build/tools/helm) ## Test pods on a real Kubernetes node (build/k8s/report.md; COFFER_K8S=core: the core only)
	@GO=$(GO) $(TEST_ENV) scripts/test-k8s >&2

.PHONY: lint
lint: $(LINT) ## Run golangci-lint and go vet
	@GO=$(GO) LINT=$(LINT) scripts/lint >&2

# Minutes when cold: its thousand packages are compiled once for each tools/go.sum.
$(LINT): tools/go.mod tools/go.sum | check-go
	@echo "building $@ (takes minutes the first time)" >&2
	@cd tools && CGO_ENABLED=0 GOFLAGS= $(GO) build -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint >&2
	@touch $@

test: $(LINT)

# Renders the chart in tests.
build/tools/helm: tools/helm/go.mod tools/helm/go.sum | check-go
	@echo "building $@ (takes minutes the first time)" >&2
	@cd tools/helm && CGO_ENABLED=0 GOFLAGS= $(GO) build -o ../../$@ helm.sh/helm/v3/cmd/helm >&2
	@touch $@

.PHONY: generate
generate: deps ## Generate Go code anew from the .proto files
	@$(GO) generate ./internal/agentapi ./internal/trustee/api/... >&2

.PHONY: update-lock
update-lock: build deps-demo ## Take Debian's newest packages for the guest image and rewrite its lock file
	@bin/coffer guest build --out $(GUEST) --cache $(CACHE) --agent bin/coffer-agent --lock guest-image/packages.lock --update-lock >&2

.PHONY: bench-boot
bench-boot: deps guest-image ## Count the instructions of a boot (build/bench/boot.json)
	@$(GO) run ./test/bench/boot $(if $(FORMATS),-formats)

.PHONY: bench-trustee
bench-trustee: build ## Compare the trustee with a bare server, and measure it grown large (build/bench/trustee.json)
	@$(GO) run ./test/bench/trustee

.PHONY: bench-evidence
bench-evidence: deps ## Compare the judging of evidence with Google's libraries and with SHA-384 (build/bench/evidence.json)
	@$(GO) run ./test/bench/evidence

.PHONY: bench-guest
bench-guest: deps bin/coffer-agent ## Compare pulls and decryption with skopeo, umoci, containerd, igzip and ocicrypt (build/bench/guest.json)
	@mkdir -p build/bench && $(GO) build -o build/bench/guest ./test/bench/guest && build/bench/guest

.PHONY: bench-k8s
bench-k8s: deps deps-k8s bin/coffer-agent bin/containerd-shim-coffer-v2 guest-image $(K8S)/containerd-2.2/containerd ## Compare the shim with containerd's own and a pod's machine with a bare one (build/bench/k8s.json)
	@mkdir -p build/bench && $(GO) build -o build/bench/k8s ./test/bench/k8s && build/bench/k8s

.PHONY: clean
clean: ## Remove what was built; the cache of downloaded packages stays
	@rm -rf bin build/guest build/bench build/tools build/k8s
