#!/bin/sh
# Packs what a GPU machine without a network lacks into FOLDER (default .gpu): the ComfyUI of a run.py set-up and a few
# Python packages for Linux x86-64 and Python 3.12. Compiled backends and video are left out: neither is used here.
#   research/gpu/pack.sh [FOLDER] [HOST]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
out=${1:-$root/.gpu}
host=${2:-$root/.run/host/0.30.0}
python=$root/.run/venv/bin/python
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

tar -C "$host/" -cf - --exclude=__pycache__ --anchored --exclude=./tests --exclude=./tests-unit --exclude=./models \
    --exclude=./.github --exclude=./.ci --exclude=./blueprints --exclude=./openapi.yaml . | gzip -9 > "$out/host.tar.gz"

pin() { "$python" -c "import importlib.metadata as m; print('$1==' + m.version('$1'))"; }
for name in comfy-kitchen comfy-aimdo torchsde trampoline pydantic pydantic-core annotated-types typing-inspection SQLAlchemy \
    PyWavelets; do
    "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 -d "$work" "$(pin $name)"
done
mkdir "$work/site"
for wheel in "$work"/*.whl; do
    "$python" -m zipfile -e "$wheel" "$work/site"
done
rm -f "$work"/site/comfy_kitchen/backends/*/_C*.so
# av is imported by the host's video types and used by none of our graphs
mkdir -p "$work/site/av"
cp "$root/research/gpu/av_stub.py" "$work/site/av/__init__.py"
tar -C "$work/site" -cf - . | gzip -9 > "$out/site.tar.gz"
ls -l "$out"
