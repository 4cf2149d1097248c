# make demo · make lab · make jax · make test · make docs · make pretrained   (each does its own set-up in .venv)
PYTHON ?= python3
CORPUS ?= tales
CONFIG ?= $(if $(OWN),configs/own_text.yaml,configs/train_small.yaml)
ARGS   ?=
LESSON ?=

# A thread that waits for another one soon sleeps: beside other programs, long spinning makes training many times slower.
export GOMP_SPINCOUNT ?= 1000

BIN   := .venv/bin
JAX   := .venv-jax/bin/python
SETUP := $(wildcard settings.ini setup.py constraints.txt)

.PHONY: demo test coverage test-oldest release-check lab jax edit reset docs docs-serve pretrained clean
.NOTPARALLEL:  # two installations in one environment would disturb each other
.DEFAULT_GOAL := help

help:
	@echo "make demo        train a small model and look at what it writes (CORPUS=stdlib, CORPUS=my.txt)"
	@echo "make lab         open the lessons in JupyterLab: your own copies, in my_course/"
	@echo "make jax         make a Python with JAX beside the course's, for the lessons 18 (then: make lab)"
	@echo "make reset LESSON=03    begin a lesson of yours anew (the old one is kept)"
	@echo "make edit        open the lessons themselves, to change the course"
	@echo "make docs        build the lessons and the package's reference as a site (make docs-serve shows it)"
	@echo "make test        run everything that proves the course"
	@echo "make coverage    what no test and no notebook reaches"
	@echo "make release-check    everything that a release wants, but the upload"
	@echo "make pretrained  train the bundled model of llm_course/bundled anew"

# One stamp a set of extras: what is installed already is not looked at again until the requirements change.
.venv/.installed-%: $(SETUP)
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".$(if $(filter-out core,$*),[$*])"
	@touch $@

# JAX and what it needs stand in a Python of their own, which sees .venv's packages too: torch and the
# course are not installed twice, and the course itself never meets JAX. Jupyter offers it as `jax`.
SEE = import sysconfig; print("import site; site.addsitedir(" + repr(sysconfig.get_path("purelib")) + ")")

# A new .venv wants a new .venv-jax: Jupyter's list of kernels stands in the one, its packages are seen by the other.
.venv/pyvenv.cfg: ;

.venv-jax/.installed: $(SETUP) .venv/pyvenv.cfg
	$(BIN)/python -m venv --clear --without-pip .venv-jax
	$(BIN)/python -c '$(SEE)' > "$$($(JAX) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/course.pth"
	$(JAX) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[jax]"
	JUPYTER_PATH="$(CURDIR)/.venv/share/jupyter" $(JAX) -m ipykernel install --prefix .venv --name jax \
		--display-name "Python with JAX" >/dev/null
	@touch $@

jax: .venv/.installed-lab .venv-jax/.installed
	@echo "Python with JAX is ready: make lab opens the lessons 18 with it"

demo: .venv/.installed-core
	$(BIN)/llm_tokenize --config $(CONFIG) $(DEMO)
	$(BIN)/llm_train --config $(CONFIG) --fresh plot=loss.png $(DEMO)
	$(BIN)/llm_eval --config $(CONFIG) $(DEMO)
	@echo $(if $(OWN),'(the commands are in $(BIN)/)','Now try:  $(BIN)/llm_generate "One day, Mia"')

OWN  = $(filter-out tales tales:%,$(CORPUS))
DEMO = $(if $(filter-out tales,$(CORPUS)),corpus.source=$(CORPUS)) $(ARGS)

test: .venv/.installed-dev .venv-jax/.installed
	$(BIN)/python -m pytest -q -n 3 --durations=25 tests nbs $(ARGS)

# What no test and no notebook reaches, by lines and branches; slower than make test. Some tests fail where
# all that runs is watched: those that limit a time, or the size of files.
coverage: export COVERAGE_FOLDER = $(CURDIR)/data/coverage
coverage: .venv/.installed-dev .venv-jax/.installed
	@rm -rf $(COVERAGE_FOLDER) && mkdir -p $(COVERAGE_FOLDER)
	-$(BIN)/python -m coverage run --rcfile tests/coverage.ini -m pytest -q -n 3 tests nbs $(ARGS)
	$(BIN)/python -m coverage combine -q --rcfile tests/coverage.ini
	$(BIN)/python -m coverage html -q --rcfile tests/coverage.ini -d $(COVERAGE_FOLDER)/html
	$(BIN)/python -m coverage report --rcfile tests/coverage.ini

# The notebooks with the oldest versions that settings.ini promises; uv finds them. FSDP, for these four,
# is in PyTorch since 2.8.
NEWER  := 13a_sharded 13f_processes 13h_sharded_checkpoint 13k_sharded_state
OLDEST := .venv-oldest/bin
UV     ?= --torch-backend cpu
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST)/python -m pip install --quiet --disable-pip-version-check uv
	$(OLDEST)/uv pip install --quiet --python $(OLDEST)/python --resolution lowest-direct $(UV) \
		-e ".[lessons]" "execnb>=0.1.18" "fastcore>=1.14.5" "nbformat>=5.10"
	$(OLDEST)/python -m pytest -q nbs $(NEWER:%=--ignore nbs/%.ipynb) $(ARGS)

release-check: .venv/.installed-dev
	$(BIN)/python tests/release_check.py $(VERSION)

COPIES = $(BIN)/python -c 'import sys; from llm_course.lessons import main; sys.exit(main(sys.argv[1:]))'
JUPYTER = $(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)"

lab: .venv/.installed-lab
	@$(COPIES)
	$(JUPYTER) my_course/00_start.ipynb

reset: .venv/.installed-core
	@test -n "$(LESSON)" || { echo 'Say which lesson, such as: make reset LESSON=03'; exit 1; }
	@$(COPIES) $(LESSON)

edit: .venv/.installed-lab
	$(JUPYTER) nbs/00_start.ipynb

docs: .venv/.installed-docs
	$(BIN)/python docs/build.py
	@echo "the site is _docs/index.html"

docs-serve: docs
	@echo "http://127.0.0.1:8000/   (Ctrl-C ends it)"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _docs 8000

pretrained: .venv/.installed-core
	$(BIN)/llm_tokenize --config configs/pretrained.yaml
	$(BIN)/llm_train --config configs/pretrained.yaml --fresh
	$(BIN)/python -c "from llm_course.runs import bundle; bundle('data/runs/pretrained', 'llm_course/bundled')"
	$(BIN)/llm_eval --model llm_course/bundled eval.stories=500 > llm_course/bundled/eval.txt

clean:
	rm -rf .venv .venv-jax .venv-oldest _docs build dist *.egg-info data/processed data/tokenizer data/runs loss.png
