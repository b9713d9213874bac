"""What the worker takes for an event, and what a server keeps of the memory of many."""

from __future__ import annotations

import time

from .items import MANY_KEYS, Plan
from .measure import flood, resident, thread_ns
from .report import Report
from .rig import Rig


def worker(rig: Rig, plan: Plan, report: Report) -> None:
    report.item(
        "worker",
        f"CPU of the worker thread (/proc, schedstat) for each of {plan.confirmed:,} pipelined "
        "SETs, from the first SET to the last confirm, by turns",
    )
    ports = {"sink": rig.sink, "rabbitmq": rig.broker.port}
    costs: dict[str, list[float]] = {name: [] for name in ports}
    for number in range(-1, plan.rounds):  # round -1 warms up and does not count
        for name, port in ports.items():
            rig.aim(port)
            with rig.books("worker"):
                wanted = rig.stats()["confirmed"] + plan.confirmed
                before = thread_ns(rig.ours.pid, rig.worker)
                flood(rig.ours.port, plan.confirmed, MANY_KEYS)
                rig.until(lambda numbers: numbers["confirmed"] >= wanted)  # noqa: B023
                cost = (thread_ns(rig.ours.pid, rig.worker) - before) / plan.confirmed
            if number >= 0:
                costs[name].append(cost / 1e3)
            rig.client.flushall()
    rig.empty_queue()
    report.row("worker.sink", "with a sink that confirms at once", "µs", costs["sink"])
    report.row("worker.rabbitmq", "with RabbitMQ", "µs", costs["rabbitmq"])


# Seconds in which an allocator may return memory to the system.
_RETURNS = 15.0


def memory_after(rig: Rig, plan: Plan, report: Report) -> None:
    allocator = rig.client.info("memory")["mem_allocator"]
    report.item(
        "resident",
        f"resident memory before {plan.stored:,} events wait in the list, and after they are "
        f"delivered to the sink and the keys are deleted; allocator of the server: {allocator}",
    )
    pid = rig.ours.pid
    rig.aim(rig.sink)
    with rig.books("resident"):  # what the server and the module need for any event
        flood(rig.ours.port, plan.capture)
    rig.client.flushall()
    before = resident(pid)
    rig.aim(rig.nobody)
    with rig.books("resident"):
        flood(rig.ours.port, plan.stored)
        rig.until(lambda numbers: numbers["queue_length"] == 0)
        stored = resident(pid)
        rig.aim(rig.sink)
        rig.until(lambda numbers: numbers["fallback_length"] == 0)
    rig.client.flushall()
    until = time.monotonic() + _RETURNS
    while (after := resident(pid)) > before and time.monotonic() < until:
        time.sleep(0.2)
    report.row(
        "resident.stored", "more with all events in the list", "MB", [(stored - before) / 1e6]
    )
    # glibc's malloc keeps most of it, as for a bare server whose list came and went.
    name = "resident.after" if allocator.startswith("jemalloc") else "resident.after_libc"
    report.row(name, "more after their delivery", "MB", [(after - before) / 1e6])
