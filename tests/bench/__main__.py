"""The command line of the benchmarks: see `--help`.

Exit code: 0; 1 if a target is missed by far (see targets.py) or a program is missing; 2 if an
event was lost.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from keyspace_amqp.demo.servers import ServerError
from tests.fix_servers import MODULE
from tests.servers import ALL, REDIS

from . import cost, draw, items, measure, modes, scale, tail
from .items import FULL, QUICK, Plan
from .measure import BenchError, LostEvents
from .report import Report
from .rig import Rig

FLOODS = ("broker", "sink", "masks", "away")
NOT_QUICK = ("instructions", "tail", "worker", "scale", "resident", "outbox")
# The outage is last, because it kills the broker. `items.floods` measures all FLOODS in one go,
# at the place of the first.
ITEMS = {
    "capture": items.capture,
    "instructions": items.instructions,
    **dict.fromkeys(FLOODS),
    "steady": items.at_fixed_rate,
    "tail": tail.tail,
    "confirmed": items.confirmed,
    "worker": cost.worker,
    "scale": scale.scale,
    "delay": items.delay,
    "drain": items.drain,
    "memory": items.memory,
    "resident": cost.memory_after,
    "load": items.load,
    "outbox": modes.outbox,
    "outage": items.outage,
}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Benchmarks side by side with a bare server."
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--only", nargs="+", choices=ITEMS, metavar="NAME",
                        help=f"only these of {', '.join(ITEMS)}")  # fmt: skip
    parser.add_argument("--rounds", type=int, help="rounds of each item that has rounds")
    parser.add_argument("--server", choices=ALL, default=REDIS)
    parser.add_argument("--json", type=pathlib.Path, default=measure.ROOT / "build/bench.json")
    parser.add_argument("--svg", type=pathlib.Path, help="default: beside the JSON")
    options = parser.parse_args()
    options.only = options.only or [
        name for name in ITEMS if not (options.quick and name in NOT_QUICK)
    ]
    options.svg = options.svg or options.json.with_suffix(".svg")
    return options


def _run(plan: Plan, chosen: Sequence[str], family: str, report: Report) -> list[str]:
    """Measure the chosen items. Return what was lost. Raises BenchError, ServerError."""
    measure.build()
    if not MODULE.exists():
        raise BenchError(f"{MODULE} is not built: run `make build`")
    with tempfile.TemporaryDirectory(prefix="keyspace-amqp-") as folder:
        with Rig(pathlib.Path(folder), family) as rig:
            flooded = [name for name in chosen if name in FLOODS]
            try:
                for name, measured in ITEMS.items():
                    if name in chosen and measured is not None:
                        measured(rig, plan, report)
                    elif flooded and name == FLOODS[0]:
                        items.floods(rig, plan, report, flooded)
            except LostEvents as error:  # the next items would start with wrong books
                rig.losses.append(str(error))
                print(f"EVENTS LOST: {error}", file=sys.stderr)
            return rig.losses


def main() -> int:
    options = _options()
    # SIGTERM acts like Ctrl-C, so that the servers end with the run.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plan = QUICK if options.quick else FULL
    if options.rounds:
        plan = dataclasses.replace(plan, rounds=options.rounds)
    report = Report()
    start, others = time.monotonic(), [measure.machine_busy()]
    print(
        f"{options.server}, {len(os.sched_getaffinity(0))} cores, of which others use "
        f"{others[0]:.0f} % now; each item in {plan.rounds} rounds unless it says otherwise\n"
    )
    try:
        report.heading()
        losses = _run(plan, options.only, options.server, report)
    except (BenchError, ServerError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    others.append(measure.machine_busy())
    about: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "seconds": round(time.monotonic() - start),
        "server": options.server,
        "quick": options.quick,
        "plan": dataclasses.asdict(plan),
        "cores": len(os.sched_getaffinity(0)),
        "machine": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "busy_percent_before_and_after": others,
        "losses": losses,
    }
    report.write(options.json, about)
    draw.write(report, options.svg)
    if panels := report.series.get("scale"):
        beside = options.json.with_name("scale.svg")
        draw.write_scale(panels, beside)
        beside.with_suffix(".md").write_text(scale.table(panels))
    print(
        f"\n{options.json} and {options.svg.name}, after {about['seconds']} seconds; "
        f"others use {others[1]:.0f} % of the cores now"
    )
    verdicts = {name: report.names(name) for name in ("met", "missed", "GROSS")}
    for name, rows in verdicts.items():
        print(f"{name}: {', '.join(rows) or 'none'}")
    if losses:
        print(f"EVENTS LOST in {len(losses)} rounds, see above", file=sys.stderr)
    return 2 if losses else int(bool(verdicts["GROSS"]))


if __name__ == "__main__":
    sys.exit(main())
