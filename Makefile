# make demo   set up and run the whole story
# make test   set up and run the suite, in five minutes
# make rest   the rest of it: every example, benchmark, fuzz and fault
# make quick  the suite without whole verbs, training, browsers and outside files
# make seeds  every assertion on trained dictionaries, with five seeds, on this processor and as one without AVX-512
# make kills  every long verb killed 30 times at random, and started again: the same bytes
# make fuzz   five times as many command lines and damaged files as in make test
# make verify  every verb on storybook, a sample of what it reports computed again by plain forward passes
# make interop  the tests that need SAELens, sparsify or dictionary-learning, each in an environment of its own
# make docs   run the tutorials and build the site: build/docs/site/index.html
# make lint   ruff and pyright
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Without bytecode, which some environments forbid to keep, every process compiles all modules and tests anew.
unexport PYTHONDONTWRITEBYTECODE
# The files that take longest come first (tests/conftest.py), not those with most tests.
SPREAD := -n 2 --dist loadfile --no-loadscope-reorder
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

.PHONY: demo test rest quick seeds trained-avx2 kills fuzz verify interop docs lint clean

$(VENV)/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/subrank demo --out demo

test: $(VENV)/installed
	$(PYTEST) $(SPREAD) -m "not rest"

rest: $(VENV)/installed
	$(PYTEST) $(SPREAD) -m rest

quick: $(VENV)/installed
	$(PYTEST) $(SPREAD) -m "not slow and not rest and not trained and not browser and not real"

# Numbers of trained dictionaries differ between processors: what is asserted of them must not.
trained-avx2: $(VENV)/installed
	$(AVX2) $(PYTEST) $(SPREAD) -m trained

seeds: $(VENV)/installed
	$(PYTEST) $(SPREAD) -m trained --seeds 5
	$(AVX2) $(PYTEST) $(SPREAD) -m trained --seeds 5

kills: $(VENV)/installed
	$(PYTEST) -n 2 --kills 30 tests/reliability

fuzz: $(VENV)/installed
	$(PYTEST) $(SPREAD) --fuzz 5 tests/fuzz

verify: $(VENV)/installed
	$(BIN)/python benchmarks/verify.py

# Their packages and ours need different versions of transformer-lens. pip may bring a torchvision of another build than
# torch, which keeps transformers from loading; none of them needs it.
interop: interop-sae-lens interop-eai-sparsify interop-dictionary-learning

interop-%:
	@mkdir -p .interop
	@grep '^torch==' constraints.txt > .interop/constraints.txt
	@test -e .interop/$*/installed || { $(PYTHON) -m venv .interop/$* && \
	    .interop/$*/bin/python -m pip install --quiet --constraint .interop/constraints.txt \
	        torch $* pytest jaxtyping beartype && \
	    .interop/$*/bin/python -m pip uninstall --quiet --yes torchvision && touch .interop/$*/installed; } || \
	    echo "$* could not be installed: the tests that need it are left out"
	@test ! -e .interop/$*/installed || { .interop/$*/bin/python -c 'import $(subst -,_,$(*:eai-%=%))' && \
	    .interop/$*/bin/python -m pytest --noconftest -p no:cacheprovider -k '$(subst -,_,$(*:eai-%=%))' \
	        tests/sae_core/formats/test_other_tools.py; }

# The site's tools stand apart, so that no version of theirs is one of ours. Tutorials run again where the code is new.
DOCS := build/docs
CODE := $(shell find examples sae_core editing circuits subrank -name '*.py')

.docs/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv .docs
	.docs/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.docs/bin/python -m pip install --quiet --constraint constraints.txt --group docs
	touch $@

$(DOCS)/tutorials.made: $(VENV)/installed docs/make_tutorials.py $(CODE)
	$(BIN)/python docs/make_tutorials.py $(DOCS)/tutorials
	touch $@

docs: .docs/installed $(DOCS)/tutorials.made
	$(BIN)/python docs/make_site.py $(DOCS)
	.docs/bin/mkdocs build --strict --config-file $(DOCS)/mkdocs.yml
	$(BIN)/python docs/check_offline.py $(DOCS)/site

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) .interop .docs demo build *.egg-info
