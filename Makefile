# make demo   from a fresh clone to a talking avatar, in a few minutes
# make test   everything a change has to hold
# make sanitize   the CPU kernels under the address and undefined-behaviour sanitizers
# make clean  remove what the two have made

PYTHON ?= python3
DEMO ?= demo
SAMPLE := datasets/sample
PIP_FLAGS := --quiet --disable-pip-version-check
INSTALL := -m pip install $(PIP_FLAGS) --no-compile

# Two threads that wait actively are many times slower as soon as a neighbour wants a core.
export OMP_WAIT_POLICY ?= passive
export OPENBLAS_NUM_THREADS ?= 1
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

SOURCES := setup.py pyproject.toml MANIFEST.in README.md LICENSE \
	$(shell find gsavatar viewer datasets configs cuda_ext -type f \
	\( -name '*.py' -o -name '*.h' -o -name '*.c' -o -name '*.cpp' -o -name '*.cu' \
	-o -name '*.toml' -o -name '*.md' -o -name '*.html' \) )

.PHONY: demo test lint types package unit sanitize clean
.NOTPARALLEL:

# ---- demo ----------------------------------------------------------------------------------------

demo:
	@start=$$(date +%s); \
	$(MAKE) --no-print-directory $(DEMO)/talk.mp4 && \
	echo && \
	echo "video   $(DEMO)/talk.mp4" && \
	echo "report  $(DEMO)/speaker/report.html" && \
	echo "viewer  .venv/bin/gsavatar view $(DEMO)/speaker" && \
	echo "took    $$(( $$(date +%s) - start )) s"

.venv/installed: $(SOURCES) constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed") if sys.version_info < (3, 10) else 0'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv and compiling the kernels: a minute or two, without a word ..."
	.venv/bin/python $(INSTALL) torch
	.venv/bin/python $(INSTALL) .
	touch $@

$(DEMO)/speaker/.fitted: $(SAMPLE)/speaker.mp4 | .venv/installed
	.venv/bin/gsavatar fit $(SAMPLE)/speaker.mp4 --preset preview --out $(DEMO)/speaker --resume
	touch $@

$(DEMO)/talk.mp4: $(DEMO)/speaker/.fitted $(SAMPLE)/sentence.flac | .venv/installed
	.venv/bin/gsavatar render $(DEMO)/speaker --audio $(SAMPLE)/sentence.flac --camera orbit \
		--out $@

# ---- test ----------------------------------------------------------------------------------------

# pytest comes last, so that its closing line is the last one. It also compiles the CUDA sources
# where nvcc is there.
test: lint package types unit

.venv-test/installed: setup.py pyproject.toml constraints.txt $(shell find cuda_ext -type f)
	test -x .venv-test/bin/python || $(PYTHON) -m venv .venv-test
	.venv-test/bin/python $(INSTALL) torch
	.venv-test/bin/python $(INSTALL) -e '.[dev]'
	touch $@

lint: .venv-test/installed
	.venv-test/bin/ruff check .

# The wheel is built from the sdist, so that a file missing there is noticed, and a clean
# environment must be able to use it.
package: .venv-test/installed
	rm -rf dist .venv-wheel .venv-wheel-run
	.venv-test/bin/python -m build --sdist --outdir dist . > build.log 2>&1 || (cat build.log; exit 1)
	.venv-test/bin/python -m pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist dist/*.tar.gz
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python $(INSTALL) torch
	.venv-wheel/bin/python $(INSTALL) dist/*.whl
	.venv-wheel/bin/python -m pip check
	mkdir .venv-wheel-run
	cd .venv-wheel-run && ../.venv-wheel/bin/gsavatar doctor
	cd .venv-wheel-run && ../.venv-wheel/bin/gsavatar fit ../$(SAMPLE)/speaker.mp4 --out tiny \
		--steps 30 --size 64 --set train.face_init=800 --set train.mouth_init=200 \
		--set train.torso_init=300 --set train.gaussians_max=1500
	cd .venv-wheel-run && ../.venv-wheel/bin/gsavatar render tiny \
		--audio ../$(SAMPLE)/sentence.flac --size 64 --out tiny.mp4

# Folders that are mapped into the package are invisible to a type checker in the tree: it checks
# the installed copy.
types: package
	cd dist && ../.venv-test/bin/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache \
		--python-executable ../.venv-wheel/bin/python -p gsavatar
	rm -rf .venv-wheel .venv-wheel-run

unit: .venv-test/installed
	.venv-test/bin/python -m pytest tests

# ---- sanitizers ----------------------------------------------------------------------------------

SANITIZERS := -fsanitize=address,undefined
SANITIZE_FLAGS := -g -O1 -fno-omit-frame-pointer -fno-sanitize-recover=undefined $(SANITIZERS)

# A copy of the tree holds the instrumented libraries; the interpreter itself is not instrumented,
# so the runtime is loaded first and its own leaks are not looked for.
sanitize: .venv-test/installed
	rm -rf build/sanitize && mkdir -p build/sanitize
	cp -r gsavatar cuda_ext viewer datasets configs tests setup.py pyproject.toml build/sanitize
	rm -f build/sanitize/gsavatar/ops/*.so
	cd build/sanitize && GSAVATAR_CUDA=0 GSAVATAR_CXXFLAGS="$(SANITIZE_FLAGS)" \
		../../.venv-test/bin/python setup.py --quiet build_ext --inplace
	cd build/sanitize && PYTHONPATH=. ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(echo $$(for l in asan ubsan stdc++; do $(CXX) -print-file-name=lib$$l.so; done))" \
		../../.venv-test/bin/python -m pytest -q -p no:cacheprovider tests/test_ops_rasterize.py \
		tests/test_ops_blend_motion.py tests/test_ops_ssim.py tests/test_ops_evaluate_sh.py \
		tests/test_ops_pose_gaussians.py tests/test_ops_rasterize_blended.py tests/test_ops_native.py

clean:
	rm -rf .venv .venv-test .venv-wheel .venv-wheel-run $(DEMO) dist build build.log *.egg-info \
		gsavatar/ops/*.so .mypy_cache .pytest_cache .ruff_cache
