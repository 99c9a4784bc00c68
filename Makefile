# make demo: set up, train and evaluate on digits, draw the pictures.   make test: set up, run the tests.
# make soak: kill the program at random instants, KILLS times, and compare what it makes all the same.
PYTHON ?= python3
VENV ?= .venv
RUN ?= checkpoints_run
KILLS ?= 100

.PHONY: demo test test-gpu soak docs lint
.DELETE_ON_ERROR:

$(VENV)/requirements.done: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -r requirements.txt
	@touch $@

$(VENV)/requirements-dev.done: requirements-dev.txt $(VENV)/requirements.done
	$(VENV)/bin/python -m pip install -r requirements-dev.txt
	@touch $@

demo: $(VENV)/requirements.done
	$(VENV)/bin/python main.py --dataset digits --checkpoint-dir $(RUN)

test: $(VENV)/requirements-dev.done
	$(VENV)/bin/python -m pytest tests

# on a machine with a GPU, with the Python that is there: installs nothing
test-gpu:
	$(PYTHON) -m pytest -n 0 -m gpu tests

soak: $(VENV)/requirements-dev.done
	$(VENV)/bin/python tests/runs/soak.py --kills $(KILLS)

# docs/flags.md from settings.py, docs/bad_inputs.md from the tests, results/README.md and README's table
docs: $(VENV)/requirements-dev.done
	$(VENV)/bin/python -c "from command_line import describe_flags; from rules import owners_of; from settings import make_parser; print(describe_flags(make_parser(), owners_of), end='')" > docs/flags.md
	$(VENV)/bin/python tests/runs/bad_inputs.py > docs/bad_inputs.md
	$(VENV)/bin/python -m paper report

lint: $(VENV)/requirements-dev.done
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
