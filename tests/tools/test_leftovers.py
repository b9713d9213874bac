"""`keyspace-amqp leftovers`: the events in a file of leftovers, for people and for `replay`."""

from __future__ import annotations

import json
import pathlib

import pytest

from keyspace_amqp.cli import main
from keyspace_amqp.fallback import to_element
from keyspace_amqp.message import Event
from keyspace_amqp.tools.elements import from_line
from keyspace_amqp.worker.leftover_file import Origin, Writer
from tests.worker.fakes import event, valued


def test_the_events_in_a_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture
) -> None:
    """Elements and records, a line each, without those that the masks do not let through."""
    monkeypatch.chdir(tmp_path)
    writer = Writer(pathlib.Path("x.leftover"))
    writer.elements([to_element(Event("run-1", 5, 0, "$", b"set", b"\xff"))] * 3000)
    data = event(b"a") + event(b"b") + valued(b"a2", 9, b"value")
    writer.records(Origin("run", "0", (b"^a",)), range(7, 10), data)
    writer.keep()
    assert main(["leftovers", "x.leftover"]) == 0
    lines = capfdbinary.readouterr().out.splitlines()
    assert len(lines) == 3002
    assert json.loads(lines[0])["key_base64"] == "/w=="
    assert [json.loads(line)["id"] for line in lines[-2:]] == ["run-7", "run-9"]
    assert from_line(lines[-2]) == to_element(Event("run-7", 7, 0, "$", b"set", b"a"))


@pytest.mark.parametrize(
    ("data", "why"), [(b"*3\r\n$5\r\nRPUSH\r\n$2", "incomplete"), (None, "No such file")]
)
def test_a_file_that_cannot_be_read(
    data: bytes | None, why: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.leftover"
    if data is not None:
        path.write_bytes(data)
    assert main(["leftovers", str(path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"keyspace-amqp: {path} cannot be read: ")
    assert why in error
