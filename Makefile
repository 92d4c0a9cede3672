# make demo   set up and run the whole story
# make test   set up and run the whole suite
# make quick  the suite without whole verbs, training, browsers and outside files
# make seeds  every assertion on trained dictionaries, with five seeds, on this processor and as one without AVX-512
# make lint   ruff and pyright
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

.PHONY: demo test quick seeds trained-avx2 lint clean

$(VENV)/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/subrank demo --out demo

test: $(VENV)/installed
	$(PYTEST) -n 2 --dist loadfile

quick: $(VENV)/installed
	$(PYTEST) -n 2 --dist loadfile -m "not slow and not trained and not browser and not real"

# Numbers of trained dictionaries differ between processors: what is asserted of them must not.
trained-avx2: $(VENV)/installed
	$(AVX2) $(PYTEST) -n 2 --dist loadfile -m trained

seeds: $(VENV)/installed
	$(PYTEST) -n 2 --dist loadfile -m trained --seeds 5
	$(AVX2) $(PYTEST) -n 2 --dist loadfile -m trained --seeds 5

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) demo build *.egg-info
