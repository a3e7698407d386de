# `make train` learns HalfCheetah-v5 on this machine, `make train-gac` a maze from recorded episodes and then online; `make test`
# proves the parts. All set up .venv first, with the newest Python of 3.11 to 3.13 that runs here; PYTHON= names another one of them.
export PYTHON
export OMP_NUM_THREADS = 1
export MKL_NUM_THREADS = 1

.PHONY: setup train train-gac test quick matrix check monitoring
setup:
	@deploy/setup.sh .venv

train: setup
	.venv/bin/drawbridge train softgac --env HalfCheetah-v5 $(ARGS)

train-gac: setup
	.venv/bin/python benchmarks/demo_gac.py $(ARGS)

# Prometheus with the alert rules, and Grafana where Docker is at hand, for every run that is started with
# `--set metrics.targets_dir=` and this folder.
TARGETS = runs/targets
DATA = runs/prometheus
PORT = 9090
monitoring:
	@deploy/monitoring/start.sh $(TARGETS) $(DATA) $(PORT)

# All tests, two at a time; those that start a Ray cluster mostly wait for processes.
test: setup
	.venv/bin/python -m pytest -m 'not cluster' --numprocesses 2 --dist loadscope
	.venv/bin/python -m pytest -m cluster --numprocesses 2 --dist loadscope

# The tests that neither start a Ray cluster nor train whole runs, two at a time.
quick: setup
	.venv/bin/python -m pytest -m 'not cluster and not slow' --numprocesses 2 --dist loadscope

# The quick tests on every Python of 3.11 to 3.13 that this machine has, each with a folder of .venvs of its own.
matrix:
	@pythons=$$(deploy/setup.sh --all) || exit 2; for python in $$pythons; do \
		venv=.venvs/$$(basename $$python); \
		PYTHON=$$python deploy/setup.sh $$venv && echo "the quick tests on $$($$venv/bin/python -V)" && \
		$$venv/bin/python -m pytest -m 'not cluster and not slow' --numprocesses 2 --dist loadscope || exit 1; \
	done

check: setup
	.venv/bin/ruff check --quiet .
	.venv/bin/ruff format --check --quiet .
	.venv/bin/mypy --no-error-summary
