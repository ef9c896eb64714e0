# Each target makes the environment that it needs; `make demo` is the place to start.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

# Half the download where there is no GPU; macOS on Apple silicon has only the full package.
BACKEND := $(shell if command -v nvidia-smi >/dev/null 2>&1; then echo gpu; \
	elif [ "$$(uname -s)" = Linux ]; then echo cpu; else echo tensorflow; fi)

export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo lab test test-tensorflow test-jax test-torch test-oldest test-oldest-tools test-lowest \
	test-wheel test-binder test-keras test-marked coverage fuzz nightly bench bench-scale notebooks \
	docs address release lint clean

demo: $(STAMP)
	$(BIN)/python notebooks/demo.py

lab: $(STAMP)
	$(BIN)/python -c "import jupyterlab" 2>/dev/null || $(BIN)/pip install --quiet --group lab
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/01-quickstart.ipynb

test: test-tensorflow test-jax

# Models of one architecture are the same program to XLA: compiled once, for both workers.
test-jax: export JAX_COMPILATION_CACHE_DIR = $(abspath $(VENV))/jax-cache
test-jax: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0

test-tensorflow test-jax: test-%: $(STAMP)
	KERAS_BACKEND=$* $(BIN)/python -m pytest -n $${WORKERS:-2} --dist loadgroup

# torch is large and not part of the environment until it is asked for.
test-torch: $(STAMP)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install $${TORCH:-torch}
	KERAS_BACKEND=torch $(BIN)/python -m pytest -n $${WORKERS:-2} --dist loadgroup $(MARKED)

# The oldest Keras that pyproject allows: before the newest on the path, so that nothing else differs.
OLDEST := $(VENV)/oldest-keras
test-oldest: $(STAMP)
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(OLDEST) \
		"$$(sed -n 's/.*"keras>=\(.*\)",/keras==\1/p' pyproject.toml)"
	PYTHONPATH=$(OLDEST) KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -n $${WORKERS:-2} \
		--dist loadgroup \
		tests/training/test_cohort.py tests/models/test_cloning.py tests/parity \
		--ignore=tests/parity/test_stacked.py --ignore=tests/parity/test_layers.py

# The oldest tools to search with that pyproject allows, likewise.
OLDEST_TOOLS := $(VENV)/oldest-tools
test-oldest-tools: $(STAMP)
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(OLDEST_TOOLS) $$(sed -n \
		'/^\(optuna\|sklearn\|tuner\) =/ s/.*= \["\([a-z-]*\)>=\([0-9.]*\)".*/\1==\2/p' pyproject.toml)
	PYTHONPATH=$(OLDEST_TOOLS) KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -n $${WORKERS:-2} \
		--dist loadgroup tests/integrations

# The lowest version of everything that pyproject allows (but torch, which is large), together, on the
# lowest Python that it allows: uv fetches it where there is none. Old packages warn of one another.
LOWEST := $(abspath $(VENV))/lowest
test-lowest: $(STAMP)
	$(BIN)/python -c "import uv" 2>/dev/null || $(BIN)/pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --no-project \
		--python "$$(sed -n 's/^requires-python = ">=\(.*\)"/\1/p' pyproject.toml)" $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct \
		".[tensorflow,jax,notebook,optuna,ray,sklearn,tuner]" --group demo "pytest>=8.3" "pytest-xdist>=3.6"
	$(LOWEST)/bin/python notebooks/demo.py
	for backend in tensorflow jax; do export KERAS_BACKEND=$$backend; \
		$(LOWEST)/bin/python -m kerascohost info && $(LOWEST)/bin/python -m pytest -W default \
		-n $${WORKERS:-2} --dist loadgroup tests/training/test_cohort.py || exit 1; done

test-wheel:
	PYTHON=$(PYTHON) .ci/wheel

test-binder:
	PYTHON=$(PYTHON) .ci/binder

# Keras's own tests, as they are and through cohorts: what passes as it is has to pass routed.
test-keras: export JAX_COMPILATION_CACHE_DIR = $(abspath $(VENV))/jax-cache
test-keras: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
test-keras: $(STAMP)
	failed=0; for backend in tensorflow jax; do \
		KERAS_BACKEND=$$backend $(BIN)/python -m tests.keras_tests || failed=1; done; exit $$failed

# Random fits and programs, together and apart. FUZZ: how many fits; SEED; KERAS_BACKEND: one of both.
fuzz: $(STAMP)
	failed=0; for backend in $${KERAS_BACKEND:-tensorflow jax}; do \
		KERAS_BACKEND=$$backend $(BIN)/python -m tests.fuzz || failed=1; done; exit $$failed

# What takes too long for every change.
nightly: MARKED = -m nightly
nightly: test-marked test-torch fuzz test-keras test-oldest test-oldest-tools test-lowest \
	test-binder

# The tests that are marked so, and every layer family with every optimizer.
test-marked: $(STAMP)
	$(BIN)/pip install --quiet --group nightly
	failed=0; for backend in tensorflow jax; do KERAS_BACKEND=$$backend $(BIN)/python -m pytest \
		-n $${WORKERS:-2} --dist loadgroup -m nightly || failed=1; \
		PAIRS=all KERAS_BACKEND=$$backend $(BIN)/python -m pytest -n $${WORKERS:-2} \
		-m "nightly or not nightly" \
		tests/parity/test_stacked.py -k with_an_optimizer || failed=1; done; exit $$failed

# Which lines the tests run, on TensorFlow: those that they do not are listed in output/coverage.txt.
# (tests/integrations/test_ray.py is left out: Ray ends its workers before they could tell.)
coverage: $(STAMP)
	mkdir -p output
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -n $${WORKERS:-2} --dist loadgroup \
		--ignore=tests/integrations/test_ray.py --cov --cov-report=term-missing:skip-covered \
		--cov-report=html:output/coverage $(TESTS) > output/coverage.txt; \
		status=$$?; grep -E "^TOTAL|(passed|failed).* in " output/coverage.txt; exit $$status

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

# What workers cost here, and what more of them would cost: predicted. Draws docs/images/scale.png.
bench-scale: $(STAMP)
	$(BIN)/python -m tests.benchmarks.scale

# The documentation, in site/. Its tools are not part of the environment until they are asked for.
docs: $(STAMP)
	$(BIN)/python -c "import mkdocs_jupyter, mkdocstrings" 2>/dev/null \
		|| $(BIN)/pip install --quiet --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	$(BIN)/python docs/check_links.py site

# Runs all notebooks and saves them with their outputs.
notebooks: $(STAMP)
	$(BIN)/python notebooks/execute.py

# Once the project has a public address: make address ADDRESS=owner/name
address:
	sed -i 's#OWNER/kerascohost#$(ADDRESS)#g' $$(git grep -l OWNER/kerascohost -- ':!Makefile')

# Checks version, tag and changelog against each other, builds, and says what to push.
release: $(STAMP)
	$(BIN)/python -c "import twine" 2>/dev/null || $(BIN)/pip install --quiet --group release
	$(BIN)/python .ci/release

lint: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

$(STAMP): pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
		|| { echo "kerascohost needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[$(BACKEND),jax,notebook]" --group dev || { echo \
		"If TensorFlow has no wheels for this Python, name an older one: make PYTHON=python3.13 ..."; \
		exit 1; }
	touch $@

clean:
	rm -rf $(VENV) output site dist
