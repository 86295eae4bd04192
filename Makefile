# make test and make demo do all the set-up they need; README.rst says more.
#
# PYTHON  the interpreter for the virtual environments (python3)
# ARGS    more arguments for pytest, the demo or the benchmark
# JOBS    how many processes run tests that bound no time, each with brokers of its own (2)

PYTHON ?= python3
ARGS ?=
JOBS ?= 2
# A file's tests stay together: builds and other fixtures of theirs are made once.
SIDE_BY_SIDE = -n $(JOBS) --dist loadfile
VENV = .venv
BIN = $(VENV)/bin
BENCH_VENV = .venv-bench
# The releases of oslo.messaging whose own tests are run: each has a file
# tests/upstream/requirements-*.txt.
RELEASES = newest 16.1 14.0
RELEASE_VENVS = $(RELEASES:%=.venv-upstream-%)
WSGI_VENV = .venv-wsgi
# Debian's modules for WSGI hosts run Debian's interpreter.
WSGI_PYTHON = /usr/bin/python3

# A root directory with Debian 13, for its RabbitMQ 4.
RABBITMQ4 = .rabbitmq4
# What a broker has a part in.
RABBITMQ4_TESTS = tests/functional tests/interop tests/faults/test_alarms.py \
	tests/faults/test_confirms.py tests/faults/test_consumers_gone.py \
	tests/faults/test_fanouts.py tests/faults/test_gone_callers.py \
	tests/faults/test_redelivery.py
# Of these what needs no stock peer, which does not start there. The others count
# connections, of which one is lost there before what it is denied is known.
STRICT_TESTS = $(addprefix tests/interop/test_, calls.py notifications.py \
	monitored_calls.py remote_failures.py contexts.py compression.py) \
	$(addprefix tests/functional/test_, order.py retries.py deadlines.py load.py \
	duplicates.py bad_input.py odd_replies.py connection_loss.py limits.py)

export PYTHON
unexport PYTHONPATH PYTHONHOME
.NOTPARALLEL:
.DELETE_ON_ERROR:

.PHONY: all help packages packages-wsgi venv build test test-timing test-slow \
	test-all test-options test-envelopes test-versions test-faults test-tls test-asan \
	test-upstream test-wsgi test-rabbitmq4 packages-rabbitmq4 demo bench lint format \
	tidy sdist clean distclean

all: build

help:
	@echo 'make test         the tests, but those marked slow or timing'
	@echo 'make test-timing  the tests that bound elapsed time'
	@echo 'make test-slow    the tests that take long'
	@echo 'make test-versions  the tests, with each Python and three oslo.messaging'
	@echo 'make test-options  what each option means; a table is in docs/options.rst'
	@echo 'make test-envelopes  functional and interop tests with envelope auto, msgpack'
	@echo 'make test-faults  promises under faults: a table of what was measured'
	@echo 'make test-tls     TLS: trust, versions, forks, throughput'
	@echo 'make test-asan    the unit tests on an AddressSanitizer build'
	@echo 'make test-upstream  oslo.messaging'"'"'s own tests, with this driver'
	@echo 'make test-wsgi    the tests in uWSGI and Apache (mod_wsgi)'
	@echo 'make test-rabbitmq4  the tests that a broker decides, with RabbitMQ 4'
	@echo 'make demo         the driver at work, as real processes'
	@echo 'make bench        measure it against the stock driver'
	@echo 'make lint         formats, types, spelling, compiler warnings'
	@echo 'make format       format the sources as lint wants them'
	@echo 'make tidy         clang-tidy'
	@echo 'make build        the extension, in place, and a virtual environment'
	@echo 'make clean        remove what was built (distclean: and .venv)'

# --- set-up ---

packages:
	@tools/install_packages.sh

packages-wsgi:
	@PYTHON=$(WSGI_PYTHON) tools/install_packages.sh wsgi

packages-rabbitmq4:
	@tools/install_packages.sh rabbitmq4

$(RABBITMQ4)/made: | packages-rabbitmq4
	tools/make_rabbitmq_root.sh $(RABBITMQ4)

venv: $(VENV)/made

$(VENV)/made: tests/requirements.txt | packages
	tools/make_venv.sh $(VENV) $^
	touch $@

$(VENV)/made-lint: tests/requirements-lint.txt $(VENV)/made
	tools/make_venv.sh $(VENV) $<
	touch $@

$(VENV)/made-tox: tests/requirements-tox.txt $(VENV)/made
	tools/make_venv.sh $(VENV) $<
	touch $@

$(BENCH_VENV)/made: tests/requirements.txt tests/bench/requirements.txt | packages
	tools/make_venv.sh $(BENCH_VENV) $^
	touch $@

$(RELEASE_VENVS:%=%/made): .venv-upstream-%/made: \
		tests/upstream/requirements-%.txt tests/upstream/requirements.txt | packages
	tools/make_venv.sh $(@D) $^
	touch $@

