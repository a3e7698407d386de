#!/usr/bin/env bash
# deploy/setup.sh VENV   makes or updates the virtual environment VENV with the packages of constraints.txt
# deploy/setup.sh --all  prints the path of every Python of VERSIONS that this machine has, those of pyenv too
# PYTHON names the interpreter; unset, it is the newest of VERSIONS that runs. pip's own words are shown only if it fails.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSIONS="3.13 3.12 3.11"
NEWEST=${VERSIONS%% *}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
usable() { [[ " $VERSIONS " == *" $(version_of "$1") "* ]]; }
refuse() { echo "setup: $*" >&2; exit 2; }

find_python() {
  if [[ -n ${PYTHON:-} ]]; then
    usable "$PYTHON" || refuse "PYTHON=$PYTHON is $(version_of "$PYTHON" || echo "no Python that runs"), expected Python" \
      "${VERSIONS// /, }: the packages have no builds for another one, so nothing was installed; name one of these, or leave PYTHON out"
    echo "$PYTHON"
    return
  fi
  # shellcheck disable=SC2086  # several words
  for name in $(printf 'python%s ' $VERSIONS) python3; do
    if usable "$name"; then echo "$name"; return; fi
  done
  refuse "no Python ${VERSIONS// /, } was found (python3 is $(version_of python3 || echo absent)), expected one of them: nothing was" \
    "installed; install one (on Debian: apt install python$NEWEST python$NEWEST-venv), or name it: make PYTHON=/path/to/python$NEWEST"
}

if [[ $1 == --all ]]; then
  PYENV_VERSION=$(tr ' ' : <<<"$VERSIONS"); export PYENV_VERSION  # its commands run one version alone otherwise
  find_python >/dev/null
  seen=
  # shellcheck disable=SC2086
  for name in ${PYTHON:-$(printf 'python%s ' $VERSIONS) python3}; do
    version=$(version_of "$name") || continue
    if usable "$name" && [[ " $seen " != *" $version "* ]]; then "$name" -c 'import sys; print(sys.executable)'; fi
    seen+=" $version"
  done
  exit
fi

venv=$1
if [[ -x $venv/bin/python && -n ${PYTHON:-} && $(version_of "$PYTHON") != "$(version_of "$venv/bin/python")" ]]; then
  python=$(find_python)
  refuse "$venv has Python $(version_of "$venv/bin/python"), and PYTHON=$PYTHON is $(version_of "$python"), expected the same:" \
    "nothing was installed; remove $venv to make it anew, or leave PYTHON out"
fi
if [[ $venv/.installed -nt pyproject.toml && $venv/.installed -nt constraints.txt ]]; then exit; fi

scratch=$(mktemp -d)
log=$scratch/log
pip=
trap '[[ -z $pip ]] || kill "$pip" 2>/dev/null || true; rm -rf "$scratch"' EXIT
failed() {
  cat "$log" >&2
  refuse "$1 failed, expected it to succeed (its words are above): $venv is not complete; mend that and give the same command again"
}

# A line of progress: in place on a terminal, otherwise only when its first word is a new one.
shown=
show() {
  if [[ -t 2 ]]; then
    printf '\r\033[K%s' "${1:0:$(($(tput cols 2>/dev/null || echo 80) - 1))}" >&2
  elif [[ ${1%% *} != "$shown" ]]; then
    echo "$1" >&2
  fi
  shown=${1%% *}
}

# How far pip is, by its log and by what is installed already.
phase() {
  local all made
  if all=$(grep -m1 '^Installing collected packages: ' "$log"); then
    all=$(tr -cd , <<<"$all" | wc -c)
    made=$(find "$venv"/lib/python*/site-packages -maxdepth 1 -name '*.dist-info' -newer "$scratch/began" | wc -l)
    echo "installing: $((made < all ? made : all)) of $((all + 1)) packages"
  else
    made=$(grep -c '^Collecting ' "$log" || true)
    echo "fetching: $made packages found$(sed -nE 's/^ *(Downloading|Using cached) ([^ ]*\/)?([^ /]+)( .*)?$/, \3\4/p' "$log" | tail -1)"
  fi
}

if [[ ! -x $venv/bin/python ]]; then
  python=$(find_python)
  show "making $venv with Python $(version_of "$python")"
  "$python" -m venv "$venv" >"$log" 2>&1 || failed "$python -m venv"
fi
touch "$scratch/began"
"$venv/bin/python" -m pip install --disable-pip-version-check --no-color --progress-bar off \
  -c constraints.txt --editable '.[test]' >"$log" 2>&1 &
pip=$!
while kill -0 "$pip" 2>/dev/null; do
  show "$(phase)"
  sleep 0.5
done
wait "$pip" || { [[ ! -t 2 ]] || echo >&2; failed "pip install"; }
pip=
touch "$venv/.installed"
show "ready: $venv, Python $(version_of "$venv/bin/python")"
[[ ! -t 2 ]] || echo >&2
