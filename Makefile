# .venv serves and runs local SQL, without TensorFlow; .venv-dev trains, compiles, checks and tests;
# .venv-connector5 serves with version 5 of Snowflake's connector, and .venv-dbt runs dbt, for the tests;
# .venv-site builds the manual as a site.
PYTHON ?= python3
DATA ?= $(NEU_DATA_DIR)
SEEDS ?= 0 1 2
OUTPUT ?= trained.h5
REPORT ?= report
TABLES ?= crossvalidation.md
IMAGE ?= ext-classify
TARGET ?= serve
# Processes that run tests: three on two cores, because many tests wait for a process that they start.
WORKERS ?= $(shell echo $$((3 * $$(getconf _NPROCESSORS_ONLN) / 2)))
# pip shows its progress on a terminal.
PIP_INSTALL = pip install $(shell test -t 2 || echo --quiet)
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
TESTED_IMAGE = localhost/ext-classify:test
# Kept bytecode saves each worker 6 s of rewriting assertions, and each process that a test starts 0.1 s.
# A file's tests share networks and services, so that one worker runs them all; the last files are short.
PYTEST = env -u PYTHONDONTWRITEBYTECODE $(DEV)/pytest -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder
NEEDS_DATA = @test -n "$(DATA)" || { echo "DATA must be the folder of images: make $@ DATA=DIR"; exit 2; }

SERVE = .venv/bin
DEV = .venv-dev/bin
PEERS = tests/benchmarks/peers
GRAPHS = $(foreach network,metal_defects_final steel_defects,.bench/$(network).onnx .bench/$(network).rewritten.onnx)
BROUGHT_GRAPHS = $(foreach network,mobilenet_v2 efficientnet_b0 resnet50,\
	.bench/$(network).h5 .bench/$(network).onnx .bench/$(network).rewritten.onnx)
BENCH_PEERS = .venv-bench-peers/.installed .venv-bench-pytriton/.installed $(GRAPHS)
TO_ONNX = TF_CPP_MIN_LOG_LEVEL=3 .venv-bench-peers/bin/python -W ignore $(PEERS)/to_onnx.py
UV_COMPILE = $(DEV)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --no-header

.PHONY: help setup dev run test retest quick lint docs site fuzz audit bench bench-serving bench-readme bench-brought bench-int8 bench-growth tune-peers train train-recipe evaluate crossvalidate pictures samples system-deps \
	container-deps container-base container container-audit release container-test lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-14s %s\n", $$1, $$2}'

setup: .venv/.installed ## create .venv, for serving and local SQL, without TensorFlow

dev: .venv-dev/.installed ## create .venv-dev, to train, compile, check and test

run: setup ## start the service, classify the samples with SQL, keep serving (MODEL=H5, IMAGES=DIR, PORT=8000)
	@$(SERVE)/ext-classify demo $(if $(MODEL),--model "$(MODEL)") $(if $(PORT),--port $(PORT)) \
		$(if $(IMAGES),--images "$(IMAGES)")

test: .venv-dev/.installed .venv-connector5/.installed .venv-dbt/.installed .venv-site/.installed ## run all tests (NEU_DATA_DIR=DIR adds real images; ORDER=random, or ORDER=SEED repeats one)
	$(PYTEST) $(if $(ORDER),-p randomly --randomly-seed=$(ORDER:random=default))

retest: .venv-dev/.installed ## run the tests that failed last once more, one after another, on an idle machine
	$(PYTEST) -n 0 --last-failed --last-failed-no-failures none

quick: .venv-dev/.installed ## run the fast tests, in a minute and a half on two cores
	$(PYTEST) --dist worksteal -m "not slow"

lint: .venv-dev/.installed ## check formatting, lint rules, import layers, SQL, the Dockerfile and types
	$(DEV)/ruff format --check .
	$(DEV)/ruff check .
	$(DEV)/lint-imports
	$(DEV)/sqlfluff lint --disable-progress-bar infra/snowflake infra/spcs
	$(DEV)/hadolint Dockerfile
	$(DEV)/mypy

docs: .venv-dev/.installed ## write the reference pages of infra/docs, and the tables of its other pages
	$(DEV)/python -m tests.write_docs