$(WSGI_VENV)/made: tests/processes/requirements.txt | packages-wsgi
	PYTHON=$(WSGI_PYTHON) tools/make_venv.sh $(WSGI_VENV) $^
	touch $@

# A copy: Apache's user need not be able to read the checkout.
$(WSGI_VENV)/installed: $(WSGI_VENV)/made pyproject.toml setup.py \
		$(wildcard oslo_fastmsg/*.py csrc/*/*.[ch])
	$(WSGI_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-build-isolation --no-deps --force-reinstall .
	touch $@

# Editable: Python files are used where they are, and so is the extension,
# which the target `build` keeps up to date.
%/installed: %/made pyproject.toml setup.py oslo_fastmsg/__init__.py
	$*/bin/python -m pip install --quiet --disable-pip-version-check \
		--no-build-isolation --no-deps --editable .
	touch $@

build: packages $(VENV)/installed
	$(BIN)/python -W ignore setup.py --quiet build_ext --inplace

# --- tests ---

test: build
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) \
		-m 'not slow and not timing and not wsgi' $(ARGS)

test-timing: build
	$(BIN)/python -m pytest -m 'timing and not wsgi' $(ARGS)

test-slow: build
	$(BIN)/python -m pytest -m 'slow and not wsgi' $(ARGS)

test-wsgi: build $(WSGI_VENV)/installed
	$(BIN)/python -m pytest -m wsgi $(ARGS)

# With the broker's defaults, then with transient queues denied, then with nodes of
# such a cluster killed.
test-rabbitmq4: build $(RABBITMQ4)/made
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) --rabbitmq-root=$(RABBITMQ4) \
		-m 'not slow and not timing and not wsgi' $(RABBITMQ4_TESTS) $(ARGS)
	FASTMSG_PAIRINGS=fast-fast $(BIN)/python -m pytest $(SIDE_BY_SIDE) \
		--rabbitmq-root=$(RABBITMQ4) --rabbitmq-strict \
		-m 'not slow and not timing and not wsgi' -k 'not stock' \
		$(STRICT_TESTS) $(ARGS)
	$(BIN)/python -m pytest --rabbitmq-root=$(RABBITMQ4) \
		tests/faults/test_strict_kills.py $(ARGS)

test-all: build $(WSGI_VENV)/installed
	$(BIN)/python -m pytest $(ARGS)

# Tests that compile do so with clang, too, which is lint's.
test-versions: packages $(VENV)/made-tox
	@tools/install_packages.sh lint
	$(BIN)/python tools/run_versions.py $(ARGS)

# Ends with a table: option by pairing. ARGS=--rabbitmq-root=.rabbitmq4, where make
# test-rabbitmq4 has made one, is for RabbitMQ 4.
test-options: build
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m 'options and not wsgi' $(ARGS)

# What is true of other envelopes than JSON: the functional and interop tests once
# more, whole, with each.
test-envelopes: build
	for envelope in auto msgpack; do \
		FASTMSG_ENVELOPE=$$envelope $(BIN)/python -m pytest $(SIDE_BY_SIDE) \
			-m 'not slow and not timing' tests/functional tests/interop $(ARGS) \
			|| exit 1; \
	done

test-faults: build
	$(BIN)/python -m pytest -s tests/faults $(ARGS)

# Also what else is marked slow or timing; and the programs of the core's own.
test-tls: build
	$(BIN)/python -m pytest -s -m tls $(ARGS)
	$(BIN)/python -m pytest tests/native -k 'test_socket or test_handshake'

test-asan: build
	$(BIN)/python -m pytest tests/native/test_binding_asan.py $(ARGS)

test-upstream: build $(RELEASE_VENVS:%=%/installed)
	$(BIN)/python tests/upstream/run.py $(ARGS) $(RELEASE_VENVS)

# --- demo and benchmark ---

demo: build
	$(BIN)/python demo/run.py $(ARGS)

bench: build $(BENCH_VENV)/installed
	$(BENCH_VENV)/bin/python tests/bench/run.py $(ARGS)

# --- sources ---

lint: build $(VENV)/made-lint
	@tools/install_packages.sh lint
	tools/lint.sh $(BIN)

format: $(VENV)/made-lint
	@tools/install_packages.sh lint
	$(BIN)/ruff format .
	clang-format -i csrc/*/*.[ch] tests/*/*.[ch]

tidy: packages
	@tools/install_packages.sh lint
	clang-tidy --quiet csrc/base/*.c csrc/wire/*.c csrc/io/*.c -- \
		-std=c11 -D_GNU_SOURCE -Icsrc

sdist: $(VENV)/installed
	$(BIN)/python -W ignore setup.py --quiet sdist

clean:
	rm -rf build dist *.egg-info tests/native/build
	rm -rf tests/bench/out tests/upstream/out
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f oslo_fastmsg/*.so
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(RABBITMQ4) $(RABBITMQ4).part $(VENV) $(BENCH_VENV) $(WSGI_VENV) $(RELEASE_VENVS) .tox
