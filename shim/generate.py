"""Build step: writes what the C files need from the tables in Python.

    python generate.py OUTPUT_FOLDER

`tables.h`: parameters, counters, commands and their documentation, so that each
of them is written down once, in keyspace_amqp. `handler.c`: the module
`_keyspace_amqp` (ffi, lib) that cffi makes from api.h.
"""

from __future__ import annotations

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import cffi  # noqa: E402  # after the path is set

import keyspace_amqp  # noqa: E402
from keyspace_amqp.tables.commands import COMMANDS, Argument  # noqa: E402
from keyspace_amqp.tables.events import ALL_CLASSES, EVENT_CLASSES  # noqa: E402
from keyspace_amqp.tables.parameters import (  # noqa: E402
    INT64_MAX,
    MASK_BYTES,
    PARAMETERS,
    Kind,
)
from keyspace_amqp.tables.stats import FIRST_REASON, Stat, Text  # noqa: E402

MADE = "/* Made by generate.py from the tables in keyspace_amqp. */\n"


def quoted(text: str | None) -> str:
    return "NULL" if text is None else json.dumps(text)


def number(value: int) -> str:
    return "(-9223372036854775807LL - 1)" if value < -INT64_MAX else f"{value}LL"


def c_kind(kind: Kind) -> str:
    """The kind as shim/parameters.h has it; a switch is a text with a pattern."""
    return f"PARAMETER_{Kind.TEXT.name if kind is Kind.SWITCH else kind.name}"


def event_classes() -> str:
    """The letters of `events` with their bits in REDISMODULE_NOTIFY_*."""
    bits = {event_class.letter: 1 << event_class.bit for event_class in EVENT_CLASSES}
    bits["A"] = sum(bits[letter] for letter in ALL_CLASSES)
    rows = (f"{{'{letter}', {value:#x}}}" for letter, value in bits.items())
    return f"#define EVENT_CLASSES {{{', '.join(rows)}}}"


def parameters() -> str:
    rows = [
        f"    {{{quoted(s.name)}, {c_kind(s.kind)}, {quoted(s.default)}, {number(s.minimum)}, "
        f"{number(s.maximum)}, {int(s.sensitive)}, {quoted(s.accepted)}, "
        f"{quoted(f'^({s.pattern})$' if s.pattern else '')}}},"
        for s in PARAMETERS
    ]
    places = [
        f"#define PARAMETER_INDEX_{s.name.upper().replace('-', '_')} {i}"
        for i, s in enumerate(PARAMETERS)
    ]
    return "\n".join(
        [
            event_classes(),
            f"#define MASK_BYTES {MASK_BYTES}",
            f"#define PARAMETERS_COUNT {len(PARAMETERS)}",
            *places,
            "static const parameter_t PARAMETERS[PARAMETERS_COUNT] = {",
            *rows,
            "};",
        ]
    )


def stats() -> str:
    return "\n".join(
        [
            f"#define STATS_COUNT {len(Stat)}",
            f"#define TEXTS_COUNT {len(Text)}",
            *(f"#define STAT_{stat.name} {stat.value}" for stat in Stat),
            f"#define STAT_FIRST_REASON {FIRST_REASON.value}",
            "static const char *const STAT_NAMES[STATS_COUNT] = {",
            *(f"    {quoted(stat.name.lower())}," for stat in Stat),
            "};",
            "static const char *const TEXT_NAMES[TEXTS_COUNT] = {",
            *(f"    {quoted(text.name.lower())}," for text in Text),
            "};",
        ]
    )


def arguments(name: str, items: tuple[Argument, ...], out: list[str]) -> str:
    """Adds the array of some arguments, the inner ones first; its C name."""
    if not items:
        return "NULL"
    rows = []
    for i, item in enumerate(items):
        inner = arguments(f"{name}_{i}", item.arguments, out)
        flags = " | ".join(
            f"REDISMODULE_CMD_ARG_{flag}"
            for flag, on in (("OPTIONAL", item.optional), ("MULTIPLE", item.multiple))
            if on
        )
        rows.append(
            f"    {{.name = {quoted(item.name)}, .type = REDISMODULE_ARG_TYPE_{item.type}, "
            f".key_spec_index = -1, .token = {quoted(item.token)}, "
            f".flags = {flags or 'REDISMODULE_CMD_ARG_NONE'}, .subargs = {inner}}},"
        )
    out.append(f"static RedisModuleCommandArg {name}[] = {{\n" + "\n".join(rows) + "\n    {0}};")
    return name


def commands() -> str:
    out: list[str] = []
    rows = [
        f"    {{{quoted('keyspaceamqp.' + c.name.lower())}, {quoted(c.summary)}, "
        f"{quoted(c.complexity)}, {quoted(c.flags)}, {quoted(c.acl_categories)}, "
        f"{arguments('ARGUMENTS_' + c.name, c.arguments, out)}}},"
        for c in COMMANDS
    ]
    lines = ["KEYSPACEAMQP.<command>. Commands are:"]
    for command in COMMANDS:
        lines += command.usage
        lines.append(f"    {command.summary}.")
    return "\n".join(
        [
            *out,
            "static const struct {",
            "    const char *name, *summary, *complexity, *flags, *acl_categories;",
            "    RedisModuleCommandArg *args;",
            "} COMMANDS[] = {",
            *rows,
            "};",
            f"#define HELP_LINES_COUNT {len(lines)}",
            "static const char *const HELP_LINES[HELP_LINES_COUNT] = {",
            *(f"    {quoted(line)}," for line in lines),
            "};",
        ]
    )


def version() -> str:
    major, minor, patch = (int(part) for part in keyspace_amqp.__version__.split(".")[:3])
    return "\n".join(
        [
            f"#define MODULE_VERSION {quoted(keyspace_amqp.__version__)}",
            f"#define MODULE_VERSION_NUMBER {major * 10000 + minor * 100 + patch}",
        ]
    )


def write(path: pathlib.Path, text: str) -> None:
    """Writes only what has changed, so that nothing is compiled in vain."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def main(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # parameters.c needs the first table only, module.c all of them.
    module_only = (
        "#ifdef KEYSPACE_AMQP_REDIS_API_H\n"
        + "\n".join(
            [
                version(),
                stats(),
                commands(),
            ]
        )
        + "\n#endif\n"
    )
    write(folder / "tables.h", MADE + parameters() + "\n" + module_only)

    ffi = cffi.FFI()
    api = (HERE / "api.h").read_text().splitlines()
    ffi.cdef("\n".join(line for line in api if not line.startswith("#")))
    # The handler's way in. An exception that reaches it is logged by the handler
    # itself; what it returns then is the error value.
    ffi.cdef('extern "Python" int handler_main(void);')
    ffi.set_source(
        "_keyspace_amqp",
        """
        #include "api.h"
        static int handler_main(void);
        int handler_enter(void) { return handler_main(); }
        """,
    )
    generated = folder / "handler.c.new"
    ffi.emit_c_code(str(generated))
    write(folder / "handler.c", generated.read_text())
    generated.unlink()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
