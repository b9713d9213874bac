# `make demo`, `make demo-cluster` and `make test` also set everything up, on a fresh Debian.

# An interpreter of version 3.11 or newer with a shared libpython; PYTHON=… chooses another.
PYTHON ?= $(shell for python in python3 /usr/bin/python3; do \
	$$python -c 'import sys, sysconfig; sys.exit(sys.version_info < (3, 11) or not sysconfig.get_config_var("Py_ENABLE_SHARED"))' \
		2>/dev/null && { echo $$python; break; }; done)
ifeq ($(PYTHON),)
PYTHON := /usr/bin/python3
endif
VENV := .venv/bin
MODULE := build/libredis_keyspace_amqp.so
C_FILES := $(wildcard shim/*.c shim/*.h)
PYTEST_ARGS ?=
# Tests wait more than they compute, so several may run at once. The tests of one file run in one
# process (--dist loadfile), because they share servers.
PYTEST_JOBS ?= 3
MINUTES ?= 10
SYSTEM ?= trixie
REACH_ARGS ?=

# After an upgrade of the system, the Python of .venv may be gone or another one: set it up anew.
ifneq ($(wildcard .venv/.*),)
$(shell $(VENV)/python -c 'import _cffi_backend' 2>/dev/null || rm -f .venv/.build .venv/.demo .venv/.dev)
endif

.PHONY: help setup venv build demo demo-cluster test test-pika test-reach test-containers test-packages soak kills bench bench-quick picture deb lint format clean

help: ## print this text
	@sed -n 's/^\([a-z-]*\):.*## /make \1	/p' Makefile

demo: build .venv/.demo ## events of a real Redis in a real RabbitMQ, with an outage
	@$(VENV)/python -m keyspace_amqp.cli demo $(DEMO_ARGS)

demo-cluster: build .venv/.demo ## the same with a Redis Cluster, a failover and slots that move
	@$(VENV)/python -m keyspace_amqp.cli demo --cluster $(DEMO_ARGS)

test: setup build ## run the unit, shim and integration tests
	$(VENV)/python -m pytest -n $(PYTEST_JOBS) --dist loadfile $(PYTEST_ARGS)

test-pika: setup ## test the newest release of pika, which is installed apart from .venv
	@rm -rf build/pika
	@$(VENV)/python -m pip install --quiet --no-deps --target build/pika pika
	@PYTHONPATH=build/pika $(VENV)/python -c 'import pika; print("pika", pika.__version__)'
	PYTHONPATH=build/pika $(VENV)/python -m pytest $(PYTEST_ARGS) tests/broker

test-reach: ## run the tests on another Debian: SYSTEM=trixie, sid or bookworm; REACH_ARGS for pytest
	tests/reach/run $(SYSTEM) make test PYTEST_ARGS='$(subst ','\'',$(REACH_ARGS))'

test-containers: setup ## test the image, and a cluster of containers; needs Docker
	tests/containers/base_images
	$(VENV)/python -m pytest -m containers $(PYTEST_ARGS) tests/system/test_containers.py

test-packages: ## install what `make deb` makes in a bare Debian: SYSTEM=trixie or bookworm
	tests/reach/packages $(SYSTEM)

soak: setup build ## random faults on real servers; MINUTES=10, SEED=… repeats a run
	$(VENV)/python -m tests.system.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

kills: setup build ## kill Redis under load, twenty times for each server and mode of the outbox
	KEYSPACE_AMQP_KILLS=20 $(VENV)/python -m pytest -n $(PYTEST_JOBS) $(PYTEST_ARGS) tests/system/test_outbox_kills.py

bench: setup build ## benchmarks, side by side with a bare Redis; BENCH_ARGS='--only NAME'
	$(VENV)/python -m tests.bench $(BENCH_ARGS)

bench-quick: setup build ## the same with fewer and shorter rounds, in a minute or two
	$(VENV)/python -m tests.bench --quick $(BENCH_ARGS)

picture: setup build ## docs/status.svg, the picture of `status`, from a run of three minutes
	$(VENV)/python -m tests.tools.picture

build: $(MODULE) build/.compiled ## build the module, build/libredis_keyspace_amqp.so

deb: ## make a Debian package for this release, a wheel and a source distribution, in dist
	@.ci/setup build /usr/bin/python3 $(shell command -v dpkg-shlibdeps >/dev/null || echo dpkg-dev)
	@.ci/deb

lint: venv ## run ruff, mypy, clang-format, and the C compiler with warnings as errors
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	$(VENV)/mypy
	$(VENV)/clang-format --dry-run --Werror $(C_FILES) $(wildcard tests/*/*.c)
	@cmake -S . -B build/werror -DWERROR=ON >/dev/null
	cmake --build build/werror --target redis_keyspace_amqp

format: venv ## format Python and C
	$(VENV)/ruff format
	$(VENV)/clang-format -i $(C_FILES) $(wildcard tests/*/*.c)

setup: venv ## install Debian's packages, the virtual environment .venv, and the servers for the tests
	@$(VENV)/python -m tests.servers install

venv: .venv/.dev

# .venv/.build, .venv/.demo and .venv/.dev say that the group with this name is installed: its Python
# packages in pyproject.toml, and its packages of Debian in .ci/setup. The build needs no servers,
# and the demos need no servers of Python packages.
.venv/.%: pyproject.toml .ci/setup
	@.ci/setup $* $(PYTHON)
	@echo "Installing Python packages into .venv: the group $*"
	@test -x $(VENV)/python || $(PYTHON) -m venv --clear .venv
	@$(VENV)/python -m pip install --quiet 'pip>=25.1'
	@$(VENV)/python -m pip install --quiet --group $*
	@rm -f build/CMakeCache.txt
	@touch $@

$(MODULE): .venv/.build CMakeLists.txt $(C_FILES) shim/generate.py shim/exports.map \
		keyspace_amqp/__init__.py $(wildcard keyspace_amqp/tables/*.py)
	@echo "Building $@"
	@cmake -S . -B build >/dev/null
	@cmake --build build --target redis_keyspace_amqp >/dev/null
	@touch $@

# The module inside Redis writes no compiled files into source folders, and without them a load takes
# twice as long.
build/.compiled: $(MODULE) $(wildcard keyspace_amqp/*.py keyspace_amqp/*/*.py)
	@$(VENV)/python -m compileall -q keyspace_amqp
	@touch $@

clean: ## remove everything that was built
	rm -rf build dist
