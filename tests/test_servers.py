"""The table of servers is right: each server is there, and has the version of the table."""

from __future__ import annotations

import pathlib
import platform

import pytest

from tests import servers


@pytest.mark.parametrize("name", servers.ALL)
def test_a_server_is_what_its_name_says(name: str) -> None:
    version = servers.version_of(servers.program(name))
    assert version.rpartition(".")[0] == name.partition("-")[2]


@pytest.mark.parametrize("package", [*servers.PACKAGES, servers.OLD], ids=lambda p: p.requirement)
def test_a_package_has_the_version_of_the_table(package: servers.Package) -> None:
    if package.runs_here:
        assert servers.version_of(package.folder / package.program) == package.version


def test_what_debian_has_is_there() -> None:
    """The servers are those of the release. Versions in sid change, so they are not compared."""
    facts = platform.freedesktop_os_release()
    if facts["ID"] != "debian":
        return
    names = {"12": "bookworm", "13": "trixie"}
    release = names.get(facts.get("VERSION_ID", ""), "sid")
    promised = servers.SYSTEMS[release]
    for kind, version in (("redis", promised.redis), ("valkey", promised.valkey)):
        found = [name for name in servers.in_path() if servers.kind_of(name) == kind]
        if release == "sid":
            assert found, f"{kind}-server is missing; `make setup` installs it"
        else:
            assert found == ([f"{kind}-{version.rpartition('.')[0]}"] if version else [])


def test_a_server_in_path_is_known_by_its_version(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (
        ("redis-server", "Redis server v=7.4.11 sha=00000000:0 malloc=libc bits=64 build=1"),
        ("valkey-server", "Valkey server v=9.10.2 sha=00000000:1 malloc=libc bits=64 build=1"),
    ):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho '{text}'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = {"redis-7.4": str(tmp_path / "redis-server"),
             "valkey-9.10": str(tmp_path / "valkey-server")}  # fmt: skip
    assert servers.in_path() == found
    servers.here.cache_clear()
    names = list(servers.here())
    redis = [name for name in names if servers.kind_of(name) == "redis"]
    assert names == redis + [name for name in names if servers.kind_of(name) == "valkey"]
    assert redis[0] == "redis-7.4"
    assert names[-1] == "valkey-9.10"  # after 9.1
    with pytest.raises(servers.MissingServer, match=r"redis-8.2 is missing, at .*make setup"):
        servers.program("redis-8.2")
    with pytest.raises(
        servers.MissingServer, match=r"this system has no redis-7\.0, but redis-7\.4, "
    ):
        servers.program("redis-7.0")
    monkeypatch.undo()
    servers.here.cache_clear()


def test_the_tests_of_ci_are_there() -> None:
    for system in servers.SYSTEMS.values():
        for path in system.short:
            assert (pathlib.Path(__file__).parents[1] / path).exists()


def test_what_is_no_server(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "redis-server"
    with pytest.raises(servers.MissingServer, match="cannot be run"):
        servers.version_of(program)
    program.write_text("#!/bin/sh\necho none\n")
    program.chmod(0o755)
    with pytest.raises(servers.MissingServer, match="does not say v="):
        servers.version_of(program)


def test_versions() -> None:
    assert servers.at_least("redis-7.0", "7.0")
    assert servers.at_least("redis-8.10", "8.2")
    assert not servers.at_least("redis-8.2", "8.10")
    assert not servers.at_least("valkey-9.1", "7.0")  # in no Valkey
    assert servers.at_least("valkey-9.1", valkey="9.0")
