# The one definition of every task, for people and CI alike. `make help` lists them.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export EDGEOPS_CACHE ?= $(HOME)/.cache/edgeops

.DEFAULT_GOAL := help
.PHONY: help firmware-fuzzer docs deb install system hil-system labgrid test-hil test-vm test-system lint types imports test test-full test-scale test-web browser bench-agent bench-compile bench-control bench-mcu zoo fuzzer fuzz demo demo-mcu clean

help: ## list the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

install: $(STAMP) ## make the virtual environment

system: ## install mosquitto by apt where that is possible and allowed (EDGEOPS_NO_APT=1 forbids it)
	@./.ci/system-packages mosquitto

# What would begin to listen beyond this machine is unpacked, not installed.
TEST_PACKAGES := postgresql libonnx-testdata systemd faketime gcc libc6-dev gcc-arm-none-eabi libnewlib-arm-none-eabi \
	qemu-system-arm openssh-client libwrap0 mtools dosfstools fdisk e2fsprogs
test-system: system ## install by apt what only tests need: ONNX's models, Cortex-M compiler and emulator, mtools and more
	@./.ci/system-packages $(TEST_PACKAGES)
	@./.ci/unpack openssh-server sshd
	@./.ci/unpack prometheus prometheus

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What runs on a device is checked for Python 3.10 too: JetPack 6 has it.
DEVICE_ROOMS := contracts transport trust runtimes releases client agent
types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 $(DEVICE_ROOMS:%=-p edgeops.%) -m edgeops.durable -m edgeops.plugins

imports: $(STAMP)
	$(BIN)/lint-imports

# Files of tests are spread over two processes; SPREAD= runs them one after the other.
SPREAD ?= --numprocesses 2 --dist loadfile
test: install test-system lint types imports ## ruff, mypy, import-linter and the bounded tests
	$(BIN)/pytest $(SPREAD)

test-full: install hil-system fuzzer firmware-fuzzer zoo browser ## every test, with exhaustive counts
	$(BIN)/pytest $(SPREAD) -m 'not scale and not boards and not vm' --timeout=3600

test-scale: install system ## ten thousand simulated devices: none may be lost
	$(BIN)/pytest -m scale --capture=no

# Without a network labgrid stays away, and its tests say what installs it.
labgrid: $(STAMP)
	-$(BIN)/edgeops toolchain install labgrid

test-hil: install hil-system labgrid ## rigs: host store, emulated Cortex-M boards, an arm64 Debian under QEMU's user emulation, labgrid
	$(BIN)/pytest tests/hil tests/firmware_bridge -m 'not vm' --timeout=3600

test-vm: install hil-system labgrid ## rigs: a whole arm64 machine
	$(BIN)/pytest tests/hil tests/flash -m vm --timeout=3600

hil-system: test-system
	@./.ci/system-packages qemu-user-static debootstrap qemu-utils e2fsprogs ipxe-qemu dnsmasq-base iproute2

test-web: install system browser ## the web page in Chromium
	$(BIN)/pytest -m web

browser: $(STAMP)
	@./.ci/system-packages chromium
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'

fuzzer: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'

firmware-fuzzer: test-system
	@./.ci/system-packages clang libclang-rt-14-dev

FUZZ_S ?= 60
fuzz: fuzzer firmware-fuzzer ## fuzz what strangers can send, FUZZ_S seconds for each kind
	$(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_S)

demo: install system ## compile, release, roll out and serve a real model on three agents
	$(BIN)/edgeops demo

demo-mcu: install test-system ## the same with an emulated Cortex-M4 behind a gateway, in rollouts beside Linux devices
	$(BIN)/edgeops demo --mcu

zoo: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[zoo]'

bench-agent: install system ## what an idle agent costs beside SWUpdate; serving beside four other servers; LoadGen
	@./.ci/system-packages swupdate
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[loadgen]'
	@missed=; \
	for part in agent serving loadgen; do \
	  echo "benchmarks.$$part"; $(BIN)/python -m benchmarks.$$part || missed="$$missed $$part"; \
	done; \
	[ -z "$$missed" ] || { echo "failed, or above a target:$$missed"; exit 1; }

bench-compile: install system zoo ## edgeops beside onnxruntime, NNCF and Olive: quality, latency, size, compile time
	$(BIN)/python -m benchmarks.compile

bench-mcu: install test-system zoo ## microcontrollers on emulated boards: upload, sizes, arena, instructions an inference
	$(BIN)/python -m benchmarks.mcu

bench-control: install system ## what the control plane carries: fleets, records a second, API
	$(BIN)/python benchmarks/control.py

deb: install ## the Debian package of the agent, for this machine's architecture, in dist/
	$(BIN)/python packaging/deb.py dist

docs: install ## write the generated pages of docs/reference
	$(BIN)/python docs/generate.py

clean: ## remove what the tasks made in this tree
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
