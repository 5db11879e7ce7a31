# Targets run in the virtual environment that the README's second line makes: .venv
PYTHON ?= .venv/bin/python
FUZZ_VENV ?= .venv-fuzz
FUZZ_RUNS ?= 1000000
CORPUS ?= .fuzz-corpus

.PHONY: check format lint types test costs every peers fuzz costly sbom matrix figures gpu gpu-plans demo ci

check: lint types test

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy

# All that CI proves; the README's line runs what costs little.
test:
	$(PYTHON) -m pytest -q -n auto --dear

# What a test costs, after which `make test` and the README's line differ: tests/costs.json.
costs:
	$(PYTHON) -m pytest -q -n auto --dear --measure-costs

# Every case of the families of which `make test` runs a few, and the slow tests.
every:
	$(PYTHON) -m pytest -q -n auto --every-case

peers:
	$(PYTHON) -m pip install -q -e ".[peers]"
	$(PYTHON) -m pytest -q -n auto --every-case -m peers

fuzz:
	test -d $(FUZZ_VENV) || python3 -m venv $(FUZZ_VENV)
	$(FUZZ_VENV)/bin/pip install -q atheris numpy
	mkdir -p $(CORPUS)
	$(FUZZ_VENV)/bin/python -m tests.studies.fuzz.fuzz_readers $(CORPUS) -runs=$(FUZZ_RUNS) -max_len=4096 -timeout=10

# Files that cost their reader more than they may; goes on where it ended, in .costly-corpus.
costly:
	$(PYTHON) -m tests.studies.weights_io.costly --seconds 600

# What is installed and needed, as CycloneDX JSON: `make -s sbom EXTRAS="onnx plots" >sbom.json`.
sbom:
	@$(PYTHON) .ci/sbom $(EXTRAS)

# Every known bug in every layer: seen, and named right? Then the same from logits alone.
matrix:
	$(PYTHON) -m tests.studies.oracle.matrix_study --model A0 --out tests/studies/oracle/results/diagnosis-A0.json
	$(PYTHON) -m tests.studies.oracle.matrix_study --model plain grouped se-before-relu plus --size 36 \
		--logits 150 --out tests/studies/oracle/results/logits-only.json

# Every figure of the CPU engine beside its peers, about eleven minutes on a quiet machine: JSON,
# pictures and a page in tests/studies/bench/results.
figures:
	$(PYTHON) -m tests.studies.bench.figures

# On a machine with a GPU: tests, oracle, races against torch, profile, a minute of training; one
# JSON named after the device in tests/studies/gpu/results. Less than ten minutes, no network.
gpu:
	$(PYTHON) -m tests.studies.gpu.settle

# No GPU needed, but cuDNN (pip install nvidia-cudnn-cu12 or -cu13): can it plan our convolutions?
gpu-plans:
	$(PYTHON) -m tests.studies.gpu.plans

demo:
	$(PYTHON) -m repvgg_ref_cli demo

ci:
	bash .ci/run
