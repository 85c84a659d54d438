# Every target builds .venv if it is missing, and reuses it afterwards.
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/quickstart
CORES := $(shell getconf _NPROCESSORS_ONLN)

.PHONY: quickstart pretrain-demo test test-portable test-slow test-versions test-transformers test-validators test-metrics test-browser fuzz lint docs bench bench-gpu clean

# Trains and evaluates on the embedded recordings, then classifies a file with the result in a fresh process.
quickstart: .venv/ready
	$(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $(CORES) train_hf.py recipes/quickstart.yaml --output_dir $(RUN) --overwrite true
	$(BIN)/python examples/classify_file.py $(RUN) data/voice_prompts/audio/fr_agent-pass.flac

# Measures the gain from pretraining with few labels, on the same recordings.
pretrain-demo: .venv/ready
	$(BIN)/python benchmarks/pretraining_pays.py

# Runs one test file per core at a time, with one thread each.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(CORES) --dist loadfile

# Compares with the original authors' numbers, on stand-ins for other processors.
test-portable: .venv/ready
	tests/portable.sh $(BIN)/python

# Runs end-to-end proofs that take longer, in the same way; names those that would begin after SLOW_UNTIL (`date +%s`).
test-slow: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -rs -n $(CORES) --dist loadfile

# Tests saved folders in every supported version of Transformers and torch, or those in VERSIONS="4.48 5.0"; builds an
# environment for each in .venvs.
test-versions: .venv/ready
	$(BIN)/python tests/versions/run.py $(VERSIONS) --python $(PYTHON)

# Gives N damaged recordings, tables, recipes, models and uploads to the code that reads them; keeps in runs/fuzz what
# fails. The same SEED makes the same inputs.
fuzz: .venv/ready
	$(BIN)/python tests/fuzz/run.py --inputs $(or $(N),1000) --seed $(or $(SEED),0)

# Runs Transformers' own suites on every class; fetches them once from the package index.
test-transformers: .venv/ready
	$(BIN)/python tests/transformers_suite/run.py

# Runs the checks of HEAR and X-ARES on every family; fetches them once from the package index.
test-validators: .venv/ready
	$(BIN)/python tests/validators/run.py

# Compares the metrics of sound events with sed_scores_eval, sed_eval and psds_eval; builds an environment for them once.
test-metrics: .venv/ready .venvs/metrics/ready
	OMP_NUM_THREADS=1 .venvs/metrics/bin/python -m pytest tests/metrics/event_libraries.py

# Tests exports for browsers in Node and Chromium; fetches Transformers.js once from npm's registry.
test-browser: .venv/ready
	$(BIN)/python tests/browser/run.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Builds the documentation in site/. Fails on a broken link, a page outside the navigation or a bad reference.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Measures the figures of the README and of docs/results.md, each beside its anchor; makes one page in runs/bench.
bench: .venv/ready
	$(BIN)/python benchmarks/run.py

# Measures models, features and trainings on an NVIDIA GPU, and runs the tests that need one; a page in runs/bench-gpu.
bench-gpu: .venv/ready
	$(BIN)/python benchmarks/run.py --only gpu --output runs/bench-gpu

.venv/ready: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "constraints.txt: needs Python 3.11 or newer, not $(PYTHON); name one: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

# Without what they require: half of it is in .venv, which they see, and the other half is not needed to compare.
.venvs/metrics/ready: .venv/ready tests/metrics/requirements.txt
	$(PYTHON) -m venv --clear .venvs/metrics
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		`.venvs/metrics/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"`/tests.pth
	.venvs/metrics/bin/python -m pip install --quiet --no-deps --requirement tests/metrics/requirements.txt
	touch $@

clean:
	rm -rf .venv .venvs build site *.egg-info
