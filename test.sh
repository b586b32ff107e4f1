#!/usr/bin/env bash
# Lint and tests: `bash test.sh [pytest arguments]`. Installs into .venv (5.8 GB on disk; USE_ACTIVE_ENV=1 for the active
# environment) what demo.sh has not installed yet.
set -euo pipefail
cd "$(dirname "$0")"
. .ci/environment.sh
environment requirements-dev.txt
ruff check .
ruff format --check .
python -m pytest -n 2 --dist loadfile "$@"
