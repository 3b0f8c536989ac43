# make demo · make demo-catalogue · make test · make test-again · make coverage · make check · make loaders · make kernels · make chaos · make mutate · make bench · make up · make images · make images-test · make chart-test · make two-hosts-test · make screenshots
#
# PYTHON           the interpreter that makes .venv (3.11 or later)
# JOBS             how many files of tests, or mutants, run at a time
# SAMPLE           how many mutants to try, drawn at random; all of them, if 0
# TORCH_INDEX_URL  where pip takes torch from, if not from its default (a CPU-only build, say)
# IMAGES           which images to build, if not presswork and presswork-worker
# ENGINE           docker, buildah or podman, if not the first that works
# BASE, BUILD_ARGS the images' base, and more options for the engine's build
PYTHON ?= python3
NAME ?= all
JOBS ?= 2
SAMPLE ?= 0
BIN := .venv/bin
STAMP := .venv/.installed
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup demo demo-catalogue up test test-again coverage check loaders kernels chaos mutate bench images images-test chart-test two-hosts-test screenshots clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    render 48 prompts on this machine into ./demo-output"
	@echo "make demo-catalogue  keep a shop's catalogue up to date for two nights, into ./demo-catalogue"
	@echo "make up      run everything until Ctrl-C"
	@echo "make test    run the tests"
	@echo "make test-again  try what failed once more, alone: is it the code, or a busy machine?"
	@echo "make coverage  run the tests and say which share of the lines they run; a third slower"
	@echo "make check   format, lint, types, import contracts, unit tests"
	@echo "make kernels compile and interpret the kernels for CUDA, without a GPU"
	@echo "make loaders read exports and downloads back with the programs that they are for, also the large ones"
	@echo "make chaos   kill and stop processes at random for some minutes: too slow for make test"
	@echo "make mutate  break the code in one small place at a time: does a test fail? (NAME=claims SAMPLE=50)"
	@echo "make bench   run the benchmarks (NAME=busy for one)"
	@echo "make images  build the container images, with docker, buildah or podman"
	@echo "make images-test   run compose.yaml from them and render a job"
	@echo "make chart-test    run the chart's pods from them and render jobs"
	@echo "make two-hosts-test   run the recipe for two hosts by compose from them"
	@echo "make screenshots   write pictures of the dashboard into ./screenshots, light and dark"
	@echo "make setup   only install, into .venv"

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml services/client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Presswork needs Python 3.11 or later; PYTHON=... names one." if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || (echo "making .venv" && $(PYTHON) -m venv .venv)
	@echo "installing torch (the largest part; it takes a minute or several)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) "$$(grep '^torch==' requirements.lock)"
	@echo "installing the rest of requirements.lock (a minute or several, too)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e services/client -e .
	@touch $(STAMP)

demo: setup
	@$(BIN)/presswork demo

demo-catalogue: setup
	@$(BIN)/presswork demo-catalogue

up: setup
	@exec $(BIN)/presswork up

test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

coverage: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --cov --cov-report=
	@echo "coverage: $$($(BIN)/coverage report --format=total) % of the lines, counted in the tests' own processes alone"

test-again: setup
	$(BIN)/python -m tests.again

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/unit

# Energon lies beside the environment: it asks for older time zones than schedules need.
ENERGON := megatron-energon==7.4.1 multi-storage-client==1.3.1 rapidyaml==0.15.2 filetype==1.2.0 mfusepy==3.1.1 xattr==1.3.0 lark==1.3.1 \
  wcmatch==12.0.1 bracex==3.2.3 prettytable==3.18.0 deprecation==2.1.0 pyroute2==0.9.7
.energon: | setup
	@rm -rf .energon.part
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .energon.part $(ENERGON)
	@rm -rf .energon && mv .energon.part .energon

loaders: setup .energon
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check polars==2.1.0 duckdb==2.0.1 pylance==14.0.2 torchdata==0.11.0
	$(BIN)/python -m pytest tests/integration/test_loaders.py tests/integration/test_dataset_loaders.py

# Triton lies beside the environment, so that torch stays what it is on a CPU.
.triton: | setup
	@rm -rf .triton.part
	@echo "installing Triton (700 MB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .triton.part triton==3.7.1
	@rm -rf .triton && mv .triton.part .triton

kernels: .triton
	PYTHONPATH=.triton $(BIN)/python -m pytest -n $(JOBS) -k "triton or generated" tests/unit/test_generated.py tests/unit/test_group_norm.py

chaos: setup
	@mkdir -p storm-results
	STORM_REPORT=$(CURDIR)/storm-results/storm.json RIVALS_REPORT=$(CURDIR)/storm-results/rivals.json $(BIN)/python -m pytest -m chaos -s
	@echo "figures of the storm are in storm-results; $(BIN)/python -m tests.storm.report storm-results makes their page"

mutate: setup
	$(BIN)/python -m tests.mutation $(NAME) --sample $(SAMPLE) --slots $(JOBS)

# Other queues lie beside the environment: they are only measured.
RIVALS := pgqueuer==1.6.0 asyncpg==0.32.0 croniter==7.0.0 tabulate==0.10.0 pydantic-settings==2.16.3 procrastinate==3.10.0 \
  asgiref==3.13.0 psycopg-pool==3.3.3
.rivals: | setup
	@rm -rf .rivals.part
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .rivals.part $(RIVALS)
	@rm -rf .rivals && mv .rivals.part .rivals

bench: setup $(if $(filter ledger all,$(NAME)),.rivals)
	$(BIN)/python -m tests.benchmarks $(NAME)

images:
	@$(PYTHON) -m tests.images build $(IMAGES)

images-test: setup
	@$(BIN)/python -m tests.images test

chart-test: setup
	@$(BIN)/python -m tests.images chart

two-hosts-test: setup
	@$(BIN)/python -m tests.images two-hosts

screenshots: setup
	@$(BIN)/python -m tests.screenshots screenshots

clean:
	rm -rf .venv .triton .triton.part .energon .energon.part .rivals .rivals.part .presswork demo-output demo-catalogue screenshots bench-results mutation-results storm-results build *.egg-info services/client/build services/client/*.egg-info
