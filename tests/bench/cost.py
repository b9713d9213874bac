"""The cost of the worker for an event."""

from __future__ import annotations

from .items import MANY_KEYS, Plan
from .measure import flood, thread_ns
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
