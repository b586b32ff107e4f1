#!/usr/bin/env bash
# Lint and tests: `bash test.sh [pytest arguments]`. Sets up a virtual environment unless one is active.
set -euo pipefail
cd "$(dirname "$0")"
. .ci/environment.sh
environment requirements-dev.txt
ruff check .
ruff format --check .
python -m pytest "$@"
