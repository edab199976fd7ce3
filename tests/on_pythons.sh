#!/usr/bin/env bash
# The tests on every Python that the project supports, each in a fresh environment and a copy of the source.
#
#   tests/on_pythons.sh                          # 3.11, 3.12 and 3.13, all tests
#   tests/on_pythons.sh 3.12 3.13 -- -m quick    # some of them, with flags of pytest
#   NEWEST=1 tests/on_pythons.sh 3.13            # the newest of all libraries, not those of constraints/
#
# A Python is python3.X, or that of pyenv. At the end a line for each: what pytest said last. Ends with 1 if one failed.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE
export PIP_QUIET=1 PIP_NO_COMPILE=1

versions=()
while (($#)) && [[ $1 != -- ]]; do
  versions+=("$1")
  shift
done
if (($#)); then shift; fi
((${#versions[@]})) || versions=(3.11 3.12 3.13)

python_of() {
  local python
  for python in "python$1" ~/.pyenv/versions/"$1".*/bin/"python$1"; do
    if "$python" -c '' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  echo "no Python $1 here: neither python$1 nor one of pyenv; install it, or name others" >&2
  return 1
}

# The Pythons are looked for first: none is tested if one is missing.
pythons=()
for version in "${versions[@]}"; do pythons+=("$(python_of "$version")"); done

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failed=0 summary=()
for place in "${!versions[@]}"; do
  version=${versions[$place]} source=$folder/source
  rm -rf "$source" "$folder/environment"
  mkdir "$source"
  tar --create --exclude=./.git --exclude=./runs . | tar --extract --directory="$source"
  "${pythons[$place]}" -m venv "$folder/environment"
  constraints=(-c "constraints/python$version.txt")
  if [[ -n ${NEWEST:-} ]]; then constraints=(); fi
  "$folder/environment/bin/pip" install -e "${source}[test]" "${constraints[@]}"
  (cd "$source" && PATH="$folder/environment/bin:$PATH" python -m pytest "$@") |& tee "$folder/log" || failed=1
  summary+=("$version, JAX $("$folder/environment/bin/python" -c 'import jax; print(jax.__version__)'): \
$(tail -n 1 "$folder/log")")
done
printf '%s\n' "${summary[@]}"
exit "$failed"
