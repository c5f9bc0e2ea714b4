#!/bin/sh
# make_env.sh DIR REQUIREMENTS: a virtual environment with pinned packages and this checkout in it.
# Needs a Python 3.11 to 3.13; brings its own uv, which installs torch's 5 GB in under a minute.
set -eu
dir=$1
requirements=$2
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
    echo "flaxvgg needs Python 3.11, 3.12 or 3.13, and '$python' is none:" \
        "name one, for example PYTHON=python3.12 make test" >&2
    exit 2
fi

echo "making $dir from $requirements (once) ..."
rm -rf "$dir"
if command -v uv >/dev/null 2>&1; then
    uv=uv
    uv venv --quiet --python "$(command -v "$python")" "$dir"
else
    if ! "$python" -m venv "$dir" >/dev/null 2>&1; then
        # Debian splits the part of venv that installs pip into a package of its own.
        rm -rf "$dir"
        if "$python" -m pip --version >/dev/null 2>&1; then
            "$python" -m venv --without-pip "$dir"
            "$python" -m pip --quiet --python "$dir/bin/python" install pip
        elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
            echo "installing Debian's python3-venv ..."
            apt-get update -qq && apt-get install -qq -y python3-venv >/dev/null
            "$python" -m venv "$dir"
        else
            echo "Python's venv is missing: sudo apt-get install python3-venv" >&2
            exit 2
        fi
    fi
    "$dir/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.8'
    uv="$dir/bin/uv"
fi
"$uv" pip install --quiet --python "$dir/bin/python" --requirement "$requirements"
"$uv" pip install --quiet --python "$dir/bin/python" --no-deps --editable .
touch "$dir/ready"
