# The one runner. `make serve` and `make test` set up everything they need.
PYTHON ?= python3
VENV ?= .venv
MODEL ?= smollm2-135m-instruct
# Which device to serve on. "auto" never passes over an NVIDIA GPU: it serves on it or says why it cannot.
BACKEND ?= auto
# Where to listen; empty is what the configuration says. Not taken from the environment, where other tools set HOST.
HOST =
PORT =
# Further flags for pip, e.g. an index that offers a CPU-only build of torch.
PIP_FLAGS ?=
JOBS ?= $(shell $(PYTHON) -c "import os; print(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())")
RUN = $(VENV)/bin
INSTALL = $(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_FLAGS)
# A file's tests stay together, so that servers and environments that they share are made once.
SPREAD = -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Triton decides at import whether it interprets, so these have a process of their own. Triton has builds for Linux only.
KERNEL_TESTS = $(if $(filter Linux,$(shell uname -s)),TRITON_INTERPRET=1 $(RUN)/python -m pytest $(SPREAD) tests/gpu_kernels)
INPUTS = pyproject.toml constraints.txt
NVIDIA_DRIVER = $(wildcard /proc/driver/nvidia/version /dev/nvidiactl /usr/lib/wsl/lib/libcuda.so.1)
ACCELERATOR = $(if $(filter auto cuda,$(BACKEND)),$(if $(NVIDIA_DRIVER),cuda))
CUDA_BUILD_OF_TORCH = $(RUN)/python -c "import sys; from drivetrain_plugins.host import torch_built_for as build; sys.exit(build('cuda') is None)"
READY = $(VENV)/.ready$(addprefix -,$(ACCELERATOR))
FRAMEWORKS = $(patsubst tests/clients/%.txt,%,$(wildcard tests/clients/*.txt))

.PHONY: help serve test test-all check check-clients check-deploy pictures docs bench clean

help: ## Show what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(RUN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: $(INPUTS) | $(RUN)/python
	@echo "Installing Drivetrain into $(VENV) (once; a few minutes on a slow network)"
	$(INSTALL) -e .
	@touch $@

# A build of torch without CUDA that is there already satisfies pip, so it is taken away first.
$(VENV)/.ready-cuda: $(INPUTS) | $(RUN)/python
	@echo "Installing Drivetrain for NVIDIA GPUs into $(VENV) (once; some gigabytes)"
	$(INSTALL) -e '.[cuda]'
	@$(CUDA_BUILD_OF_TORCH) || { $(RUN)/python -m pip uninstall --quiet --yes torch && $(INSTALL) -e '.[cuda]'; }
	@$(RUN)/drivetrain backends --backend cuda || \
		{ echo 'Serve on the processor instead: make serve BACKEND=cpu' >&2; exit 1; }
	@touch $@ $(VENV)/.ready

$(VENV)/.ready-dev: $(INPUTS) | $(RUN)/python
	@echo "Installing Drivetrain and its test tools into $(VENV) (once)"
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.ready

serve: $(READY) ## Set up, fetch the quick-start model, serve it on 127.0.0.1:8000 (MODEL, BACKEND, HOST, PORT)
	$(RUN)/drivetrain serve --model $(MODEL) $(addprefix --backend ,$(filter-out auto,$(BACKEND))) $(addprefix --host ,$(HOST)) $(addprefix --port ,$(PORT))

test: $(VENV)/.ready-dev ## Set up and run the tests
	$(RUN)/python -m pytest $(SPREAD) -m "not slow"
	$(KERNEL_TESTS)

test-all: $(VENV)/.ready-dev ## Everything, the slow tests too, and property tests with new examples
	HYPOTHESIS_PROFILE=search $(RUN)/python -m pytest $(SPREAD)
	$(KERNEL_TESTS)

check: $(VENV)/.ready-dev ## Lint, types, layers
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/lint-imports
	$(RUN)/pyright --pythonpath $(RUN)/python

$(VENV)/.ready-deploy: $(INPUTS) | $(VENV)/.ready-dev
	@echo "Installing the linters of deploy/ into $(VENV) (once)"
	$(INSTALL) -e '.[deploy]'
	@touch $@

check-deploy: $(VENV)/.ready-deploy ## Lint and render Dockerfiles, compose file and Helm chart
	$(RUN)/python -m pytest tests/deploy

# Every version is pinned, so pip has nothing to resolve; `pip check` then proves that none is missing.
$(VENV)/clients/%/.ready: tests/clients/%.txt | $(VENV)/.ready-dev
	@echo "Installing $* into $(VENV)/clients/$* (once)"
	@$(RUN)/python -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r $<
	$(@D)/bin/python -m pip check --disable-pip-version-check
	@touch $@

check-clients: $(FRAMEWORKS:%=$(VENV)/clients/%/.ready) | $(VENV)/.ready-dev ## Frameworks over the official clients, each in an environment of its own, against a real server
	$(RUN)/python -m pytest tests/clients

pictures: $(VENV)/.ready-dev ## Take the pictures of the README again; wants chromium and prometheus
	PICTURES_FOLDER=docs/pictures $(RUN)/python -m pytest tests/e2e/test_pictures.py

docs: $(VENV)/.ready-dev ## Write the generated pages and Dockerfiles again
	$(RUN)/python -m drivetrain_server.config_docs > docs/config.md
	$(RUN)/python deploy/docker/render.py

bench: $(VENV)/.ready ## Host cost of a step and CPU throughput
	$(RUN)/python bench/host_cost.py

clean: ## Remove the environment and build leftovers
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
