# Each target does all the set-up it needs; the environment is .venv/. See CONTRIBUTING.md.
.PHONY: help serve test lint train export bench format requirements clean
.DEFAULT_GOAL := help
# Overridable, for example: make train DATA=/data/isic PRESET=quick; make export PRESET=quick
DATA ?= ../shared/data
PRESET ?= recommended
RUN ?= runs/$(PRESET)
IMAGES ?=

SOURCES := dermserve training export frontend benchmarks deploy tests model_repository

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: .venv/.serve  ## Start PostgreSQL, Triton and the web server on this machine
	@exec .venv/bin/dermserve serve

test: .venv/.dev .venv/.system  ## Run the whole test suite (installs Chromium when root)
	.venv/bin/python -m pytest $(ARGS)

lint: .venv/.dev  ## Style, types and the import rules between rooms
	.venv/bin/ruff check $(SOURCES)
	.venv/bin/ruff format --check $(SOURCES)
	.venv/bin/mypy
	.venv/bin/lint-imports

train: .venv/.dev  ## Train on DATA with PRESET into RUN
	.venv/bin/dermserve train --data $(DATA) --preset $(PRESET) --out $(RUN)

export: .venv/.dev  ## Put RUN's weights into model_repository/
	.venv/bin/dermserve export $(RUN) $(if $(IMAGES),--images $(IMAGES))

bench: .venv/.dev  ## Measure what a CPU can measure; results land in benchmarks/results/
	@status=0; for name in limit cold serve where precision transport lane 'load --overload' pages decode; do \
	    .venv/bin/dermserve bench $$name || status=1; \
	done; exit $$status

format: .venv/.dev  ## Format the code
	.venv/bin/ruff check --fix $(SOURCES)
	.venv/bin/ruff format $(SOURCES)

requirements: .venv/.dev  ## Compile requirements/*.txt again from pyproject.toml
	deploy/compile-requirements.sh

clean:  ## Remove the environment (not the data in .dermserve/)
	rm -rf .venv .tools

# The developer's environment holds the serving one, so `make serve` after `make test` installs nothing.
.venv/.serve: requirements/serve.txt pyproject.toml deploy/setup.sh
	@[ .venv/.dev -nt requirements/serve.txt -a .venv/.dev -nt pyproject.toml ] || deploy/setup.sh serve
	@touch $@

.venv/.dev: requirements/dev.txt pyproject.toml deploy/setup.sh
	@deploy/setup.sh dev
	@touch $@

.venv/.system: .venv/.dev
	@deploy/setup.sh system
	@touch $@
