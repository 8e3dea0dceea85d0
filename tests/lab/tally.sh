#!/usr/bin/env bash
# Runs steps (make targets) one after the other, whatever becomes of each, and adds up what their tests say.
#
#   tests/lab/tally.sh check cases e2e
#
# It understands the last line of cargo's test runs (`test result: …`) and of our own runners (`N passed, N failed`, with or
# without `, N skipped`). A runner that is itself a cargo test is counted once, by its own line. A step that ends badly
# without any failed test (it did not compile, it was killed, it took too long) counts as one failure.
# The last line is the total, `N passed, N failed`; the exit code is 0 only if nothing failed and something passed.

set -uo pipefail
cd "$(dirname "$0")/../.." || exit

limit=${STEP_TIMEOUT:-45m}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
interrupted=no
# A step runs in a process group of its own (timeout's), so an interrupt must be handed on.
trap 'interrupted=yes; [ ! -s "$logs/pid" ] || kill -TERM "$(cat "$logs/pid")" 2>/dev/null' INT TERM

# run STEP leaves its exit code in a file: it is run at the head of a pipe.
run() {
    timeout --kill-after=60 "$limit" make --no-print-directory "$1" &
    echo $! >"$logs/pid"
    wait $!
    echo $? >"$logs/status"
}

# count LOG prints "passed failed skipped".
count() {
    awk '
        # A new test program: what the last one said is settled.
        /^ +(Running|Doc-tests) / { settle() }
        /^[0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$/ { own = 1; own_failed += $3; passed += $1; failed += $3; skipped += $5 }
        /^test result: / {
            sub(/^test result: [A-Za-z]+\. /, "")
            of_cargo_passed += $1; of_cargo_failed += $3; skipped += $5
            settle()
        }
        function settle() {
            if (!own) { passed += of_cargo_passed; failed += of_cargo_failed }
            else if (!own_failed) failed += of_cargo_failed
            own = own_failed = of_cargo_passed = of_cargo_failed = 0
        }
        END { settle(); printf "%d %d %d\n", passed, failed, skipped }
    ' "$1"
}

passed=0
failed=0
table=
for step in "$@"; do
    [ $interrupted = no ] || break
    echo "==> make $step"
    started=$SECONDS
    log=$logs/$step
    rm -f "$logs/pid" "$logs/status"
    run "$step" 2>&1 | tee "$log" &
    # An interrupt ends a wait before its time.
    until wait $!; [ -s "$logs/status" ] || [ ! -d "/proc/$!" ]; do :; done
    status=$(cat "$logs/status" 2>/dev/null || echo 1)
    read -r step_passed step_failed step_skipped < <(count "$log")
    note=
    if [ "$status" -ne 0 ]; then
        [ "$step_failed" -gt 0 ] || step_failed=1
        note="  (exit code $status)"
        [ "$status" -ne 124 ] || note="  (not done after $limit)"
    fi
    passed=$((passed + step_passed))
    failed=$((failed + step_failed))
    table+=$(printf '%-12s %5d passed %5d failed %5d skipped %6d s%s' \
        "$step" "$step_passed" "$step_failed" "$step_skipped" $((SECONDS - started)) "$note")$'\n'
done

[ $interrupted = no ] || failed=$((failed + 1))
printf '\n%s\n%d passed, %d failed\n' "$table" "$passed" "$failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
