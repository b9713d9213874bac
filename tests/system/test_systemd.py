"""What the Debian package and the page add to the units of servers: nothing that forbids a server
what it may do without it."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess

import pytest

from tests.fix_servers import ROOT

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not on this machine"
)

OF_THE_PACKAGE = (ROOT / ".ci" / "debian" / "server.conf").read_text()
(OF_THE_PAGE,) = re.findall(
    r"^```ini\n(# /etc/systemd/system/.*?)^```",
    (ROOT / "docs" / "operations.md").read_text(),
    re.DOTALL | re.MULTILINE,
)
# The sandbox of Debian's units, as far as it is about this.
DEBIAN = """SystemCallFilter=@system-service
SystemCallFilter=~ @privileged @resources
NoExecPaths=/
ExecPaths=/usr/bin/redis-server /usr/lib /lib
"""


def filters(folder: pathlib.Path, unit: str, drop_in: str) -> dict[str, str]:
    """Return what systemd says of each group of system calls for a unit with a drop-in."""
    file = folder / "redis-server.service"
    file.write_text(f"[Service]\nExecStart=/bin/true\n{unit}")
    (folder / "redis-server.service.d").mkdir(exist_ok=True)
    (folder / "redis-server.service.d" / "keyspace-amqp.conf").write_text(drop_in)
    words = ("systemd-analyze", "security", "--offline=true", "--json=short", str(file))
    done = subprocess.run(words, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    each = json.loads(done.stdout)
    return {e["name"]: e["description"] for e in each if e["name"].startswith("SystemCallFilter")}


@pytest.mark.parametrize("drop_in", [OF_THE_PACKAGE, OF_THE_PAGE], ids=["package", "page"])
def test_a_unit_without_a_filter_gets_none(tmp_path: pathlib.Path, drop_in: str) -> None:
    """Such as that of another package, or of an administrator. A list of one system call that is
    allowed would end the server at its start."""
    assert filters(tmp_path, "", drop_in) == filters(tmp_path, "", "")


@pytest.mark.parametrize("drop_in", [OF_THE_PACKAGE, OF_THE_PAGE], ids=["package", "page"])
def test_debians_units_allow_one_call_more(tmp_path: pathlib.Path, drop_in: str) -> None:
    before, after = (filters(tmp_path, DEBIAN, text) for text in ("", drop_in))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"SystemCallFilter=~@resources"}
    assert "setpriority" in after["SystemCallFilter=~@resources"]


def test_the_path_of_the_module_may_be_executed() -> None:
    """/opt/keyspace-amqp, which the pages use."""
    assert "ExecPaths=/opt/keyspace-amqp\n" in OF_THE_PAGE
