# make demo | docs | experiments | test | test-all | lint | types | native | requirements | clean   PYTHON=python3.12 make test
.PHONY: demo docs experiments test test-all axe lint types native requirements clean

REAL_WEIGHTS = IMAGENET1K_V1_CONVOLUTIONS

# torchvision's own VGG16 convolutions, converted, verified, saved, loaded, and used on real photos.
demo: .venv-demo/ready
	@mkdir -p build
	@.venv-demo/bin/python -m convert $(REAL_WEIGHTS) --out build/vgg16-real --verify
	@.venv-demo/bin/flaxvgg demo --weights build/vgg16-real --out build/demo

# Every experiment again, with its page, figure and results: hours, on a machine with nothing else
# to do. First what the others are fitted on, last what measures time. Aims that were missed are
# named at the end; the sample head goes into the package by hand.
EXPERIMENTS = gap_finetune why_zeros precision_modes winograd_errors skip_zeros cam_on_vgg16 \
	attribution_on_vgg16 gap_collapse from_pytorch lpips_parity style_transfer feature_inversion \
	streaming many_hosts bench_page bench_cam bench_training bench

experiments: .venv/ready native
	@missed=; for name in $(EXPERIMENTS); do \
		echo "== $$name"; \
		.venv/bin/python -m experiments.$$name --out experiments/$$name || missed="$$missed $$name"; \
	done; \
	mv -f experiments/gap_finetune/sample_head.* build/ 2>/dev/null; \
	test -z "$$missed" || { echo "failed, or missed an aim:$$missed" >&2; exit 1; }

# Tests start many processes: where the environment forbids it, each would compile PyTorch and JAX.
test test-all: export PYTHONDONTWRITEBYTECODE =

# The slowest files first, so that the two workers end together.
test: .venv/ready native
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(PYTEST) \
		tests/test_parity_random.py tests/test_parity.py tests/test_streaming.py \
		tests/test_sharding.py tests

# And what takes long: every experiment from end to end in small, other processors, sanitizers.
test-all: .venv/ready native
	.venv/bin/python -m pytest -n 2 --dist loadfile $(PYTEST) tests

# What a screen reader needs, in every page: axe-core, which npm brings, finds no serious fault.
axe: .venv/ready native
	mkdir -p build/axe
	cd build/axe && npm pack --silent axe-core@4 && tar xzf axe-core-4*.tgz
	FLAXVGG_AXE=$(CURDIR)/build/axe/package/axe.min.js .venv/bin/python -m pytest tests/test_axe.py

# The site: build/docs/site/index.html. Notebooks run again where they, or the package, have changed.
docs: .venv/ready native
	.venv/bin/python -m sphinx -W --keep-going -c docs . build/docs/site

lint: .venv/ready
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/lint-imports --no-logo --no-cache

types: .venv/ready
	.venv/bin/pyright

# The compiled part again, where its sources are newer than it.
native: flaxvgg/ops/native/native.so
flaxvgg/ops/native/native.so: hatch_build.py $(wildcard flaxvgg/ops/native/*.[ch]) | .venv/ready
	$(shell command -v uv || echo .venv/bin/uv) pip install --quiet --python .venv/bin/python \
		--no-deps --editable .

.venv-demo/ready: requirements/demo.txt pyproject.toml scripts/make_env.sh
	@scripts/make_env.sh .venv-demo requirements/demo.txt

.venv/ready: requirements/dev.txt pyproject.toml scripts/make_env.sh
	@scripts/make_env.sh .venv requirements/dev.txt

# New pins for every supported Python and system at once; needs uv.
requirements:
	uv pip compile --universal --quiet --upgrade --no-emit-index-url --no-header --no-annotate \
		--python-version 3.11 --group demo pyproject.toml -o requirements/demo.txt
	uv pip compile --universal --quiet --upgrade --no-emit-index-url --no-header --no-annotate \
		--python-version 3.11 --extra train --extra stream --extra cloud --extra convert \
		--group dev pyproject.toml \
		-c requirements/demo.txt -o requirements/dev.txt

clean:
	rm -rf .venv .venv-demo build dist
