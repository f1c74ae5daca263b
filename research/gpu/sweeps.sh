#!/bin/bash
# On a GPU machine without a network: judges Tiny Scenes Flow, renders and measures the sweeps of both shipped models at
# full single precision, fits planners, and puts at most 6 files of at most 16 MiB into $OUT. From the repository's
# root, with host.tar.gz and site.tar.gz of pack.sh carried along in .gpu/:
#   research/gpu/sweeps.sh [TOTAL]    TOTAL seconds that all may take (default 470); what does not fit is left out
# The prompts and noise seeds are those of the shipped planner of the older model, so curves compare one to one.
# TOY=1 runs everything on the CPU in small. GPU_PACK, WORK, OUT, PYTHON, HOST, WORKERS, BATCH and CFGS (of flow,
# default "3 1") may be set.
set -uo pipefail
total=${1:-470}
pack=${GPU_PACK:-.gpu}
work=${WORK:-/tmp/budgetfusion-sweeps}
out=${OUT:?set OUT to a folder}
python=${PYTHON:-python3}
toy=${TOY:-}
began=$SECONDS
mkdir -p "$work/kept" "$out"
exec > >(tee "$out/log.txt") 2>&1
say() { echo "[$((SECONDS - began)) s] $*"; }

host=${HOST:-$work/host}
if [ ! -f "$host/nodes.py" ]; then
    mkdir -p "$work/host" && tar -C "$work/host" -xzf "$pack/host.tar.gz" || exit 1
fi
if [ -f "$pack/site.tar.gz" ]; then
    [ -d "$work/site" ] || { mkdir -p "$work/site" && tar -C "$work/site" -xzf "$pack/site.tar.gz" || exit 1; }
    export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONUNBUFFERED=1 BUDGETFUSION_RUN_DIR=$work/run OMP_NUM_THREADS=1
nvidia-smi --query-gpu=name,memory.total --format=csv 2>/dev/null
say "unpacked; $(getconf _NPROCESSORS_ONLN) cores"

flow=weights/checkpoints/tiny_scenes_flow.safetensors
eps=weights/checkpoints/tiny_scenes.safetensors
read -ra cfgs <<< "${CFGS:-3 1}"
where=(--host "$host" --device gpu --workers "${WORKERS:-7}" --batch "${BATCH:-50}")
first=(--train 200 --train-seeds 1 --calibration 200 --calibration-seeds 2 --test 200 --test-seeds 3)
more=(--seed 2 --train 600 --train-seeds 1 --calibration 0 --test 0)
judge=(--device cuda --steps 50 --captions 200 --lone-objects 100)
fit=(--threads 3)
sample=6 # shards
if [ -n "$toy" ]; then
    where=(--host "$host" --device cpu --workers "${WORKERS:-1}" --batch "${BATCH:-8}" --grid "2 3 4")
    first=(--train 7 --train-seeds 1 --calibration 2 --calibration-seeds 2 --test 2 --test-seeds 3)
    more=(--seed 2 --train 5 --train-seeds 1 --calibration 0 --test 0)
    judge=(--device cpu --steps 2 --captions 4 --lone-objects 2)
    fit=(--networks 1 --epochs 2)
    sample=1
fi

part() { # name, limit in seconds, command...: never longer than the time that is left
    local name=$1 limit=$2 left=$((total - 20 - SECONDS + began)) start=$SECONDS status
    shift 2
    { [ "$left" -lt "$limit" ] || [ -n "$toy" ]; } && limit=$left
    if [ "$limit" -lt 5 ]; then
        echo "$name 0 left_out" >> "$work/parts.txt"
        return 1
    fi
    say "$name (at most $limit s)"
    timeout -k 5 "$limit" "$python" -m research --quiet "$@" > "$work/kept/$name.txt" 2>&1
    status=$?
    echo "$name $((SECONDS - start)) status_$status" >> "$work/parts.txt"
    [ "$status" = 0 ] || tail -n 15 "$work/kept/$name.txt"
    return "$status"
}
fitted=()
sweep() { # name, checkpoint, sampler, scheduler, cfg: rendered, joined, and a planner fitted meanwhile
    local name=$1 data=$work/$1 options
    options=(--checkpoint "$2" --sampler "$3" --scheduler "$4" --cfg "$5" --dtype fp32 "${where[@]}")
    part "$name-1" 200 study sweep --out "$data-1" "${options[@]}" "${first[@]}" || return 1
    if part "$name-2" 200 study sweep --out "$data-2" "${options[@]}" "${more[@]}"; then
        part "$name-join" 30 study join "$data-1" "$data-2" --out "$data" || return 1
    else
        data=$data-1
    fi
    cp "$data/dataset.safetensors" "$out/$name.safetensors"
    mkdir -p "$work/kept/$name" && cp "$data"/{prompts,sweep}.json "$data/judges.safetensors" "$work/kept/$name/"
    part "$name-planner" 400 study train --data "$out/$name.safetensors" "${fit[@]}" --name "$name" \
        --out "$work/kept/$name-planner.safetensors" &
    fitted+=($!)
}

rm -f "$work/parts.txt"
part judge 200 tiny-scenes evaluate --host "$host" --checkpoint "$flow" --sampler-name euler --scheduler simple \
    --cfg 1 3 "${judge[@]}" --json "$work/kept/judged.json" --grid "$out/judged.png" &
fitted+=($!)
sweep "flow-cfg${cfgs[0]}" "$flow" euler simple "${cfgs[0]}"
sweep eps-cfg3 "$eps" dpmpp_2m karras 3
for cfg in "${cfgs[@]:1}"; do sweep "flow-cfg$cfg" "$flow" euler simple "$cfg"; done
# the same first prompts at the precision that ComfyUI itself chooses on this device
own=flow-cfg${cfgs[0]}-own-precision
part "$own" 60 study sweep --out "$work/$own" --checkpoint "$flow" --sampler euler --scheduler simple \
    --cfg "${cfgs[0]}" "${where[@]}" "${first[@]}" --shards "$sample" &&
    part "$own-merge" 20 study merge --partial --out "$work/$own" &&
    cp "$work/$own/dataset.safetensors" "$work/kept/$own.safetensors"
wait "${fitted[@]}"

tar -C "$work/kept" -czf "$out/rest.tar.gz" .
cat "$work/kept/judge.txt"
"$python" - "$work" <<'EOF_TABLE'
import json, pathlib, sys
work = pathlib.Path(sys.argv[1])
print(f"{'part':<32}{'seconds':>8}  {'end':<11}{'trajectories':>13}{'renders/s':>11}")
for line in (work / "parts.txt").read_text().splitlines():
    name, seconds, status = line.split()
    done = sorted((work / name).glob("shards/*.safetensors")) if (work / name / "sweep.json").is_file() else []
    figures = ""
    if done and int(seconds):
        spec = json.loads((work / name / "sweep.json").read_text())
        seeds = sum(len(p["seeds"]) for p in json.loads((work / name / "prompts.json").read_text())["prompts"])
        count = min(seeds, len(done) * spec["batch"])
        figures = f"{count:>13}{count * len(spec['grid']) / int(seconds):>11.1f}"
    print(f"{name:<32}{seconds:>8}  {status:<11}{figures}")
EOF_TABLE
ls -l "$out"
say "done"
