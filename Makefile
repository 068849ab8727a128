# make demo   from a fresh clone to a talking avatar, in a few minutes
# make test   everything a change has to hold
# make clean  remove what the two have made

PYTHON ?= python3
DEMO ?= demo
SAMPLE := datasets/sample
PIP_FLAGS := --quiet --disable-pip-version-check --no-compile

# Two threads that wait actively are many times slower as soon as a neighbour wants a core.
export OMP_WAIT_POLICY ?= passive
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

SOURCES := setup.py pyproject.toml MANIFEST.in README.md LICENSE \
	$(shell find gsavatar viewer datasets configs cuda_ext -type f \
	\( -name '*.py' -o -name '*.h' -o -name '*.c' -o -name '*.cpp' -o -name '*.cu' \
	-o -name '*.toml' -o -name '*.md' -o -name '*.html' \) )

.PHONY: demo test lint types cuda package unit clean
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
	.venv/bin/python -m pip install $(PIP_FLAGS) torch
	.venv/bin/python -m pip install $(PIP_FLAGS) .
	touch $@

$(DEMO)/speaker/.fitted: $(SAMPLE)/speaker.mp4 | .venv/installed
	.venv/bin/gsavatar fit $(SAMPLE)/speaker.mp4 --preset preview --out $(DEMO)/speaker --resume
	touch $@

$(DEMO)/talk.mp4: $(DEMO)/speaker/.fitted $(SAMPLE)/sentence.flac | .venv/installed
	.venv/bin/gsavatar render $(DEMO)/speaker --audio $(SAMPLE)/sentence.flac --camera orbit \
		--out $@

# ---- test ----------------------------------------------------------------------------------------

# pytest comes last, so that its closing line is the last one.
test: lint package types cuda unit

.venv-test/tools: pyproject.toml constraints.txt
	test -x .venv-test/bin/python || $(PYTHON) -m venv .venv-test
	.venv-test/bin/python -m pip install $(PIP_FLAGS) torch build ruff
	touch $@

lint: .venv-test/tools
	.venv-test/bin/ruff check .

# The wheel is built from the sdist, so that a file missing there is noticed, and a clean
# environment must be able to use it.
package: .venv-test/tools
	rm -rf dist
	.venv-test/bin/python -m build --sdist --outdir dist . > build.log 2>&1 || (cat build.log; exit 1)
	.venv-test/bin/python -m pip wheel $(PIP_FLAGS) --no-deps --wheel-dir dist dist/*.tar.gz
	.venv-test/bin/python -m pip install $(PIP_FLAGS) "$$(ls dist/*.whl)[dev]"
	.venv-test/bin/python -m pip install $(PIP_FLAGS) --no-deps --force-reinstall dist/*.whl
	rm -rf .venv-wheel .venv-wheel-run
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install $(PIP_FLAGS) torch
	.venv-wheel/bin/python -m pip install $(PIP_FLAGS) dist/*.whl
	.venv-wheel/bin/python -m pip check
	mkdir .venv-wheel-run
	cd .venv-wheel-run && ../.venv-wheel/bin/gsavatar doctor
	cd .venv-wheel-run && ../.venv-wheel/bin/gsavatar fit ../$(SAMPLE)/speaker.mp4 --out tiny \
		--steps 30 --size 64 --set train.face_init=800 --set train.mouth_init=200 \
		--set train.torso_init=300 --set train.gaussians_max=1500
	cd .venv-wheel-run && ../.venv-wheel/bin/gsavatar render tiny \
		--audio ../$(SAMPLE)/sentence.flac --size 64 --out tiny.mp4

# Folders that are mapped into the package are invisible to a type checker in the tree.
types: .venv-test/tools
	cd dist && ../.venv-test/bin/mypy --config-file ../pyproject.toml \
		--cache-dir ../.mypy_cache -p gsavatar

cuda:
	@if command -v nvcc > /dev/null; then \
		for source in cuda_ext/cuda/*.cu; do \
			echo "nvcc $$source"; \
			nvcc -std=c++17 -O2 -I cuda_ext/include -c $$source -o /dev/null || exit 1; \
		done; \
	else echo "nvcc is not here: the CUDA sources are not compiled"; fi

unit: .venv-test/tools
	.venv-test/bin/pytest tests

clean:
	rm -rf .venv .venv-test .venv-wheel .venv-wheel-run $(DEMO) dist build build.log *.egg-info
