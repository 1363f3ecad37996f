# Everything that a person does with this tree. `make` alone says what there is.
# On a fresh machine: Rust (rust-toolchain or rustup), and Debian packages for the rest, which `make test` adds where missing.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
VENV := target/venv
NODE := tests/sdk/node
DASHBOARD := tests/dashboard

.PHONY: help
help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.PHONY: build
build: ## the release binary, target/release/tollgate
	cargo build --release --locked

.PHONY: demo
demo: build ## calls, variants and budgets at work, with a simulated provider: no key needed
	target/release/tollgate demo

.PHONY: test
test: test-rust test-sdk test-api test-dashboard test-deploy test-otlp test-notebook ## everything that is tested

.PHONY: test-rust
test-rust: ## unit tests and the integration suite
	scripts/packages.sh cc:gcc redis-server:redis-server faketime:faketime postgresql curl:curl python3:python3
	cargo test --locked

.PHONY: campaign
campaign: ## the fleet under all its faults, every round of them: a quarter of an hour
	scripts/packages.sh cc:gcc redis-server:redis-server faketime:faketime
	TOLLGATE_CAMPAIGN=full cargo test --locked --test it -- fleet:: metrics::a_thousand --nocapture --test-threads=1

.PHONY: test-sdk
test-sdk: $(VENV)/sdk $(NODE)/node_modules ## the OpenAI and Anthropic SDKs against the built binary
	cargo build --locked
	$(VENV)/bin/python -m pytest -q -p no:cacheprovider tests/sdk/python
	cd $(NODE) && npm test

.PHONY: test-api
test-api: $(VENV)/api ## the admin API against its own description, and signing in at a provider of OpenID Connect
	cargo build --locked
	$(VENV)/bin/python -m pytest -q -p no:cacheprovider -W ignore::DeprecationWarning tests/api/check.py tests/api/oidc.py

.PHONY: test-dashboard
test-dashboard: $(DASHBOARD)/node_modules ## each page of the demo's dashboard in Chromium; screenshots in target/screenshots
	scripts/packages.sh chromium:chromium
	cargo build --locked
	cd $(DASHBOARD) && npm test

.PHONY: test-deploy
test-deploy: $(VENV)/deploy ## the image's recipe, the manifests, rules and dashboards, the unit, the licences
	scripts/packages.sh promtool:prometheus
	cargo build --locked
	$(VENV)/bin/python -m pytest -q -rs -p no:cacheprovider tests/deploy/check.py tests/deploy/dashboards.py

.PHONY: test-otlp
test-otlp: $(VENV)/otlp ## traces in a real MLflow: a minute, and 850 MB to install
	cargo build --locked
	$(VENV)/bin/python -m pytest -q -p no:cacheprovider tests/otlp

.PHONY: test-notebook
test-notebook: $(VENV)/notebook ## the notebook on a log of real calls: half a minute, and 520 MB to install
	cargo build --locked
	$(VENV)/bin/python -m pytest -q -p no:cacheprovider tests/notebook/check.py

.PHONY: lint
lint: ## formatting, clippy, and the committed schema
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo run --locked --quiet -- schema | diff - config/schema.json
	@if command -v cargo-deny >/dev/null; then cargo deny --locked check bans licenses sources; else echo "cargo-deny is not installed: licences are checked by make test-deploy"; fi

.PHONY: prices
prices: $(VENV)/prices ## the built-in price catalog, made again from genai-prices
	$(VENV)/bin/python scripts/prices.py
	$(VENV)/bin/python scripts/prices_oracle.py
	cargo test --locked --lib pricing

.PHONY: real
real: ## real prompts to a real model on this machine: is what we charge what it reports?
	scripts/real.sh

.PHONY: real-eval
real-eval: ## the two prompts of examples/support-bot, evaluated with that model: exact, regex, a judge; minutes
	scripts/real.sh eval --keep target/real/evaluation

.PHONY: model
model: ## every interleaving of the ledger's protocol, within bounds, and its properties with 10,000 cases; minutes
	cargo test --release --locked --test model -- --ignored --nocapture
	TOLLGATE_PROPERTY_CASES=10000 cargo test --release --locked --lib -- ledger:: purses::tests::a_future

.PHONY: bench
bench: ## what the gateway adds
	cargo bench --locked

.PHONY: docker
docker: ## the container image
	docker build -t tollgate .

.PHONY: install
install: ## tollgate into ~/.cargo/bin
	cargo install --locked --path .

.PHONY: clean
clean: ## away with what was built
	cargo clean
	rm -rf $(NODE)/node_modules $(DASHBOARD)/node_modules

# A stamp per set of packages, so that a set is installed again only when its list changes.
$(VENV)/bin/python:
	python3 -c 'import ensurepip' 2>/dev/null || scripts/packages.sh python3:python3 python3-venv
	python3 -m venv $(VENV)

$(VENV)/sdk: tests/sdk/python/requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --requirement $<
	touch $@

$(VENV)/api: tests/api/requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --requirement $<
	touch $@

$(VENV)/deploy: tests/deploy/requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --requirement $<
	touch $@

$(VENV)/otlp: tests/otlp/requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --requirement $<
	touch $@

$(VENV)/notebook: tests/notebook/requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --requirement $<
	touch $@

$(VENV)/prices: scripts/prices-requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --requirement $<
	touch $@

$(NODE)/node_modules $(DASHBOARD)/node_modules: %/node_modules: %/package-lock.json
	scripts/packages.sh node:nodejs npm:npm
	cd $* && npm ci --silent
	touch $@
