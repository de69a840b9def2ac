# What this makes is described in README.md.
GO     ?= go
TAGS   := seccomp netgo osusergo
GOTEST := $(GO) test -tags '$(TAGS)'
FUZZTIME ?= 5s
export CGO_ENABLED = 1

.PHONY: build demo test soak lint bench fuzz-smoke clean

# The binary is static, and finds libseccomp at build time only.
build:
	$(GO) build -trimpath -tags '$(TAGS)' -ldflags '-s -w -linkmode external -extldflags "-static"' -o bin/kofarm ./cmd/kofarm

# The main job on the embedded runtime: real kernels, real modules, real tarballs.
demo:
	ci/setup build
	$(MAKE) --no-print-directory build
	bin/kofarm build testdata/demo/farm.yaml --output dist
	@echo; bin/kofarm status testdata/demo/farm.yaml; echo; ls -l dist

# Everything, against the real tools, which ci/setup installs. ci/suites fails
# where a test does, or where a backend lacks a test that the others have.
test:
	ci/setup test
	ci/setup daemons
	$(GOTEST) -timeout 60m -json ./... | $(GO) run ./ci/suites

# The long counts: kills at random moments, fuzzing.
soak:
	ci/setup test
	ci/setup daemons
	KOFARM_SOAK_KILLS=100 KOFARM_SOAK_BOOTS=100 $(GO) test -tags '$(TAGS) soak' -count 1 -timeout 0 -v -run Soak ./ci/...
	$(MAKE) --no-print-directory fuzz-smoke FUZZTIME=2m

bench:
	ci/setup test
	ci/setup daemons
	$(GOTEST) -count 1 -timeout 0 -run '^$$' -bench . ./worker/... ./matrix ./farm/...
	$(GOTEST) -count 1 -timeout 0 -v -run '^$$' -bench . -benchtime 1x ./ci/bench ./ci/boot

# Every fuzz test for FUZZTIME.
fuzz-smoke:
	@for p in $$($(GO) list -tags '$(TAGS)' ./...); do \
	  for f in $$($(GOTEST) -list '^Fuzz' $$p | grep '^Fuzz'); do \
	    echo "$$p $$f"; \
	    $(GOTEST) -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x $$p || exit 1; \
	  done; \
	done

lint:
	@out=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); [ -z "$$out" ] || { echo "gofmt would change:"; echo "$$out"; exit 1; }
	$(GO) vet -tags '$(TAGS) soak' ./...
	$(GO) tool staticcheck -tags '$(TAGS) soak' ./...
	$(GO) fix -tags '$(TAGS) soak' -diff ./...
	shellcheck ci/setup .ci/run worker/recipe.sh farm/boot/init.sh

clean:
	rm -rf bin dist
