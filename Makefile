# hoi-distill: `make help` lists what can be made.
PYTHON ?= python3
CONFIG ?= configs/pico.yaml
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
export HF_HUB_OFFLINE ?= 1
export RAY_USAGE_STATS_ENABLED = 0

.DEFAULT_GOAL := help
.PHONY: help setup teacher-cache train-student experiments pico-teacher pico-long-tailed pico-detector pico-detr pico-clip pico-marked crowd-tower crowd-itm test test-slow test-all lint bench clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-17s %s\n", $$1, $$2}'
	@echo "  CONFIG=$(CONFIG) chooses another setup, e.g. make teacher-cache CONFIG=configs/folder.yaml"

setup: $(READY) ## create .venv with the pinned dependencies

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@echo "Creating $(VENV) and installing the libraries: about 2 GB with a CPU build of torch, more with CUDA; takes minutes."
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@echo "Installed into $(VENV)."
	@touch $(READY)

teacher-cache: $(READY) ## compute every teacher answer that CONFIG wants and the cache lacks
	$(BIN)/hoi-distill run $(CONFIG)

train-student: $(READY) ## fill the cache, train the student of CONFIG, evaluate it and write its report
	$(BIN)/hoi-distill train $(CONFIG) --fill

experiments: $(READY) ## the whole matrix of students on the pico world (36 trainings; resumable)
	$(BIN)/hoi-distill experiments configs/experiments.yaml

pico-teacher: $(READY) ## train the shipped pico teacher again
	$(BIN)/python -m hoi_distill.stages.teacher.pico.training.blip --out stages/teacher/pico

pico-long-tailed: $(READY) ## train its twin of long-tailed captions again
	$(BIN)/python -m hoi_distill.stages.teacher.pico.training.blip --long-tailed --out stages/teacher/pico/long_tailed

pico-detector: $(READY) ## train the shipped pico detector again
	$(BIN)/python -m hoi_distill.stages.teacher.pico.training.detector --out stages/teacher/pico/detector

pico-detr: $(READY) ## train the shipped pico DETR, which students of VLM-HOI start from, again
	$(BIN)/python -m hoi_distill.stages.teacher.pico.training.detr --out stages/teacher/pico/detr

pico-clip: $(READY) ## train the second shipped pico teacher, a CLIP, again
	$(BIN)/python -m hoi_distill.stages.teacher.pico.training.clip --out stages/teacher/pico/clip

pico-marked: $(READY) ## train the shipped pico teacher that is asked about pairs again
	$(BIN)/python -m hoi_distill.stages.teacher.pico.training.marked --out stages/teacher/pico/marked

crowd-tower: $(READY) ## train the crowd's shipped tower again, in two turns
	$(BIN)/python -m hoi_distill.stages.teacher.crowd.training.tower --out data/crowd-corpus/first
	$(BIN)/python -m hoi_distill.stages.teacher.crowd.training.tower --out stages/teacher/crowd/tower \
		--start data/crowd-corpus/first --fine 1 --steps 800 --lr 1.5e-3

crowd-itm: $(READY) ## train the crowd's shipped matching teacher again, upon the tower
	$(BIN)/python -m hoi_distill.stages.teacher.crowd.training.matching --out stages/teacher/crowd/itm

test: $(READY) ## quick tests
	$(BIN)/python -m pytest -q --durations=25 -m 'not slow' tests

test-slow: $(READY) ## the other tests: training, killed processes, Ray, pages in Chromium
	$(BIN)/python -m pytest -q --durations=10 -m slow tests

test-all: test test-slow ## every test, once

lint: $(READY) ## ruff, mypy, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## side-by-side measurements; writes docs/benchmarks.md and docs/benchmarks/
	$(BIN)/python -m bench

clean: ## remove the virtual environments; caches and runs stay
	rm -rf $(VENV) .peers
