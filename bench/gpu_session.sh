#!/usr/bin/env bash
# One unattended run on a machine with a GPU and no network, in less than eight minutes: build, the suite on the GPU with
# sanitizers beside it, then, with nothing beside them, times.
#
# Leaves at most eight files of at most 16 MiB in the folder that OUT names (default: gpu_session): the record
# (DEVICE.json), its tables (report.md), graph replays of the figures in docs/performance.md (replays.jsonl), counters of
# one kernel (profile.txt, where ncu is installed) and logs; summary.txt has a line for each step. A step that fails or
# lacks its tool is noted and the next one runs; the exit status is the number of failed steps. PYTHON names the
# interpreter. DRY=1 goes through every step on a machine without a GPU, on small shapes.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python3}
OUT=${OUT:-gpu_session}
DRY=${DRY:-0}
LIMIT=460        # seconds for everything
MOST=16777216    # bytes of a file
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

say() {
    echo "$*" | tee -a "$OUT/summary.txt"
}

# step NAME LOG SECONDS COMMAND...: runs it under a limit, no longer than there is time, with its output in LOG.
step() {
    local name=$1 log=$OUT/$2 limit=$3 begin=$SECONDS status=0
    shift 3
    ((limit <= LIMIT - SECONDS)) || limit=$((LIMIT - SECONDS))
    if ((limit < 5)); then
        say "$(printf '%-10s left out: no time is left' "$name")"
        return 0
    fi
    echo "== $*" >>"$log"
    timeout --kill-after=5 "$limit" "$@" >>"$log" 2>&1 || status=$?
    say "$(printf '%-10s exit %3d, %3d s: %s' "$name" "$status" $((SECONDS - begin)) "$*")"
    ((status == 0)) || tail -n 20 "$log"
}

skip() {
    say "$(printf '%-10s left out: %s' "$1" "$2")"
}

has() {
    "$PYTHON" -c "import $1" 2>/dev/null
}

build() {
    if ! has pybind11; then
        skip build "pybind11 is not installed, so nothing is compiled"
    elif [[ $DRY == 1 ]]; then
        skip build "dry run"
    else
        # What the machine has is used as it is: nothing is downloaded.
        IDSEL_CUDA=1 step build build.log 120 "$PYTHON" -m pip install --no-build-isolation --no-deps --editable .
    fi
    step info build.log 30 "$PYTHON" -m idsel_kernels.env_report
    if command -v nvidia-smi >/dev/null; then
        step info build.log 20 nvidia-smi
    fi
}

suite() {
    local tests=(tests/test_{gpu,parity,ties,edges,determinism,golden}.py)
    local options=(-q --maxfail=20 -p no:cacheprovider -m "not kernels")
    if ! has pytest || ! has hypothesis; then
        skip suite "pytest or hypothesis is not installed"
        return
    fi
    if has xdist; then
        options+=(--numprocesses "$(($(nproc) < 8 ? $(nproc) : 8))")
    fi
    if [[ $DRY == 1 ]]; then
        step suite suite.log 100 "$PYTHON" -m pytest "${options[@]}" -k topk tests/test_gpu.py tests/test_ties.py
        return
    fi
    # An engine that cannot run here is a failure, with its reason.
    step suite suite.log 90 "$PYTHON" -m pytest "${options[@]}" --backend cuda "${tests[@]}"
    step suite suite.log 110 "$PYTHON" -m pytest "${options[@]}" --backend triton "${tests[@]}"
}

sanitizers() {
    if [[ $DRY == 1 ]] || ! command -v compute-sanitizer >/dev/null; then
        skip sanitizer "no compute-sanitizer, or a dry run: the driver runs alone"
        step sanitizer sanitizer.log 60 "$PYTHON" -m bench.tools.sanitizer_driver
        return
    fi
    local tool
    for tool in memcheck racecheck synccheck; do
        step "$tool" sanitizer.log 150 \
            compute-sanitizer --tool "$tool" --error-exitcode 99 "$PYTHON" -m bench.tools.sanitizer_driver &
    done
    wait
}

replays() {
    if [[ $DRY == 1 ]]; then
        skip replays "dry run: graphs need a GPU"
        return
    fi
    step replays replays.log 60 "$PYTHON" bench/tools/replays.py "$OUT/replays.jsonl"
}

profile() {
    if [[ $DRY == 1 ]] || ! command -v ncu >/dev/null; then
        skip profile "no ncu, or a dry run"
        return
    fi
    step profile profile.txt 40 ncu --set full --launch-skip 2 --launch-count 1 --kernel-name regex:gram_kernel \
        "$PYTHON" -c 'import idsel_kernels as idsel
from idsel_kernels.testing import clustered
features, importance, _ = clustered(1, 576, 1024)
for _ in range(4):
    idsel.select(features.cuda().bfloat16(), 64, importance=importance.cuda(), backend="cuda")'
}

benchmarks() {
    # latency has the longest list and takes what time the others leave; what is left out is printed.
    local suites=(overhead breakdown rules batch scale ragged latency) options=(--no-compile --repeats 10 --seconds 0.1)
    if [[ $DRY == 1 ]]; then
        suites=(overhead latency)
        options=(--quick --shapes 1x64x32x8)
    fi
    local left=$((LIMIT - SECONDS - 30))
    ((left > 30)) || left=30
    step bench bench.log "$left" \
        "$PYTHON" -m bench --suite "${suites[@]}" --limit $((left * 3 / 4)) --out "$OUT" "${options[@]}"
    step verify bench.log 20 "$PYTHON" -m bench verify "$OUT"/*.json
    step report report.md 30 "$PYTHON" -m bench report --results "$OUT" --print
}

# join FROM TO: one log less.
join() {
    if [[ -e $OUT/$1 ]]; then
        cat "$OUT/$1" >>"$OUT/$2" && rm "$OUT/$1"
    fi
}

# A file of more than MOST bytes loses its beginning.
cut_files() {
    local file
    for file in "$OUT"/*; do
        if (($(stat -c %s "$file") > MOST)); then
            tail -c "$MOST" "$file" >"$file.cut" && mv "$file.cut" "$file"
        fi
    done
}

: >"$OUT/summary.txt"
build
sanitizers &
suite
wait
join sanitizer.log suite.log
replays
profile
benchmarks
join replays.log bench.log
cut_files
failed=$(grep -cE 'exit +[1-9]' "$OUT/summary.txt")
say "$failed steps failed, $SECONDS s, everything in $OUT"
exit "$failed"
