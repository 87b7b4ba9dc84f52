# What the launch scripts share. Read by them, with `least` arguments asked for:
# takes --dry_run off the arguments, and shows a script's head if they are too few.

dry_run=
if [ "${1-}" = --dry_run ]; then
  dry_run=1
  shift
fi
if [ $# -lt "$least" ]; then
  sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi

# Prints words, each quoted for another shell behind a space.
quote() {
  for word in "$@"; do
    printf " '%s'" "$(printf %s "$word" | sed "s/'/'\\\\''/g")"
  done
}

# Prints a command and, unless it is a dry run, becomes it.
launch() {
  printf '%s\n' "$*"
  [ -n "$dry_run" ] || exec "$@"
}
