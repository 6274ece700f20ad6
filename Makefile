# `make demo` and `make test` set everything up on a fresh machine; the rest is for development.
PYTHON ?= python3
VENV ?= .venv
# TORCH names the version and build of PyTorch to install; for Linux, PyPI has the one with CUDA (gigabytes).
TORCH ?= torch==2.13.0
WORKERS ?= 2
TRITON_VERSIONS ?= 3.2.0 3.6.0
# A version of transformers before the newest that is tested, with versions of what it needs.
TRANSFORMERS ?= transformers==4.57.6 huggingface_hub<1 tokenizers<0.23
SETUPTOOLS ?= setuptools==61.2.0

BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test coverage lint format docs bench report dev kernels triton-versions older-transformers \
    older-setuptools cuda-all wheel clean

demo: $(VENV)/demo.ready
	$(BIN)/idsel demo

test: $(VENV)/test.ready
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist loadgroup $(COVERAGE) -m 'not kernels'

# The same, and which lines of the package it executes: takes a quarter longer.
coverage:
	$(MAKE) test COVERAGE='--cov --cov-report=term'

lint: $(VENV)/lint.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -r $(BIN)/clang-format --dry-run -Werror

format: $(VENV)/lint.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs -r $(BIN)/clang-format -i

docs: $(VENV)/test.ready
	$(BIN)/mkdocs build --strict

# GPU kernels without a GPU: CUDA in an emulator, Triton in its interpreter, and what the compiler makes of them; the
# C++ library under sanitizers.
kernels: $(VENV)/test.ready
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal -m 'kernels and not interpreter'
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal -m interpreter

# The oldest version of Triton that we support and the one on the last GPU that we had, beside the newest in `kernels`:
# what they compile, and small inputs in their interpreters. Those before 3.7 do not run on NumPy 2.4: with the NumPy
# that is installed the package has to say so, and what else runs has an older one.
triton-versions: $(VENV)/test.ready
	test -d build/older-numpy || $(PIP) --no-deps --target build/older-numpy 'numpy<2.4'
	for version in $(TRITON_VERSIONS); do \
	    folder=$(abspath build)/triton-alone-$$version; \
	    older=$$folder:$(abspath build)/older-numpy; \
	    test -d $$folder || $(PIP) --no-deps --target $$folder triton==$$version || exit 1; \
	    PYTHONPATH=$$folder $(BIN)/pytest tests/test_probe.py || exit 1; \
	    PYTHONPATH=$$older $(BIN)/pytest tests/test_probe.py || exit 1; \
	    PYTHONPATH=$$older $(BIN)/pytest -n $(WORKERS) -m every_triton tests/test_triton_compile.py || exit 1; \
	    PYTHONPATH=$$older TRITON_INTERPRET=1 OMP_NUM_THREADS=1 \
	        $(BIN)/pytest -n $(WORKERS) -m every_triton tests/test_triton_interpreter.py || exit 1; \
	done

# The adapter for transformers on the last version that takes visual features another way than the newest.
older-transformers: $(VENV)/test.ready
	test -d build/older-transformers || $(PIP) --no-deps --target build/older-transformers $(TRANSFORMERS:%='%')
	PYTHONPATH=build/older-transformers $(BIN)/pytest tests/test_transformers.py

# The first setuptools that reads pyproject.toml, as `--no-build-isolation` finds it where nobody has updated it. The
# metadata is all that it reads otherwise, so nothing is compiled. A release so old needs Python before 3.12.
older-setuptools: $(VENV)/test.ready
	test -d build/older-setuptools || $(PIP) --no-deps --target build/older-setuptools $(SETUPTOOLS) wheel packaging
	PYTHONPATH=$(abspath build)/older-setuptools IDSEL_CPU=0 IDSEL_CUDA=0 $(BIN)/pip wheel --quiet \
	    --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir build/older-setuptools-wheel .

# Every architecture, with spilled registers as errors; needs nvcc and no GPU.
cuda-all:
	cmake -S . -B build/cuda-all -G Ninja -DIDSEL_CUDA=ON -DIDSEL_CUDA_ARCHS=all -DIDSEL_CUDA_STRICT=ON
	cmake --build build/cuda-all --target idsel

# A wheel for Linux systems whose C library is no older than this one's, in dist/. IDSEL_CUDA_ARCHS=all: for every GPU.
wheel: $(VENV)/wheel.ready
	rm -rf build/wheel dist/idsel_kernels-*.whl
	$(BIN)/pip wheel --disable-pip-version-check --no-deps --wheel-dir build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --wheel-dir dist build/wheel/*.whl
	$(BIN)/python tests/check_wheel.py dist/*.whl

# The record of this machine; run it while nothing else does.
bench: $(VENV)/bench.ready
	$(BIN)/python -m bench --out bench/results

report: $(VENV)/bench.ready
	$(BIN)/python -m bench report

dev: $(VENV)/test.ready $(VENV)/lint.ready

clean:
	rm -rf $(VENV) build dist site *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "idsel_kernels needs Python 3.10 or later")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH) numpy

# The package itself, editable. Compiling takes a minute or two, so it is done when one of its inputs is newer.
$(VENV)/package.ready: pyproject.toml setup.py CMakeLists.txt $(shell find cmake csrc -type f) | $(VENV)/bin/python
	$(PIP) --editable .
	touch $@

# mypy reads the types of torch and of the test tools, so lint needs what the tests need.
$(VENV)/lint.ready: $(VENV)/test.ready

# What an extra adds: of a package that is installed, pip installs only what its extras ask for.
$(VENV)/%.ready: $(VENV)/package.ready
	$(PIP) 'idsel_kernels[$*]'
	touch $@
