# Every supported target is in `make help`. The work is done by `python3 -m tools`.

PYTHON ?= python3
PREFIX ?= /usr
DESTDIR ?=
INSTALL_PYTHON ?= /usr/bin/python3
PRUNE_DAYS ?=
BOOTS ?= 10
SECONDS ?= 60
TARGETS ?=

TOOLS := $(PYTHON) -m tools
VENV := build/venv/bin/python
INSTALL := --prefix=$(PREFIX) --python=$(INSTALL_PYTHON) $(if $(DESTDIR),--destdir=$(DESTDIR))

.DEFAULT_GOAL := help
.PHONY: help check build kernel venv test-tools test test-full test-lab soak fuzz miri coverage lint format bench demo install uninstall wheel \
	kernel-report lock cache clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: PYTHON=$(PYTHON) PREFIX=$(PREFIX) DESTDIR=$(DESTDIR) INSTALL_PYTHON=$(INSTALL_PYTHON)"

check: ## check what must be installed by hand: Python, cargo, go
	@$(TOOLS) check

build: ## build the runtime into build/ (installs missing Debian packages when root)
	@$(TOOLS) build

kernel: ## build only the guest kernel
	@$(TOOLS) kernel

venv: ## make only the Python environment build/venv
	@$(TOOLS) venv

test-tools: ## fetch the containerds, runc and CNI plugins that the tests run against
	@$(TOOLS) test-tools

test: build test-tools ## build everything and run the test ladder
	@$(VENV) -m tests.ladder

test-full: build ## the test ladder with what is too long for `make test`
	@$(TOOLS) test-tools --full
	@$(VENV) -m tests.ladder --full

test-lab: build test-tools ## only the tests that run in the KVM lab, a test host that has a working /dev/kvm
	@$(VENV) -m tests.ladder lab

soak: build test-tools ## ten minutes of work for all devices, then five hundred containers one after another
	@$(VENV) -m tests.ladder --soak

bench: build test-tools ## speed and memory, as ratios within one run
	@$(VENV) -m tests.ladder --bench

fuzz: ## fuzz device cores, saved state, registers and vhost-user (SECONDS=60 for each target; TARGETS="vsock rng")
	@$(TOOLS) fuzz --seconds=$(SECONDS) $(TARGETS)

miri: ## look for undefined behaviour in rings and parsers (needs rustup's nightly miri)
	@$(TOOLS) miri

coverage: ## print which lines of the native crates are run by their tests (needs rustup's llvm-tools)
	@$(TOOLS) coverage

lint: build ## format, lint and types of both languages, without changing anything
	@$(VENV) -m tests.ladder --lint

format: venv ## format the sources of both languages
	@$(VENV) -m ruff check --fix --quiet . && $(VENV) -m ruff format --quiet .
	@cd vmm/native && cargo fmt --all
	@cd guest-agent && cargo fmt

demo: ## build, then run a container in a microVM and show it
	@$(TOOLS) demo

install: build ## install below PREFIX (and DESTDIR), beside a system containerd
	@$(TOOLS) install $(INSTALL)

uninstall: ## remove what install put there
	@$(TOOLS) uninstall $(INSTALL)

wheel: venv ## build a wheel of the Python packages and native parts into dist/
	@$(TOOLS) wheel

kernel-report: build ## measure boot time and size of the guest kernel (BOOTS=10)
	@$(VENV) -m tools kernel-report --boots=$(BOOTS)

lock: ## renew the lock files of the Python packages
	@$(TOOLS) lock

cache: ## list the cache with sizes; PRUNE_DAYS=30 first removes what was unused so long
	@$(TOOLS) cache $(if $(PRUNE_DAYS),--prune-days=$(PRUNE_DAYS))

clean: ## remove build/ and dist/
	@$(TOOLS) clean

distclean: ## remove build/, dist/ and the whole cache
	@$(TOOLS) clean --all