site: .venv-site/.installed ## build the manual with a search into site/, to open as files: site/index.html
	rm -rf site
	.venv-site/bin/zensical build --clean --strict --config-file .zensical.toml
	rm site/404.html  # for web servers only
	perl -pi -e 's#(href="?(?:\.\./){2}[^"> ]*)\.html#$$1.md#g; s#((?:\.\./){2}[^"> ]*)index\.md#$$1README.md#g' site/*/*.html  # pages outside of infra are not built

fuzz: .venv-fuzz/.installed ## fuzz bodies, images and HTTP (SECONDS=600, EXAMPLES=5000 per operation)
	.venv-fuzz/bin/python -m tests.fuzz.run $(if $(SECONDS),--seconds $(SECONDS))
	.venv-fuzz/bin/python -m tests.fuzz.contract $(if $(EXAMPLES),--examples $(EXAMPLES))

audit: .venv-fuzz/.installed ## check the locked dependencies for known vulnerabilities
	.venv-fuzz/bin/pip-audit --require-hashes --disable-pip -r requirements.txt -r requirements-dev.txt

bench: bench-serving ## run all benchmarks, into tests/benchmarks/results/; 90 minutes
	$(DEV)/python -m tests.benchmarks.engines
	$(DEV)/python -m tests.benchmarks.networks
	$(DEV)/python -m tests.benchmarks.decoding
	$(DEV)/python -m tests.benchmarks.downloads
	$(DEV)/python -m tests.benchmarks.start --python $(SERVE)/python
	$(DEV)/python -m tests.benchmarks.training

bench-serving: .venv-dev/.installed setup $(BENCH_PEERS) ## compare the service with other servers (BENCH="--quick"); an hour
	$(DEV)/python -m tests.benchmarks.serving $(BENCH)

bench-readme: .venv-dev/.installed setup .venv-bench-peers/.installed $(GRAPHS) ## compare with the best servers only, for the README; ten minutes
	$(DEV)/python -m tests.benchmarks.serving --quick --rounds 6 --network steel_defects,metal_defects_final \
		--only "ext-classify,FastAPI + LiteRT,FastAPI + onnxruntime (rewritten)" --output tests/benchmarks/results/readme

bench-brought: .venv-dev/.installed setup .venv-bench-peers/.installed $(BROUGHT_GRAPHS) ## compare on Keras's MobileNetV2, EfficientNetB0 and ResNet50, as users bring them; 20 minutes
	$(DEV)/python -m tests.benchmarks.serving --quick --rounds 5 --seconds 1 --network mobilenet_v2,efficientnet_b0,resnet50 \
		--only "ext-classify,FastAPI + LiteRT,FastAPI + OpenVINO,FastAPI + onnxruntime (rewritten)" --output tests/benchmarks/results/brought

bench-int8: .venv-dev/.installed .venv-bench-peers/.installed $(BROUGHT_GRAPHS) ## compare int8 of LiteRT, onnxruntime and OpenVINO on MobileNetV2 and ResNet50; six minutes
	$(DEV)/python -m tests.benchmarks.int8

bench-growth: .venv-dev/.installed setup .venv-bench-peers/.installed $(GRAPHS) $(BROUGHT_GRAPHS) ## measure how cost grows with cores, rows, image bytes and networks; six minutes
	$(DEV)/python -m tests.benchmarks.growth

tune-peers: .venv-dev/.installed $(BENCH_PEERS) ## find the best settings of the other servers; 20 minutes
	$(DEV)/python -m tests.benchmarks.tune_peers

train: .venv-dev/.installed ## train a network on DATA=DIR (OUTPUT=trained.h5, SEEDS=0, ACCURACY=SHARE, FORCE=1 replaces it)
	$(NEEDS_DATA)
	$(DEV)/ext-classify train --data "$(DATA)" --output "$(OUTPUT)" --seeds $(firstword $(SEEDS)) \
		$(if $(ACCURACY),--accuracy $(ACCURACY)) $(if $(FORCE),--force)

train-recipe: .venv-dev/.installed ## train the published recipe on DATA=DIR, once per seed (SEEDS="0 1 2")
	$(NEEDS_DATA)
	$(DEV)/ext-classify train --network recipe --data "$(DATA)" --seeds $(SEEDS) \
		--output model/saved/metal_defects_final.h5 --force

evaluate: .venv-dev/.installed ## measure MODEL=H5 on DATA=DIR and write REPORT=report (FOREIGN=DIRS, out of distribution)
	$(NEEDS_DATA)
	$(DEV)/ext-classify evaluate --data "$(DATA)" --engine both --report "$(REPORT)" \
		$(if $(MODEL),--model "$(MODEL)") $(if $(FOREIGN),--out-of-distribution $(FOREIGN))

crossvalidate: .venv-dev/.installed ## cross-validate both networks on DATA=DIR, into TABLES=crossvalidation.md (FOREIGN=DIRS); an hour
	$(NEEDS_DATA)
	$(DEV)/ext-classify crossvalidate --data "$(DATA)" --output "$(TABLES)" \
		$(if $(FOREIGN),--out-of-distribution $(FOREIGN))

pictures: .venv-dev/.installed ## take the screenshots of infra/pictures, in light and dark, with chromium
	$(DEV)/python -m tests.browser.screenshots

samples: .venv-dev/.installed ## regenerate the sample images
	$(DEV)/python -m tests.draw_samples

system-deps: ## install the Debian packages of the test suite, as root
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core nginx-light prometheus redis-server

container-deps: ## install Debian packages to build and run containers without docker, as root
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends buildah catatonit containers-storage \
		debootstrap golang-github-containers-common iptables netavark podman runc

container-base: ## build a base image from Debian's packages, without an image registry, as root
	sh infra/container/base.sh

container: ## build the image (IMAGE=ext-classify TARGET=serve)
	sh infra/container/build.sh $(IMAGE) $(TARGET)

container-audit: .venv-fuzz/.installed ## write the image's bill of materials to dist/, and check it for known vulnerabilities
	sh infra/container/packages.sh $(IMAGE) dist
	.venv-fuzz/bin/cyclonedx-py requirements --output-reproducible --of JSON -o dist/sbom.cdx.json dist/python-packages.txt
	.venv-fuzz/bin/pip-audit --no-deps --disable-pip -r dist/python-packages.txt

release: .venv-dev/.installed ## build the release from a clean checkout: dist/, and the image tagged with the version
	@test -z "$$(git status --porcelain)" || { echo "A release needs a clean checkout: commit first."; exit 2; }
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(DEV)/python -m hatchling build --directory dist
	sh infra/container/build.sh $(IMAGE):$(VERSION)
	$(MAKE) container-audit IMAGE=$(IMAGE):$(VERSION)
	cd dist && sha256sum * > SHA256SUMS && cat SHA256SUMS

container-test: .venv-dev/.installed ## build the image and test it with the hardened container settings
	sh infra/container/build.sh $(TESTED_IMAGE)
	. infra/container/engine.sh && CONTAINER_IMAGE=$(TESTED_IMAGE) $(DEV)/pytest tests/container

lock: .venv-dev/.installed ## update the locked requirements from pyproject.toml
	$(UV_COMPILE) --upgrade -o requirements.txt --extra traces pyproject.toml
	$(UV_COMPILE) --upgrade -o requirements-sql.txt --extra sql -c requirements.txt pyproject.toml
	$(UV_COMPILE) --upgrade -o requirements-dev.txt --extra dev -c requirements.txt -c requirements-sql.txt pyproject.toml
	$(UV_COMPILE) --upgrade -o requirements-full.txt --extra train --extra sql --extra traces -c requirements-dev.txt pyproject.toml
	echo hatchling | $(UV_COMPILE) --no-config --upgrade -o requirements-build.txt -c requirements-dev.txt -
	echo 'tf-keras>=2.21' | $(UV_COMPILE) --no-config --upgrade --no-deps -o requirements-keras2.txt -
	$(UV_COMPILE) --upgrade -o requirements-fuzz.txt --extra fuzz -c requirements-dev.txt pyproject.toml
	echo 'snowflake-connector-python>=5' | $(UV_COMPILE) --no-config --upgrade -o requirements-connector5.txt -
	echo zensical | $(UV_COMPILE) --no-config --upgrade -o requirements-site.txt -
	printf 'dbt-core<1.12\ndbt-snowflake\n' | $(UV_COMPILE) --no-config --no-strip-extras --upgrade -o requirements-dbt.txt -  # 1.12 needs a file of GitHub's
	$(UV_COMPILE) --no-config --upgrade -o $(PEERS)/requirements-peers.txt $(PEERS)/requirements-peers.in
	$(subst --universal,--python-platform x86_64-manylinux_2_35,$(UV_COMPILE)) --no-config --upgrade \
		-o $(PEERS)/requirements-pytriton.txt $(PEERS)/requirements-pytriton.in

clean: ## remove the environments and caches
	rm -rf dist .import_linter_cache .venv .venv-dev .venv-connector5 .venv-dbt .venv-fuzz .venv-site .venv-bench-peers .venv-bench-pytriton .bench .cache site .hypothesis .mypy_cache .pytest_cache .ruff_cache

.venv/.installed: requirements-sql.txt pyproject.toml
	@echo "Installing into .venv what serving and local SQL need: a download of 160 MB, once" >&2
	$(PYTHON) -m venv .venv
	$(SERVE)/$(PIP_INSTALL) --require-hashes -r requirements-sql.txt
	$(SERVE)/$(PIP_INSTALL) --no-deps -e .
	@touch $@

.venv-dev/.installed: requirements-dev.txt requirements-keras2.txt pyproject.toml
	@echo "Installing into .venv-dev what training and tests need: a download of 650 MB, once; 2.9 GB on disk" >&2
	$(PYTHON) -m venv .venv-dev
	$(DEV)/$(PIP_INSTALL) --require-hashes -r requirements-dev.txt
	$(DEV)/$(PIP_INSTALL) --require-hashes --no-deps -r requirements-keras2.txt  # it asks for tensorflow, and runs on tensorflow-cpu
	$(DEV)/$(PIP_INSTALL) --no-deps -e .
	@touch $@

.venv-connector5/.installed: requirements.txt requirements-connector5.txt pyproject.toml
	$(PYTHON) -m venv .venv-connector5
	.venv-connector5/bin/pip install --quiet --require-hashes -r requirements.txt
	.venv-connector5/bin/pip install --quiet --require-hashes -r requirements-connector5.txt
	.venv-connector5/bin/pip install --quiet --no-deps -e .
	@touch $@

.venv-site/.installed: requirements-site.txt
	$(PYTHON) -m venv .venv-site
	.venv-site/bin/pip install --quiet --require-hashes -r requirements-site.txt
	@touch $@

.venv-dbt/.installed: requirements-dbt.txt
	$(PYTHON) -m venv .venv-dbt
	.venv-dbt/bin/pip install --quiet --require-hashes -r requirements-dbt.txt
	@touch $@

.venv-fuzz/.installed: requirements-fuzz.txt pyproject.toml
	$(PYTHON) -m venv .venv-fuzz
	.venv-fuzz/bin/pip install --quiet --require-hashes -r requirements-fuzz.txt
	.venv-fuzz/bin/pip install --quiet --no-deps -e .
	@touch $@

.venv-bench-%/.installed: $(PEERS)/requirements-%.txt
	$(PYTHON) -m venv .venv-bench-$*
	.venv-bench-$*/bin/pip install --quiet --require-hashes -r $<
	@touch $@

.bench/%.onnx: model/saved/%.h5 $(PEERS)/to_onnx.py | .venv-bench-peers/.installed
	$(TO_ONNX) $< $@

.bench/%.rewritten.onnx: model/saved/%.h5 $(PEERS)/to_onnx.py | .venv-bench-peers/.installed
	$(TO_ONNX) $< $@ --rewrite

.bench/%.h5: tests/benchmarks/keras_networks.py | .venv-dev/.installed
	$(DEV)/python -m tests.benchmarks.keras_networks $@

.bench/%.onnx: .bench/%.h5 $(PEERS)/to_onnx.py | .venv-bench-peers/.installed
	$(TO_ONNX) $< $@

.bench/%.rewritten.onnx: .bench/%.h5 $(PEERS)/to_onnx.py | .venv-bench-peers/.installed
	$(TO_ONNX) $< $@ --rewrite
