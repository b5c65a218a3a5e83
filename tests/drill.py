"""Kills, freezes and restarts everything in turn, and compares what a consumer received with what the exchange made.

`make drill`, or `python tests/drill.py --only kill --rate 1000`. Every part is a process of its own: collectors, Redis,
the consumer; the exchange is simulated. Prints a line for each scenario, message by message, and ends with exit code 1
if a limit is broken; then the collectors' logs are kept. The whole takes about ten minutes.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from scenarios import SCENARIOS  # noqa: E402
from stage import Stage  # noqa: E402

UNDER_WAY = 0.1  # seconds from the exchange to the consumer, at most
HEAD = f"{'scenario':<24}{'silence s':>10}{'lost':>7}{'twice':>7}{'disorder':>9}{'foreign':>8}{'delay s':>9}  limits"


def line(scenario, verdict, limits, result):
    total = verdict.total
    return (
        f"{scenario.name:<24}{total.silence:>10.3f}{total.lost:>7}{total.twice:>7}{total.disorder:>9}"
        f"{total.foreign:>8}{total.delay:>9.3f}  {limits}: {result}"
    )


def outside(missing, fault, seconds):
    """How many of these were made later than that after the fault, or before it: but what was under way then."""
    return sum(not fault - UNDER_WAY <= at <= fault + seconds for at in missing)


def play(scenario, rate):
    """Runs one scenario and prints its line; returns whether it kept its limits."""
    with Stage(rate) as stage:
        failed = ""
        try:
            scenario.act(stage)
        except Exception as error:  # also that of a wait: what arrived is worth a look all the same
            failed = str(error).splitlines()[0] or repr(error)
        verdict, events = stage.ends()
        wrong = [failed] if failed else []
        wrong += [f"{name} has a traceback" for name, each in stage.programs.items() if "Traceback" in each.log]
        terms = [event["term"] for _, event in events if event["event"] == "leader"]
        if sorted(set(terms)) != terms:
            wrong.append(f"the terms of the leaders do not rise: {terms}")
    total = verdict.total
    lost = outside(total.missing, stage.fault, scenario.silence) if scenario.hole else total.lost
    limits = f"silence {scenario.silence:g}, lost {scenario.lost * rate:.0f}, twice {scenario.twice * rate:.0f}"
    limits += " beside the hole" if scenario.hole else ""
    good = total.silence <= scenario.silence and lost <= scenario.lost * rate and total.twice <= scenario.twice * rate
    good = good and not (total.disorder or total.foreign or wrong)
    print(line(scenario, verdict, limits, "ok" if good else "FAILED"), flush=True)
    for text in stage.notes + wrong:
        print(f"    {text}", flush=True)
    if good:
        shutil.rmtree(stage.directory)
    else:
        show(stage, verdict, events)
    return good


def show(stage, verdict, events):
    """Prints the evidence of a failure; times are seconds after the fault, or after the beginning."""
    zero = stage.fault or stage.begun
    missing = [at - zero for at in verdict.total.missing]
    if missing:
        print(f"    lost: made from {missing[0]:.3f} to {missing[-1]:.3f} s")
    print(f"    silent from {verdict.total.silent_from - zero:.3f} s; begun at {stage.begun - zero:.3f} s")
    for topic, each in sorted(verdict.topics.items()):
        if each.lost or each.twice or each.disorder or each.foreign:
            print(f"    {topic}: {each}")
    for at, event in events:
        more = {name: value for name, value in event.items() if name not in ("event", "ts", "topics")}
        if at > zero - 1 and event["event"] != "subscribed":
            print(f"    {at - zero:8.3f} s  {event['event']} {more}"[:200])
    print(f"    logs: {stage.directory}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", metavar="NAME", help="scenarios whose names match this regular expression")
    parser.add_argument("--rate", type=float, default=1000, help="messages a second")
    parser.add_argument("--times", type=int, default=1, help="how often to run all of them")
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    options = parser.parse_args()
    chosen = [each for each in SCENARIOS if not options.only or re.search(options.only, each.name)]
    if options.list or not chosen:
        print(*(f"{each.name:<24}{each.about}" for each in SCENARIOS), sep="\n")
        return 0 if options.list else 2
    print(HEAD, flush=True)
    played = chosen * options.times
    failed = [each.name for each in played if not play(each, options.rate)]
    print(f"{len(failed)} of {len(played)} broke a limit: {', '.join(failed)}" if failed else "All kept their limits")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
