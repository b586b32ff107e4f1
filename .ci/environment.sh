# Sourced by demo.sh, test.sh and .ci/run: makes `python` a Python with the packages that this project needs.
# An active virtual or conda environment is used as it is; else .venv is made here. $1 names the requirements file.

environment() {
    local active="${VIRTUAL_ENV:-${CONDA_PREFIX:-}}"
    if [ -n "$active" ]; then
        PATH="$active/bin:$PATH"
    else
        local base
        for base in python3.12 python3.11 python3.13 python3; do
            command -v "$base" >/dev/null && "$base" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && break
            base=""
        done
        [ -n "$base" ] || { echo "error: Python 3.11, 3.12 or 3.13 is needed and none was found on PATH" >&2; exit 2; }
        [ -x .venv/bin/python ] || "$base" -m venv .venv
        PATH="$PWD/.venv/bin:$PATH"
    fi
    export PATH
    local stamp="${active:-$PWD/.venv}/.installed-$1" wanted
    wanted="$(cat requirements.txt "$1" | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing $1 (torch and its libraries are about 3 GB) ..."
        python -m pip install --quiet --disable-pip-version-check -r "$1"
        echo "$wanted" >"$stamp"
    fi
}
