"""The demo with a Redis Cluster: six nodes, one queue, a failover and slots that move.

It starts three primaries with a replica each and a RabbitMQ, shows events of all primaries
in one queue and commands that reach all nodes, kills the broker under a stream of writes,
then a primary, moves all slots of another primary to a third, starts the broker again, and
compares what was written with what arrived.

Never imported inside Redis.
"""

from __future__ import annotations

import itertools
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from ..cluster.slots import SLOTS
from ..tools.replies import decoded, mapping, stats
from .base import Demo, Workshop
from .books import CAME, WAITING, WENT, at_rest, balance, compare
from .screen import BooksTable, plain_table, shown
from .servers import RedisCluster, RedisServer, ServerError
from .threads import PATIENCE, READING, WRITES_PER_SECOND, Task, Writer

# Seconds of writes: before the outage; and in the outage, before a primary dies and again
# after its replica was promoted.
BEFORE_OUTAGE = 1.0
OUTAGE = 2.0
MASK = "^" + READING


class ClusterDemo(Demo):
    """One run of the demo with a cluster.

    Four primaries play a part: `_killed` dies and `_promoted`, its replica, takes over;
    `_source` gives all its slots to `_target`. Most likely failure, besides those of `Demo`:
    on a busy machine the cluster does not settle in time (TimeoutError).
    """

    def __init__(self, workshop: Workshop) -> None:
        super().__init__(workshop, "$")
        names = (workshop.folder / f"node-{number}" for number in itertools.count(1))
        self._cluster = RedisCluster(
            lambda options: RedisServer(
                next(names), module=[str(workshop.module), *self._arguments], options=options
            ),
            node_timeout_ms=RedisCluster.LONG_NODE_TIMEOUT_MS,
        )
        self._stack.callback(self._end_nodes)
        self._clients: dict[int, Any] = {node.port: node.client() for node in self.servers()}
        self._events: list[bytes] = []
        self._wrong: dict[str, object] = {}

    def run(self) -> bool:
        """Run all parts. True if nothing was lost or unexpected."""
        self._start()
        self._show_events()
        self._show_spread()
        self._show_outage()
        return self._show_books()

    def servers(self) -> Sequence[RedisServer]:
        return self._cluster.nodes

    def hints(self) -> str:
        cli = f"redis-cli -c -p {self._target.port}"
        return (
            f"Redis     {cli}\n\nTry this in another terminal:\n\n"
            f"  {cli} SET {READING}hello world\n"
            f"  {cli} -3 KEYSPACEAMQP.CLUSTER\n"
            f"  {cli} -3 KEYSPACEAMQP.STATS CLUSTER"
        )

    # ---- the parts -------------------------------------------------------------

    def _start(self) -> None:
        self._screen.title("1. A private Redis Cluster and a private RabbitMQ")
        self._screen.say("Six Redis nodes and RabbitMQ start now, on free ports of loopback.")
        start = time.monotonic()
        self._broker.spawn()
        self._cluster.start()
        self._open_queue()
        self._killed, self._source, self._target = self._cluster.primaries()
        self._promoted = self._cluster.replica_of(self._killed)
        self._wait(
            lambda: len(self._nodes()) == len(self.servers()),
            f"a node knows all {len(self.servers())} nodes",
            lambda: f"KEYSPACEAMQP.CLUSTER says {self._nodes()}",
        )
        self._screen.say(
            f"Ready after {time.monotonic() - start:.1f} s. The line in redis.conf of each node:\n"
        )
        self._say_loadmodule()
        self._screen.say(
            "$: events of strings; 2: persistent messages. One node is told to connect:\n"
        )
        self._run_everywhere("KEYSPACEAMQP.CONNECT")
        self._wait(
            lambda: [row["state"] for row in self._nodes()].count("connected") == 3,
            "the three primaries are connected to RabbitMQ",
            lambda: f"KEYSPACEAMQP.CLUSTER says {self._nodes()}",
        )
        self._screen.say(
            "\nThe command has reached all nodes. Replicas do not connect. KEYSPACEAMQP.CLUSTER:\n"
        )
        table = plain_table()
        columns = ("address", "role", "state", "fallback_length", "config_version")
        for column in columns:
            table.add_column(column)
        for row in self._nodes():
            table.add_row(*(Text(str(row[column])) for column in columns))
        self._screen.table(table)

    def _show_events(self) -> None:
        self._screen.title("2. Events of three primaries in one queue")
        client: Any = self._cluster.client()
        messages = self._consumer.messages
        table = plain_table()
        table.add_column("Redis command")
        table.add_column("primary", style="cyan")
        table.add_column("message body", style="green")
        table.add_column("message_id", style="dim")
        table.add_column("after", justify="right", no_wrap=True)
        keys = self._key_of_each_primary(client)
        for port, key in keys.items():
            start = time.perf_counter()
            client.set(key, "Ada")
            self._events.append(b"0\nset\n" + key.encode())
            self._wait(
                lambda: len(messages) >= len(self._events),
                f"a message for each of {len(self._events)} events",
                lambda: f"{len(messages)} came",
            )
            message = messages[-1]
            table.add_row(
                Text(f"SET {key} Ada"),
                f":{port}",
                Text(shown(message.body)),
                Text(message.id),
                f"{(message.at - start) * 1000:.1f} ms",
            )
        self._screen.table(table)
        self._unwanted = list(keys.values())
        self._screen.say("\nThe first half of a message_id tells which node it is from.")

    def _key_of_each_primary(self, client: Any) -> dict[int, str]:
        """Return a key that belongs to each primary, by the primary's port."""
        keys: dict[int, str] = {}
        for number in itertools.count(1):
            key = f"user:{number}"
            keys.setdefault(client.get_node_from_key(key).port, key)
            if len(keys) == 3:
                break
        return keys

    def _show_spread(self) -> None:
        self._screen.title("3. A command to one node reaches all")
        self._run_everywhere("KEYSPACEAMQP.KEYMASK", "SET", MASK)
        self._command(self._source, "KEYSPACEAMQP.KEYMASK", "LIST")
        client = self._cluster.client()
        for key in self._unwanted:
            client.set(key, "Bob")
        self._screen.say(
            f"\nFrom now on, {', '.join(self._unwanted)} and the like cause no messages."
        )

    def _show_outage(self) -> None:
        self._screen.title("4. The broker dies, a primary dies, slots move, the broker comes back")
        self._screen.say(
            f"A client now sets {WRITES_PER_SECOND} keys a second, all over the slots.\n"
        )
        self._columns = [self._killed, self._promoted, self._source, self._target]
        self._began = time.monotonic()
        self._writers: list[Writer] = []
        self._start_writing()
        self._screen.say("                            in the list of", "bold")
        ports = "".join(f"{f':{node.port}':>9}" for node in self._columns)
        self._screen.say(f"   time       SETs  received{ports}", "bold")
        self._print_rows_for(BEFORE_OUTAGE)
        self._kill_broker()
        self._print_rows_for(OUTAGE)
        self._stop_writing()
        self._fail_over()
        self._start_writing()
        self._print_rows_for(OUTAGE)
        self._move_slots()
        self._start_broker()
        self._print_rows(self._drained)
        self._screen.say_happening("the lists are empty: all of it was confirmed", "green")
        self._print_rows_for(1.0)
        self._stop_writing()

    def _fail_over(self) -> None:
        """Kill a primary once its replica has everything: a promoted replica has what
        replication has brought it, and no more."""
        killed, promoted = self._clients[self._killed.port], self._clients[self._promoted.port]

        def replicated() -> bool:
            self._last_stats = stats(killed)
            length = promoted.execute_command("KEYSPACEAMQP.FALLBACK", "LEN", "LOCAL")
            return bool(
                length == self._last_stats["fallback_length"]
                and not self._last_stats["queue_length"]
                and not self._last_stats["in_flight"]
            )

        self._screen.say_happening("the writes stop until the replica has the list", "yellow")
        self._wait(
            replicated, "the replica has the list", lambda: f"its primary has {self._last_stats}"
        )
        primaries = (self._killed, self._source, self._target)
        self._wrong["a primary had no list"] = not all(map(self._length, primaries))
        self._killed.kill()
        self._screen.say_happening(f"kill -9 the primary :{self._killed.port}", "red")
        expected = self._last_stats["fallback_length"]
        self._print_rows(lambda: stats(promoted)["fallback_length"] == expected)
        self._cluster.wait_settled()
        self._screen.say_happening(
            f"its replica :{self._promoted.port} is the primary, and has the list; the writes "
            "go on",
            "green",
        )

    def _move_slots(self) -> None:
        """Move all slots of one primary to another; its list moves with its slot."""
        source, target = self._source, self._target
        words = self._cluster.reshard_words(source, target, SLOTS)
        self._screen.say_happening(
            f"all slots of :{source.port} move to :{target.port}, by this command:", "yellow"
        )
        self._screen.command(f"redis-cli --cluster {shlex.join(words)}")
        task = self._start_thread(Task(lambda: self._cluster.cli(*words)))
        self._print_rows(lambda: not task.is_alive())
        self._check_threads()
        self._cluster.wait_settled()
        self._print_rows(lambda: self._length(source) == 0)
        self._screen.say_happening(f"done; :{target.port} has two lists now:", "green")
        found = self._command(target, "--scan", "--pattern", "keyspaceamqp:*")
        self._wrong["the list did not move with its slot"] = len(found.split()) != 2

    def _show_books(self) -> bool:
        self._screen.title("5. The books")
        asked = self._clients[self._target.port]
        self._wait(
            lambda: at_rest(stats(asked, "CLUSTER")),
            "the modules have delivered everything",
            lambda: f"STATS CLUSTER is {stats(asked, 'CLUSTER')}",
        )
        self._fence_consumer()
        for writer in self._writers:
            self._events += writer.events()
        result = compare(self._events, [m.body for m in self._consumer.messages])
        table = BooksTable()
        self._add_comparison(table, len(self._events), "caused by what was written", result)
        self._add_repeated(table)
        self._screen.table(table.table)

        total = stats(asked, "CLUSTER")
        running = {
            node.port: stats(self._clients[node.port]) for node in self.servers() if node.running
        }
        self._say_nodes(running, total)
        matched = self._last_stats["events_matched"] + total["events_matched"]
        reasons = {
            f"{result.lost.total()} lost": result.lost,
            f"{result.unexpected.total()} unexpected": result.unexpected,
            "the modules did not count each event": matched != len(self._events),
            "the counters of a node do not balance": any(
                map(balance, [self._last_stats, *running.values()])
            ),
            "STATS CLUSTER is not the sum of the nodes": any(
                total[name] != sum(numbers[name] for numbers in running.values())
                for name in (*CAME, *WENT)
            ),
            "something was dropped": total["dropped"] or self._last_stats["dropped"],
            "STATS CLUSTER did not ask all nodes that run": total["nodes"] != len(running),
            **self._wrong,
        }
        return self._judge(reasons, "Nothing lost, by broker, primary or move.")

    def _say_nodes(
        self, running: Mapping[int, Mapping[str, Any]], total: Mapping[str, Any]
    ) -> None:
        """Print the books of each node that was a primary, and of all nodes together.
        `running`: STATS by port; `total`: STATS CLUSTER."""
        killed, promoted, source, target = (node.port for node in self._columns)
        missing = ", ".join(decoded(item) for item in total["missing"])
        lines: list[tuple[str, Mapping[str, Any], str]] = [
            (f":{killed}", self._last_stats, "before it was killed"),
            (f":{promoted}", running[promoted], "took over that list"),
            (f":{source}", running[source], "its list moved away"),
            (f":{target}", running[target], "received that list"),
            ("STATS CLUSTER", total, f"{total['nodes']} nodes of {total['of']}"),
        ]
        table = plain_table()
        table.add_column("node")
        columns = (*CAME, "confirmed", "dropped", "waiting")
        for column in columns:
            table.add_column(column, justify="right")
        table.add_column("", no_wrap=True)
        for name, numbers, remark in lines:
            figures = {**numbers, "waiting": sum(numbers[each] for each in WAITING)}
            table.add_row(name, *(f"{figures[column]:,}" for column in columns), remark)
        self._screen.say(
            "\nOn each line, events_matched + fallback_found = confirmed + dropped + waiting:\n"
        )
        self._screen.table(table)
        self._screen.say(
            f"\nMissing: {missing}. STATS CLUSTER adds up the nodes that answer. The counters of "
            "a node end with it, so what the dead primary had confirmed is in no sum. What waited "
            "in its list, its replica has found."
        )

    # ---- used by the parts -------------------------------------------------------

    def _run_everywhere(self, *words: str) -> None:
        """Give one node a command that reaches all nodes, and print its reply."""
        reply = self._command(self._killed, *words)
        if f'"nodes" => (integer) {len(self.servers())}' not in reply:
            self._wrong[f"{words[0]} did not reach all nodes"] = True

    def _command(self, node: RedisServer, *words: str) -> str:
        """Run a command with redis-cli; print it and its output, and return the output. Raises
        ServerError."""
        line = ["redis-cli", "-3", "-p", str(node.port), *words]
        self._screen.say(f"$ {shlex.join(line)}", "cyan")
        # As in a terminal.
        done = subprocess.run(
            [*line[:1], "--no-raw", *line[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode != 0:
            raise ServerError(f"{shlex.join(line)}: {done.stdout}{done.stderr}")
        self._screen.say(done.stdout.rstrip())
        return done.stdout

    def _nodes(self) -> list[dict[str, Any]]:
        """Return the rows of KEYSPACEAMQP.CLUSTER."""
        reply = self._clients[self._target.port].execute_command("KEYSPACEAMQP.CLUSTER")
        return [mapping(row) for row in reply]

    def _start_writing(self) -> None:
        """Start a writer whose numbers follow those of the last one."""
        first = sum(len(writer.answers) for writer in self._writers)
        self._writers.append(self._start_thread(Writer(self._cluster.client(), first)))

    def _stop_writing(self) -> None:
        self._writers[-1].end()
        self._check_threads()

    def _length(self, node: RedisServer) -> int:
        return int(stats(self._clients[node.port])["fallback_length"])

    def _drained(self) -> bool:
        serving = (self._promoted, self._target)
        states = [stats(self._clients[node.port])["state"] for node in serving]
        return states == ["connected"] * 2 and not any(map(self._length, self._columns[1:]))

    def _row(self) -> Text:
        answers = sum(len(writer.answers) for writer in self._writers)
        line = Text(f"{answers:7,}  {len(self._consumer.messages):8,}")
        for node in self._columns:
            line.append(f"{self._list_cell(node):>9}")
        return line

    def _list_cell(self, node: RedisServer) -> str:
        """Return a node's cell in the running table."""
        if not node.running:
            return "dead"
        numbers = stats(self._clients[node.port])
        return "replica" if numbers["state"] == "replica" else f"{numbers['fallback_length']:,}"

    def _end_nodes(self) -> None:
        for node in self.servers():
            node.kill()  # its data goes with the folder
