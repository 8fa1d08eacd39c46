#!/bin/sh
# Fetches libtorch 2.11 (CPU) from the Python wheels into .libtorch/, checked by sha256. Nothing is done when LIBTORCH is set
# or the folder is already complete. libtorch_cpu.so needs two small CUDA libraries at load time, no GPU.
set -eu
cd "$(dirname "$0")/.."
if [ -n "${LIBTORCH:-}" ]; then
    [ -f "$LIBTORCH/lib/libtorch_cpu.so" ] && { echo "libtorch: using LIBTORCH=$LIBTORCH" >&2; exit 0; }
    echo "libtorch: LIBTORCH=$LIBTORCH has no lib/libtorch_cpu.so; unset it, and libtorch is fetched" >&2
    exit 2
fi
target=.libtorch
[ -f "$target/build-version" ] && exit 0
case "$(uname -m)" in
    x86_64) machine=x86_64 ;;
    *) echo "libtorch: no pinned wheel for $(uname -m); install libtorch 2.11 yourself and set LIBTORCH to its folder" >&2; exit 2 ;;
esac
wheels=$(mktemp -d "${TMPDIR:-/tmp}/libtorch.XXXXXX")
trap 'rm -rf "$wheels" "$target.part"' EXIT
# A virtual environment only where the system's Python carries no pip.
pip="python3 -m pip"
if ! $pip --version >/dev/null 2>&1; then
    python3 -m venv "$wheels/venv" && pip="$wheels/venv/bin/python -m pip"
fi
echo "libtorch: fetching the wheels (530 MB, once)" >&2
$pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi none \
    --platform "manylinux_2_28_$machine" --platform "manylinux_2_25_$machine" --platform "manylinux_2_17_$machine" \
    --platform "manylinux2014_$machine" --require-hashes --requirement scripts/libtorch.txt --dest "$wheels"
rm -rf "$target" "$target.part"
python3 - "$wheels" "$target.part" <<'PY'
import pathlib, shutil, sys, zipfile
wheels, target = map(pathlib.Path, sys.argv[1:])
wanted = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"}
for wheel in sorted(wheels.glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            base = name.rsplit("/", 1)[-1]
            if base in wanted:
                out = target / "lib" / base
            elif name.startswith("torch/include/") and not name.endswith("/"):
                out = target / name.removeprefix("torch/")
            else:
                continue
            out.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, open(out, "wb") as sink:
                shutil.copyfileobj(source, sink)
missing = wanted - {path.name for path in (target / "lib").iterdir()}
if missing:
    sys.exit(f"libtorch: the wheels lack {sorted(missing)}")
# tch links -ltorch; only the CPU half is linked, a GPU half is loaded at run time where there is one.
(target / "lib" / "libtorch.so").write_text("INPUT(-ltorch_cpu -lc10)\n")
(target / "build-version").write_text("2.11.0\n")
PY
mv "$target.part" "$target"
echo "libtorch: ready in $target" >&2
