# shellcheck shell=bash
# What setup.sh and test.sh share; sourced by them, not run. A script sets `tag` before it says anything.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$(realpath -m "${VENV:-$root/.venv}")
venv_python=$venv/bin/python
log=$venv/setup.log

say() { printf '[%s] %s\n' "$tag" "$*"; }

fail() { # reason, remedy
    printf '[%s] error: %s\n[%s] remedy: %s\n' "$tag" "$1" "$tag" "$2" >&2
    exit 1
}

sign_of_life() { # start: a line every 20 s until this script ends or kills it
    while sleep 20 3>&- && kill -0 $$ 2>/dev/null; do say "  ... $((SECONDS - $1)) s" >&3; done
}

phase() { # title, command...: runs it with its output in the log
    local title=$1 start=$SECONDS status=0 ticker
    shift
    say "$title ..."
    sign_of_life "$start" 3>&1 >/dev/null 2>&1 &
    ticker=$!
    "$@" >>"$log" 2>&1 || status=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    if [ "$status" -ne 0 ]; then
        grep -v 'is ignored: it is neither' "$log" | tail -n 15 >&2
        fail "'$title' failed; the last lines are above, all of them in $log" \
            "mend the cause and run the same command again: it continues"
    fi
    say "  done in $((SECONDS - start)) s"
}
