# A shell that lives from run to run: `bash --noprofile --norc -c THIS`, with its runs on stdin; ../frames.ts tells what it says of them.
# On stdin each field ends with NUL: once the mark and what an earlier shell left; then for each run its id, a folder or nothing, and the lines.
# Arguments, of which there may be none: the seconds without a run after which it ends (0: never); `stay`, when a shell that code ends is to be followed by
# another one in the same process; and what that has left the mark and the rest in.
__glovebox_idle=${1:-0} __glovebox_stay=${2-} __glovebox_first=${3-0}
builtin set --
exec {__glovebox_in}<&0 {__glovebox_out}>&1
IFS= builtin read -r -d '' -u "$__glovebox_first" __glovebox_mark || exit 125
IFS= builtin read -r -d '' -u "$__glovebox_first" __glovebox_lines || exit 125
[[ $__glovebox_first == 0 ]] || exec {__glovebox_first}<&-
exec </dev/null 2>&1
shopt -s expand_aliases
__glovebox_flags= __glovebox_running=0
eval "$__glovebox_lines" 2>/dev/null

__glovebox_tell() {
  builtin printf '\0%s%s\0' "$__glovebox_mark" "$1" >&"$__glovebox_out"
}

# Lines that make the next shell what this one was. What bash sets by itself is left out.
__glovebox_state() {
  builtin local __glovebox_name __glovebox_rest
  builtin printf '__glovebox_flags=%s\n' "$__glovebox_flags"
  builtin printf 'builtin cd -- %q\n' "$PWD"
  builtin printf 'builtin umask %s\n' "$(builtin umask)"
  for __glovebox_name in $(builtin compgen -v); do
    case $__glovebox_name in
      __glovebox_* | BASH* | COMP_* | DIRSTACK | EPOCH* | EUID | FUNCNAME | GROUPS | IFS | LINENO | OPT* | PIPESTATUS | PPID | PWD | RANDOM | SECONDS | SHELLOPTS | SRANDOM | UID | _) ;;
      *) builtin declare -p "$__glovebox_name" ;;
    esac
  done
  for __glovebox_name in $(builtin compgen -A function); do
    [[ $__glovebox_name == __glovebox_* ]] || builtin declare -f "$__glovebox_name"
  done
  builtin declare -Fx | while builtin read -r _ __glovebox_rest __glovebox_name; do
    builtin printf 'builtin export -f %s\n' "$__glovebox_name"
  done
  builtin shopt -p
  builtin alias -p
  builtin set +o | while builtin read -r _ __glovebox_rest __glovebox_name; do
    case $__glovebox_name in
      errexit | nounset | xtrace | verbose | noexec) ;;
      *) builtin printf 'builtin set %s %s\n' "$__glovebox_rest" "$__glovebox_name" ;;
    esac
  done
}

# The flags that would act on this file itself are set for the lines of a run alone.
__glovebox_pause() {
  __glovebox_flags=${-//[^euxv]/}
  builtin set +euxv
}

# Lines that a run has left to be run behind it.
__glovebox_restore() {
  [[ -z ${__glovebox_after-} ]] || builtin eval "$__glovebox_after"
  __glovebox_after=
}

__glovebox_bye() {
  { __glovebox_status=$? __glovebox_was=$__glovebox_running __glovebox_running=0; __glovebox_pause; IFS=$' \t\n'; __glovebox_restore; } 2>/dev/null
  if [[ -n $__glovebox_stay && $__glovebox_was == 1 ]]; then
    __glovebox_lines=$(__glovebox_state 2>/dev/null)
    exec {__glovebox_first}< <(builtin printf '%s\0%s\0' "$__glovebox_mark" "$__glovebox_lines")
    exec <&"$__glovebox_in" >&"$__glovebox_out" {__glovebox_in}<&- {__glovebox_out}>&-
    builtin printf '\0%s{"end":"%s","code":%s}\0' "$__glovebox_mark" "$__glovebox_run" "$__glovebox_status"
    exec "$BASH" --noprofile --norc -c "$BASH_EXECUTION_STRING" bash "$__glovebox_idle" stay "$__glovebox_first"
  fi
  __glovebox_tell "=$(__glovebox_state 2>/dev/null)"
  builtin exit "$__glovebox_status"
}
trap __glovebox_bye EXIT
# A run ends where it is interrupted. There is no way out of functions that are being run, but that of the whole shell; the next one goes on from here.
trap 'case $__glovebox_running${#FUNCNAME[@]} in 10) return 130 ;; 1*) exit 130 ;; esac' INT

__glovebox_tell '{"ready":true}'
[[ $__glovebox_idle == 0 ]] && __glovebox_wait=() || __glovebox_wait=(-t "$__glovebox_idle")
while IFS= builtin read -r -d '' "${__glovebox_wait[@]}" -u "$__glovebox_in" __glovebox_run &&
  IFS= builtin read -r -d '' -u "$__glovebox_in" __glovebox_folder &&
  IFS= builtin read -r -d '' -u "$__glovebox_in" __glovebox_lines; do
  __glovebox_tell "{\"begin\":\"$__glovebox_run\"}"
  if [[ -n $__glovebox_folder ]] && ! builtin cd -- "$__glovebox_folder"; then
    __glovebox_status=1
  else
    [[ -z $__glovebox_flags ]] || __glovebox_lines="set -$__glovebox_flags;$__glovebox_lines"
    __glovebox_running=1
    . /dev/fd/9 9<<<"$__glovebox_lines" {__glovebox_in}<&-
    { __glovebox_status=$? __glovebox_running=0; __glovebox_pause; __glovebox_restore; } 2>/dev/null
  fi
  __glovebox_tell "{\"end\":\"$__glovebox_run\",\"code\":$__glovebox_status}"
done
