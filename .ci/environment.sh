# Sourced by demo.sh, test.sh and .ci/run: makes `python` a Python with the packages that this project needs.
# They are installed into .venv here, or, with USE_ACTIVE_ENV=1, into the virtual or conda environment that is active.

refuse() {
    echo "error: $1" >&2
    exit 2
}

supported() { # whether a Python is 3.11, 3.12 or 3.13
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
}

environment() { # $1: the requirements file
    local folder=$PWD/.venv name
    if [ "${USE_ACTIVE_ENV:-0}" = 1 ]; then
        folder=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
        [ -n "$folder" ] || refuse "USE_ACTIVE_ENV=1, but no environment is active; activate one or leave it out"
        if [ -z "${VIRTUAL_ENV:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" = base ]; then
            refuse "the active environment is conda's base, which stays as it is; activate another or leave out USE_ACTIVE_ENV"
        fi
    elif [ ! -x "$folder/bin/python" ]; then
        for name in python3.12 python3.11 python3.13 python3; do
            supported "$name" && break
            name=
        done
        [ -n "$name" ] || refuse "Python 3.11, 3.12 or 3.13 is needed and none was found on PATH"
        "$name" -m venv "$folder"
    fi
    export PATH="$folder/bin:$PATH"
    supported "$folder/bin/python" || refuse "$folder: its Python is not 3.11, 3.12 or 3.13; remove it or activate another"

    local stamps=$folder/.installed state
    state="$1 $(cat requirements.txt "$1" | cksum)"
    if ! grep -qxF "$state" "$stamps" 2>/dev/null; then
        echo "installing $1 into $folder (3 GB to download, 5.8 GB on disk, most of it torch and CUDA's libraries) ..."
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r "$1"
        printf '%s\n' "$state" "requirements.txt $(cat requirements.txt requirements.txt | cksum)" >>"$stamps"
    fi
}
