#!/bin/bash
# Trains the generators on a GPU machine without a network, judges them, and puts at most 8 files of at most 16 MiB
# into $OUT. From the repository's root, with what pack.sh made carried along as .gpu/:
#   research/gpu/train_flow.sh [flow|eps|both] [TOTAL]    TOTAL seconds that all may take (default 530)
# The training gets what rendering before it leaves, less RESERVE seconds (default 130, both: 180) for compiling and judging.
# TOY=1 runs everything on the CPU in small. GPU_PACK, WORK, OUT, PYTHON, HOST and CHANGES (JSON members for the
# settings of the training, such as '"batch": 512,') may be set.
set -uo pipefail
mode=${1:-flow}
total=${2:-530}
[ "$mode" = both ] && reserve=${RESERVE:-180} || reserve=${RESERVE:-130}
pack=${GPU_PACK:-.gpu}
work=${WORK:-/tmp/budgetfusion-train}
out=${OUT:?set OUT to a folder}
python=${PYTHON:-python3}
toy=${TOY:-}
began=$SECONDS
mkdir -p "$work" "$out"
exec > >(tee "$out/log.txt") 2>&1
say() { echo "[$((SECONDS - began)) s] $*"; }

host=${HOST:-$work/host}
if [ ! -f "$host/nodes.py" ]; then
    mkdir -p "$work/host" && tar -C "$work/host" -xzf "$pack/host.tar.gz" || exit 1
fi
[ -d "$work/site" ] || { mkdir -p "$work/site" && tar -C "$work/site" -xzf "$pack/site.tar.gz" || exit 1; }
export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 BUDGETFUSION_RUN_DIR=$work/run
export TORCHINDUCTOR_CACHE_DIR=$work/inductor OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
device=cuda
changes=${CHANGES:-}
judge=(--captions 200 --lone-objects 100)
if [ -n "$toy" ]; then
    device=cpu
    changes='"batch": 8, "scenes": 600, "large_scenes": 200, "warmup": 5, "compile": false,'
    judge=(--captions 4 --lone-objects 2)
fi
nvidia-smi --query-gpu=name,memory.total --format=csv 2>/dev/null
say "unpacked; $(getconf _NPROCESSORS_ONLN) cores"

pack_cli() { "$python" -m research tiny-scenes "$@"; }
train() { # model settings
    pack_cli train-timed --host "$host" --folder "$work/$1" --device "$device" --model "$1" --settings "$2" \
        --out "$work/out/$1.safetensors" || return 1
    cp "$work/out/$1.json" "$out/"
    if [ "$1" = flow ]; then
        split -b 15000000 -d -a 1 "$work/out/flow.safetensors" "$out/flow.safetensors.part"
    else
        cp "$work/out/eps.safetensors" "$out/"
    fi
    (cd "$work/out" && sha256sum "$1.safetensors")
}
judge() { # model checkpoint steps sampler scheduler cfg...
    local model=$1 file=$2 steps=$3 sampler=$4 scheduler=$5
    shift 5
    say "judging $model"
    pack_cli evaluate --host "$host" --checkpoint "$file" --device "$device" --steps "$steps" --cfg "$@" \
        --sampler-name "$sampler" --scheduler "$scheduler" "${judge[@]}" \
        --json "$work/out/$model-report.json" --grid "$work/out/$model.png" > "$work/$model-table.txt"
    [ "$mode" = both ] && [ "$model" = eps ] || cp "$work/out/$model.png" "$out/" # at most 8 files come back
}

chosen=$mode
[ "$mode" = both ] && chosen="flow eps"
for model in $chosen; do # one after the other: each uses all cores
    pack_cli train-timed --host "$host" --folder "$work/$model" --model "$model" --data-only \
        --settings "{$changes \"seconds\": 1}" || exit 1
    say "scenes for $model rendered"
done
seconds=$((total - reserve - SECONDS + began))
say "training for $seconds s"
pids=()
for model in $chosen; do
    train "$model" "{$changes \"seconds\": $seconds}" &
    pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || say "a training failed"; done
say "trained"
steps=${TOY:+2}
for model in $chosen; do
    if [ "$model" = flow ]; then
        judge flow "$work/out/flow.safetensors" "${steps:-50}" euler simple 1 3
    else
        judge eps "$work/out/eps.safetensors" "${steps:-50}" dpmpp_2m karras 1 3
    fi
done
"$python" - "$work"/out/*-report.json > "$out/report.json" <<'EOF'
import json, pathlib, sys
print(json.dumps({pathlib.Path(p).stem: json.loads(pathlib.Path(p).read_text()) for p in sys.argv[1:] if pathlib.Path(p).exists()}))
EOF
ls -l "$out"
for model in $chosen; do
    echo "== $model"
    cat "$work/$model-table.txt"
done
say "done"
