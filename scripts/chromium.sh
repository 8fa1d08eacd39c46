#!/bin/sh
# Runs a headless Chromium: the one on PATH, else Debian's package, installed where we are root. Ends with 3 where there is neither,
# which the tests of the report's pages take for "skip me".
set -eu
find_it() {
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        if command -v "$name" >/dev/null 2>&1; then
            echo "$name"
            return
        fi
    done
}
browser=$(find_it)
if [ -z "$browser" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "chromium: installing it (100 MB, once)" >&2
    # With CJK fonts: the generated shop speaks Chinese, and text without glyphs has another width.
    { apt-get update && apt-get install -y --no-install-recommends chromium fonts-dejavu-core fonts-noto-cjk; } >&2 || exit 3
    browser=$(find_it)
fi
if [ -z "$browser" ]; then
    echo "chromium: not on PATH, and not root on Debian to install it" >&2
    exit 3
fi
exec "$browser" "$@"
