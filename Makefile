# kofarm: see README.md.
GO      ?= go
BIN     := bin/kofarm
TAGS    := seccomp netgo osusergo
export CGO_ENABLED = 1

.PHONY: build
build: $(BIN)

.PHONY: $(BIN)
$(BIN):
	$(GO) build -trimpath -tags '$(TAGS)' -ldflags '-s -w -linkmode external -extldflags "-static"' -o $@ ./cmd/kofarm
