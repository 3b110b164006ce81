# Each target does one thing and works on a fresh Debian 12 machine. The work is in scripts/.
JOBS ?= $(shell nproc)
CTEST = ctest --output-on-failure --no-tests=error -j$(JOBS)
SOURCES = $(shell git ls-files '*.cc' '*.h')

.PHONY: help run build test test-long bench fmt lint asan tsan clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: ## boot the default guest (Debian's cloud kernel and busybox) on this terminal
	@scripts/run

build: ## compile everything, tests included
	@scripts/install-packages run test
	@scripts/build

test: build ## every quick test: units, layers, documents, guests that boot
	@scripts/prepare-guest cloud-amd64 amd64 i386 xen
	@scripts/prepare-guest-agent
	@cd build/release && $(CTEST) -LE long

test-long: build ## the quick tests and the long ones: systemd guest, 50 million instruction cases, 100 MB transfers
	@scripts/prepare-guest cloud-amd64 amd64 i386 xen
	@scripts/prepare-guest-agent
	@scripts/make-rootfs debian12 debian12-bench debian12-i386 debian12-desktop
	@cd build/release && $(CTEST)

bench: ## guest benchmarks beside QEMU's TCG; rewrites the tables of docs/performance.md
	@scripts/install-packages run test bench
	@scripts/build
	@bench/run-guest-bench --tables all --rounds 5 --update docs/performance.md

fmt: ## reformat the C++ sources
	@scripts/install-packages lint
	@clang-format -i $(SOURCES)

lint: ## formatting, layers, sizes, documents, clang-tidy
	@scripts/install-packages run lint
	@scripts/lint

asan: ## the quick tests under the address and undefined-behaviour sanitizers
	@scripts/install-packages run test
	@scripts/build -p asan-ubsan
	@scripts/prepare-guest cloud-amd64
	@cd build/asan-ubsan && $(CTEST) -LE 'long|boot'

tsan: ## the quick tests under the thread sanitizer
	@scripts/install-packages run test
	@scripts/build -p tsan
	@cd build/tsan && $(CTEST) -LE 'long|boot'

clean: ## remove what was built (the fetched guests stay; `rm -rf build` removes them too)
	@rm -rf build/release build/debug build/asan-ubsan build/tsan
