"""The picture of `keyspace-amqp status`, docs/status.svg: `make picture`.

Made in a real run: a private Redis Cluster and a private RabbitMQ, a client that writes more and
less in turn, and an outage of the broker. The picture is what the command shows at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import pathlib
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from keyspace_amqp.demo.servers import RabbitServer, RedisCluster, RedisServer
from keyspace_amqp.tools import nodes, status
from tests.fix_servers import MODULE, ROOT, Mailbox, arguments_for

PICTURE = ROOT / "docs" / "status.svg"
# Seconds: of the whole run, which is what the graphs show, and of its parts.
BEFORE, OUTAGE, WHOLE = 70, 25, 175
# The rate of the writes goes up and down between these, in so many seconds.
LEAST, MOST, WAVE = 150, 650, 50
WIDTH, HEIGHT = 96, 30
# Without the fonts that the picture would get from elsewhere.
FORM = re.sub(r"@font-face {{.*?}}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


@contextlib.contextmanager
def written(client: Any) -> Iterator[None]:
    """Writes within the `with`."""
    end = threading.Event()

    def write() -> None:
        began = due = time.monotonic()
        number = 0
        while not end.wait(max(0.0, due - time.monotonic())):
            # A client that is late, because the machine is busy, does not catch up.
            due = max(due, time.monotonic() - 0.1)
            wave = (1 - math.cos((due - began) / WAVE * math.tau)) / 2
            due += 1 / (LEAST + (MOST - LEAST) * wave)
            client.set(f"reading:{number % 10000}", number)
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def svg(view: status.View, width: int = WIDTH, height: int = HEIGHT) -> str:
    """A picture of the view as it is now."""
    console = Console(
        record=True,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        width=width,
        height=height,
        legacy_windows=False,
        _environ={},
    )
    console.print(view.shown(console))
    return console.export_svg(
        title="keyspace-amqp status", code_format=FORM, unique_id="keyspace-amqp-status"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.picture", description=__doc__)
    parser.add_argument("--to", type=pathlib.Path, default=PICTURE)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(RabbitServer(folder / "broker"))
        mailbox = Mailbox(broker).keep()
        names = iter(range(100))

        def make(lines: Any) -> RedisServer:
            words = [str(word) for word in (MODULE, *arguments_for(broker, mailbox))]
            return RedisServer(folder / f"redis-{next(names)}", module=words, options=lines)

        cluster = RedisCluster(make)
        stack.callback(cluster.stop)
        cluster.start()
        stack.enter_context(written(cluster.client()))
        first = cluster.nodes[0].port
        group = stack.enter_context(
            nodes.Group(argparse.Namespace(redis=f"redis://127.0.0.1:{first}"), status.TIMEOUT)
        )
        view = status.View(group, 1.0)
        began = time.monotonic()

        def watch(until: float) -> None:
            while (now := time.monotonic()) < began + until:
                view.look()
                time.sleep(max(0.0, now + 1.0 - time.monotonic()))

        watch(BEFORE)
        broker.kill()
        watch(BEFORE + OUTAGE)
        starting = threading.Thread(target=broker.start)
        starting.start()
        watch(WHOLE)
        starting.join()
        options.to.write_text(svg(view))


if __name__ == "__main__":
    main()
