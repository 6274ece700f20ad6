#!/usr/bin/env bash
# One unattended run on a machine with a GPU, in less than ten minutes: build, parity, sanitizer, benchmarks.
#
# Leaves the record (DEVICE.json), its tables (report.md) and a log of every step in the folder that OUT names
# (default: gpu_session). A step that fails or lacks its tool is noted and the next one runs; the exit status is the
# number of failed steps. PYTHON names the interpreter. DRY=1 goes through every step on a machine without a GPU, on
# small shapes.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python3}
OUT=${OUT:-gpu_session}
DRY=${DRY:-0}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
failed=0

# step NAME SECONDS COMMAND...: runs it under a limit, with its output in NAME.log.
step() {
    local name=$1 limit=$2 begin=$SECONDS status=0
    shift 2
    timeout --kill-after=5 "$limit" "$@" >>"$OUT/$name.log" 2>&1 || status=$?
    printf '%-12s exit %3d, %3d s: %s\n' "$name" "$status" $((SECONDS - begin)) "$*" | tee -a "$OUT/session.log"
    if ((status != 0)); then
        failed=$((failed + 1))
        tail -n 20 "$OUT/$name.log"
    fi
    return 0
}

skip() {
    printf '%-12s skipped: %s\n' "$1" "$2" | tee -a "$OUT/session.log"
}

build() {
    if ! "$PYTHON" -c 'import pybind11' 2>/dev/null; then
        skip build "pybind11 is not installed, so nothing is compiled"
    elif [[ $DRY == 1 ]]; then
        skip build "dry run"
    else
        # What the machine has is used as it is: nothing is downloaded.
        step build 170 "$PYTHON" -m pip install --no-build-isolation --no-deps --editable .
    fi
    step info 30 "$PYTHON" -m idsel_kernels.env_report
    if command -v nvidia-smi >/dev/null; then
        step info 20 nvidia-smi
    fi
}

parity() {
    local tests=(tests/test_{gpu,parity,ties,edges,determinism,golden}.py)
    local options=(-q --maxfail=20 -p no:cacheprovider -m "not kernels")
    if ! "$PYTHON" -c 'import pytest, hypothesis' 2>/dev/null; then
        skip parity "pytest or hypothesis is not installed"
        return
    fi
    if "$PYTHON" -c 'import xdist' 2>/dev/null; then
        options+=(--numprocesses 4)
    fi
    if [[ $DRY == 1 ]]; then
        step parity 130 "$PYTHON" -m pytest "${options[@]}" -k topk tests/test_gpu.py tests/test_ties.py
        return
    fi
    # An engine that cannot run here is a failure, with its reason.
    step parity 60 "$PYTHON" -m pytest "${options[@]}" --backend cuda "${tests[@]}"
    step parity 130 "$PYTHON" -m pytest "${options[@]}" --backend triton "${tests[@]}"
}

sanitizer() {
    if [[ $DRY == 1 ]] || ! command -v compute-sanitizer >/dev/null; then
        skip sanitizer "no compute-sanitizer, or a dry run: the driver runs alone"
        step sanitizer 60 "$PYTHON" -m bench.tools.sanitizer_driver
        return
    fi
    local tool
    for tool in memcheck racecheck synccheck; do
        step sanitizer 40 compute-sanitizer --tool "$tool" --error-exitcode 99 "$PYTHON" -m bench.tools.sanitizer_driver
    done
}

benchmarks() {
    # latency has the longest list and takes what time the others leave; what is left out is printed.
    local suites=(overhead breakdown rules batch scale ragged prefill latency) options=()
    if [[ $DRY == 1 ]]; then
        suites=(overhead latency)
        options=(--quick --shapes 1x64x32x8)
    fi
    local left=$((560 - SECONDS))
    ((left > 60)) || left=60
    step bench "$left" "$PYTHON" -m bench --suite "${suites[@]}" --limit $((left * 3 / 4)) --out "$OUT" "${options[@]}"
    step verify 30 "$PYTHON" -m bench verify "$OUT"/*.json
    if "$PYTHON" -m bench report --results "$OUT" --print >"$OUT/report.md" 2>>"$OUT/session.log"; then
        tail -n 60 "$OUT/report.md"
    fi
}

: >"$OUT/session.log"
build
parity
sanitizer
benchmarks
echo "$failed steps failed, $SECONDS s, everything in $OUT" | tee -a "$OUT/session.log"
exit "$failed"
