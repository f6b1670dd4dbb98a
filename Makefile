# The same words locally and in CI. Each target sets itself up from nothing into .venv; needs python3 with venv.
PYTHON ?= python3
BIN := .venv/bin
# Exact versions come from constraints.txt. uv installs several times faster than pip, where it is present.
UV := $(shell command -v uv 2>/dev/null)
ifdef UV
INSTALL := $(UV) pip install --python $(BIN)/python -c constraints.txt
else
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt
endif
export TOKENIZERS_PARALLELISM = false

.PHONY: demo demo-control demo-agent test fuzz test-oldest test-verl lint check bench bench-engine bench-sft docs clean
.DEFAULT_GOAL := test

# An environment whose creation was interrupted has no stamp, and is made anew.
.venv/.made:
	@echo "== making .venv with $$($(PYTHON) --version)"
	$(PYTHON) -m venv --clear .venv
	@touch $@

# The extras of pyproject.toml, each with a stamp that is set when its installation is complete.
.venv/.%-ok: pyproject.toml constraints.txt | .venv/.made
	@echo "== installing '.[$*]' with $(if $(UV),uv,pip): a few minutes and about 2 GB the first time"
	$(INSTALL) -e '.[$(if $(filter bench,$*),dev$(comma)bench,$*)]'
	@touch $@
comma := ,

# The main job: a small pretrained model learns to call tools, from captured traces to a report.
# An interrupted run is continued by the same command.
demo: .venv/.demo-ok
	$(BIN)/python -m orbiter.train.demo

# The same, then as many seconds of further SFT as GRPO took, to compare the two gains.
demo-control: .venv/.demo-ok
	$(BIN)/python -m orbiter.train.demo --control

# An agent with a tool learns by doing: SmolLM2-135M looks things up, twice, and answers.
demo-agent: .venv/.demo-ok
	$(BIN)/python -m orbiter.train.demo.by_doing

# All tests except those marked nightly.
test: .venv/.dev-ok
	$(BIN)/python -m pytest -m 'not nightly and not gpu' -n 2 --dist worksteal

# Damaged files for every importer, 20 seconds each: about five minutes on two cores.
fuzz: .venv/.dev-ok
	$(BIN)/python -m tests.formats.fuzz_files --seconds 20 --jobs 2

# The tests that use a model, with the oldest transformers that is supported.
OLDEST := 5.5.3
build/transformers-$(OLDEST)/.ok: .venv/.dev-ok
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $(@D) transformers==$(OLDEST) 'tokenizers<=0.23.0' 'huggingface-hub<2'
	touch $@

test-oldest: build/transformers-$(OLDEST)/.ok
	PYTHONPATH=$(CURDIR)/$(<D) $(BIN)/python -m pytest tests/engine tests/sft tests/verl -m 'not slow and not nightly and not gpu' -n 2 --dist worksteal

# The real verl on Ray, on the CPU, in a separate environment, since verl needs transformers below 5.11.
VERL := .venv-verl/bin/python
# Their unchanged agents are trained on verl.
FRAMEWORKS := anthropic langchain-openai langgraph openai openai-agents 'pydantic-ai-slim[openai]'
.venv-verl/.ok: pyproject.toml constraints-verl.txt
	@echo "== installing verl and Ray into .venv-verl: a few minutes the first time"
	$(PYTHON) -m venv --clear .venv-verl
	$(VERL) -m pip install --disable-pip-version-check --progress-bar off -c constraints-verl.txt -e '.[verl]' beartype hypothesis pytest pytest-asyncio pytest-timeout pytest-xdist $(FRAMEWORKS)
	touch $@

# Most of a run is the start of its ten processes, one after the other: two runs at a time fill two cores.
test-verl: .venv-verl/.ok
	$(VERL) -m pytest tests/verl_cluster -n 2 --dist loadfile --durations=8

# Style, types and layers.
lint: .venv/.dev-ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What every commit must pass: all of that and the fast tests.
check: lint
	$(BIN)/python -m pytest -m 'not slow and not nightly and not gpu' -n 2 --dist worksteal

# Every figure in the README: the peer and ours in one run.
bench: .venv/.bench-ok
	for file in $$(grep -l __main__ benchmarks/*.py); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

bench-engine: .venv/.bench-ok
	$(BIN)/python benchmarks/engine.py

# The documentation as a site, in build/site.
docs: .venv/.docs-ok
	$(BIN)/zensical build --clean --strict

bench-sft: .venv/.bench-ok
	$(BIN)/python benchmarks/sft.py

clean:
	rm -rf .venv .venv-verl dist build runs
