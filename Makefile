# `make train` learns HalfCheetah-v5 on this machine, `make train-gac` a maze from recorded episodes and then online; `make test`
# proves the parts. All set up .venv first.
PYTHON ?= python3.11
export OMP_NUM_THREADS = 1
export MKL_NUM_THREADS = 1

.PHONY: setup train train-gac test quick check monitoring
setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt --editable '.[test]'
	@touch $@

train: setup
	.venv/bin/drawbridge train softgac --env HalfCheetah-v5 $(ARGS)

train-gac: setup
	.venv/bin/python benchmarks/demo_gac.py $(ARGS)

# Prometheus with the alert rules, for every run that is started with `--set metrics.targets_dir=` and this folder.
TARGETS ?= runs/targets
monitoring:
	deploy/monitoring/start.sh $(TARGETS)

# All tests, two at a time; those that start a Ray cluster mostly wait for processes.
test: setup
	.venv/bin/python -m pytest -m 'not cluster' --numprocesses 2 --dist loadscope
	.venv/bin/python -m pytest -m cluster --numprocesses 2 --dist loadscope

# The tests that neither start a Ray cluster nor train whole runs, two at a time.
quick: setup
	.venv/bin/python -m pytest -m 'not cluster and not slow' --numprocesses 2 --dist loadscope

check: setup
	.venv/bin/ruff check --quiet .
	.venv/bin/ruff format --check --quiet .
	.venv/bin/mypy --no-error-summary
