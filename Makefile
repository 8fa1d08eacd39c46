# nightmarket's commands; `make` alone lists them.

.DEFAULT_GOAL := help
.PHONY: help setup models build run test check sql bench bench-models bench-allocation bench-features bench-ab bench-delivery bench-serving report bless image render clean

# For local runs on made-up people only: whoever knows the key can link a pseudonym to a person.
export NIGHTMARKET_PSEUDONYM_KEY ?= demo-key-for-local-runs-only

# Threads of libtorch that wait should sleep, not spin: a busy machine is not ten times slower then.
export OMP_WAIT_POLICY ?= passive

CARGO ?= cargo
NIGHTMARKET := $(or $(CARGO_TARGET_DIR),target)/release/nightmarket
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SHOPS := $(patsubst sql/%/,%,$(wildcard sql/*/))

# The job and date of `make sql`.
JOB ?= jobs/shop.toml
DATE ?= 2026-11-22

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Fetch libtorch into .libtorch (530 MB, once), unless LIBTORCH says where one is
	@./scripts/libtorch.sh

models: ## Fetch a pretrained text encoder into .models (84 MB, once)
	@./scripts/models.sh

# `--examples` (there are none) makes cargo choose the dependencies' features as for the tests. Without it the features that
# only the tests' dependencies ask for differ, and arrow and datafusion would be compiled once for `run` and again for `test`.
build: setup ## Build the program
	@$(CARGO) build --release --locked --bins --examples

run: build .night/shop/generated ## Run the night on the real logs and on a generated shop
	@$(NIGHTMARKET) run jobs/open_bandit.toml --date 2019-11-30
	@$(NIGHTMARKET) run jobs/shop.toml --date 2026-11-22

# 28 days of 3,000 users, made once. Until the marker stands, a half-made shop is made anew.
.night/shop/generated: | build
	@rm -rf .night/shop/raw
	@$(NIGHTMARKET) generate --out .night/shop/raw --users 3000 --days 28 --seed 7 --until 2026-11-22
	@touch $@

test: setup ## Run all tests
	@$(CARGO) test --release --locked

check: build ## Plan every spec and query, run the queries' tests, check the format: under a minute once built
	@$(CARGO) fmt --check
	@$(NIGHTMARKET) check
	@for shop in $(SHOPS); do $(NIGHTMARKET) sql test --shop "sql/$$shop" || exit; done

sql: build | $(if $(T),.night/shop/generated) ## Preview a table: make sql T=user__activity [JOB=jobs/shop.toml] [DATE=2026-11-22]; without T, list them
	@$(NIGHTMARKET) sql $(if $(T),preview $(T) --job $(JOB) --as-of $(DATE),list)

bench: setup ## Time the stages
	@$(CARGO) bench --locked --bench night

# DATA is a folder of bank/bank.parquet and online_shoppers/online_shoppers.parquet; without it only MovieLens-100k is tried.
bench-models: build ## The models beside FuxiCTR, scikit-learn and PyTorch, fetched into .bench (5 GB, once): make bench-models [DATA=folder]
	@scripts/bench_models.py speed
	@scripts/bench_models.py stream
	@scripts/bench_models.py quality $(if $(DATA),--data $(DATA))

bench-allocation: build ## The allocation beside HiGHS, fetched into .bench (100 MB, once)
	@scripts/bench_allocation.py

bench-features: build ## The feature queries beside DuckDB and PySpark, fetched into .bench (600 MB, once)
	@scripts/bench_features.py --spark

bench-ab: build ## An A/B test over 100 million rows beside DuckDB's sums alone, fetched into .bench (6 GB of tables, made once)
	@scripts/bench_ab.py

bench-serving: build ## What the allocation earns when it is served, beside a proportional and a greedy plan
	@scripts/bench_serving.py

bench-delivery: setup ## A million users into each serving store, under a reader who never rests
	@$(CARGO) bench --locked --bench delivery

report: ## Open the latest report, or print where it is
	@latest=$$(find .night -name report.html -exec ls -t {} + 2>/dev/null | head -n 1); \
	if [ -z "$$latest" ]; then echo "no report yet: make run" >&2; exit 1; fi; \
	echo "$$latest"; \
	if [ -n "$${DISPLAY:-}" ] && command -v xdg-open >/dev/null; then xdg-open "$$latest"; fi

bless: build ## Fill in the answers of the queries' tests from what the queries say now; read the diff
	@for shop in $(SHOPS); do $(NIGHTMARKET) sql test --bless --shop "sql/$$shop" || exit; done
	@git --no-pager diff --stat -- sql

image: ## Build the container image
	docker build -f k8s/Containerfile --build-arg NIGHTMARKET_GIT_SHA="$$(git rev-parse --short=12 HEAD)" -t nightmarket:$(VERSION) .

render: ## Print the Kubernetes manifests of every overlay
	@for overlay in k8s/overlays/*; do echo "# $$overlay"; scripts/kubectl.sh kustomize "$$overlay" || exit; echo ---; done

clean: ## Remove what runs left in .night; builds and libtorch stay
	rm -rf .night
