# One word per habit. Every target builds .venv from nothing when it is missing, and reuses it after that.
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/quickstart
CORES := $(shell getconf _NPROCESSORS_ONLN)

.PHONY: quickstart pretrain-demo test test-portable test-slow test-versions lint docs bench clean

# The main job on the embedded recordings: train, evaluate, then load the result in a fresh process and name a file.
quickstart: .venv/ready
	$(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $(CORES) train_hf.py recipes/quickstart.yaml --output_dir $(RUN) --overwrite true
	$(BIN)/python examples/classify_file.py $(RUN) data/voice_prompts/audio/fr_agent-pass.flac

# What pretraining is worth where labels are few, on the same recordings.
pretrain-demo: .venv/ready
	$(BIN)/python benchmarks/pretraining_pays.py

# A file of tests per core, one thread each.
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(CORES) --dist loadfile

# The tests against the original authors' numbers, on stand-ins for other processors.
test-portable: .venv/ready
	tests/portable.sh $(BIN)/python

# End-to-end proofs that take minutes.
test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

# Saved folders in every supported version of Transformers and torch: builds an environment for each, or for those
# that VERSIONS="4.48 5.0" names, in .venvs.
test-versions: .venv/ready
	$(BIN)/python tests/versions/run.py $(VERSIONS) --python $(PYTHON)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The documentation site, in site/. A broken link, a page outside the navigation or a bad reference fails.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/ready
	$(BIN)/python benchmarks/features.py
	$(BIN)/python benchmarks/variable_length.py
	$(BIN)/python benchmarks/pretraining_step.py
	$(BIN)/python benchmarks/sweep.py

.venv/ready: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf .venv .venvs build site *.egg-info
