#!/bin/sh
# Restarts collectors that share a LEADER_KEY one after the other, so that consumers miss nothing:
#     sudo deploy/rolling-restart.sh a b          # bybit-collector@a, then bybit-collector@b
# Each is restarted only while all the others are ready to take over, or lead; else nothing more is touched.
set -eu

SYSTEMCTL=${SYSTEMCTL:-systemctl}
TIMEOUT=${TIMEOUT:-120} # seconds that a collector may take to be ready
PAUSE=${PAUSE:-1}

fail() {
    echo "$1" >&2
    exit 1
}

# The collector's own words: "standby, ready: 4 of 4 streams up, ...". They are up to 5 s old.
state() {
    "$SYSTEMCTL" show --property StatusText --value "bybit-collector@$1.service"
}

is_ready() {
    case $(state "$1") in "leader, ready: "* | "standby, ready: "*) ;; *) return 1 ;; esac
}

wait_until_ready() {
    seconds=0
    until is_ready "$1"; do
        [ "$seconds" -lt "$TIMEOUT" ] || fail "bybit-collector@$1 is not ready after $TIMEOUT s: $(state "$1")"
        sleep "$PAUSE"
        seconds=$((seconds + 1))
    done
}

[ $# -ge 2 ] || fail "Usage: $0 INSTANCE INSTANCE...   (all that share a LEADER_KEY on this machine)"
for name; do
    for other; do
        [ "$other" = "$name" ] || wait_until_ready "$other"
    done
    echo "Restarting bybit-collector@$name"
    "$SYSTEMCTL" restart "bybit-collector@$name.service" # returns when the new one has sent READY=1, within a minute
    wait_until_ready "$name"
    echo "bybit-collector@$name: $(state "$name")"
done
