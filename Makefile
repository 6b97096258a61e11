# `make ask`, `make demo` and `make test` work on a fresh machine: each sets up .venv first, once. `make help` lists the rest.
VENV ?= .venv
BIN := $(VENV)/bin

# The bundled example. Your own: make ask VIDEO=film.mp4 QUESTION="When does she open the letter?"
EXAMPLE := app/examples/digit.mp4
VIDEO ?= $(EXAMPLE)
QUESTION ?= Which digit is in the orange box?
ifeq ($(VIDEO),$(EXAMPLE))
OPTIONS ?= --option 5 --option 1 --option 6 --option 7
endif
MODEL ?= tiny
PYTEST_ARGS ?=
DEMO_ARGS ?=
export VENV VIDEO QUESTION MODEL

.DEFAULT_GOAL := help
.PHONY: help ask demo test test-slow test-distributed test-browser test-gpu setup setup-demo setup-dev check lint types imports tiny bench-decode bench-tiny screenshots support-table readme clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

ask: setup ## Ask the bundled model about the bundled video, and watch it look
	@$(BIN)/closeup ask "$$VIDEO" "$$QUESTION" $(OPTIONS) --model "$$MODEL"

demo: setup-demo ## Open the web demo; more flags: make demo DEMO_ARGS="--allow films --port 7861"
	@$(BIN)/closeup demo --model "$$MODEL" $(DEMO_ARGS)

test: setup-dev ## The default tests (minutes)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

test-slow: setup-dev ## Long fuzzing, packaging, everything marked slow
	$(BIN)/python -m pytest --timeout 1800 -m "slow and not vllm and not browser and not distributed and not gpu" $(PYTEST_ARGS)

test-distributed: setup-dev ## What starts several processes
	$(BIN)/python -m pytest --timeout 900 -m distributed $(PYTEST_ARGS)

test-browser: setup-dev ## The page in Debian's chromium, which is installed when it is missing
	@.ci/chromium
	$(BIN)/python -m pytest --timeout 900 -m browser $(PYTEST_ARGS)

test-gpu: setup-dev ## What needs a CUDA device
	$(BIN)/python -m pytest --timeout 1800 -m gpu $(PYTEST_ARGS)

setup: ## Make .venv with closeup and its dependencies
	@.ci/make-venv base

setup-demo: ## The same, with the web demo
	@.ci/make-venv demo

setup-dev: ## The same, with what the tests and checks need
	@.ci/make-venv dev

check: lint types imports ## Lint, format, types, import directions

lint: setup-dev ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup-dev ## mypy --strict over the package
	$(BIN)/mypy

imports: setup-dev ## prompts <- tools <- agent <- rl <- app, and no torch below agent
	$(BIN)/lint-imports

tiny: setup ## Retrain the bundled model from nothing and evaluate it
	$(BIN)/python -m closeup.rl.tiny

bench-decode: setup-dev ## Decoding against decord, torchcodec and ffmpeg
	$(BIN)/python benchmarks/decode.py

bench-tiny: setup ## Accuracy of the bundled model against its baselines
	$(BIN)/python benchmarks/tiny.py

screenshots: setup-dev ## Take the pictures of the demo in docs/images
	@.ci/chromium
	$(BIN)/python benchmarks/demo_screenshots.py

support-table: setup-dev ## What each family of models does: run its tests, write the table (then: make readme)
	$(BIN)/python benchmarks/families.py

readme: setup ## Write the committed results into README.md and docs/
	$(BIN)/python benchmarks/readme.py

clean: ## Remove .venv, caches and build products (trained models in .tiny stay)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
