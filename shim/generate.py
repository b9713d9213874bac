"""Write the C files that are made from Python: a step of the build.

    python generate.py OUTPUT_FOLDER

`tables.h` and `tables.c`: the tables of keyspace_amqp (parameters, counters, commands and
their documentation, classes of events, keys, times), so that each fact is written down
once. `handler.c`: the module `_keyspace_amqp` (ffi, lib), which cffi makes from api.h.
"""

from __future__ import annotations

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import cffi  # noqa: E402  # after the path is set

import keyspace_amqp  # noqa: E402
from keyspace_amqp.tables import keys, times  # noqa: E402
from keyspace_amqp.tables.advice import ADVICE, Advice  # noqa: E402
from keyspace_amqp.tables.commands import COMMANDS, Argument, CommandSpec  # noqa: E402
from keyspace_amqp.tables.events import (  # noqa: E402
    CLASS_LETTERS,
    EVENT_CLASSES,
    OTHER_BITS,
    SNAPSHOT,
    UNKNOWN_CLASS,
    UNKNOWN_TYPE,
    VALUE_TYPES,
)
from keyspace_amqp.tables.parameters import (  # noqa: E402
    INDEX,
    INT64_MAX,
    MASK_BYTES,
    PARAMETERS,
    SUBKEYS_BYTES,
    Kind,
    Parameter,
)
from keyspace_amqp.tables.stats import FIRST_REASON, Stat, Text  # noqa: E402

HEAD = "/* Made by shim/generate.py from the tables in keyspace_amqp. */"
# The limits of tables/times.py that C needs.
TIMES = ("READY", "STOP", "STOP_LIMIT", "SAVE", "SAVE_LIMIT", "COMMAND")

DECLARATIONS = """
/* A command and its documentation. */
struct RedisModuleCommandArg;
typedef struct {
    const char *name, *summary, *complexity, *flags, *acl_categories;
    struct RedisModuleCommandArg *arguments;
} command_spec_t;

extern const parameter_t PARAMETERS[PARAMETERS_COUNT];
extern const advice_t ADVICE[ADVICE_COUNT];
extern const event_class_t EVENT_CLASSES[EVENT_CLASSES_COUNT];
extern const char *const VALUE_TYPES[VALUE_TYPES_COUNT];
extern const char *const STAT_NAMES[STATS_COUNT];
extern const char *const TEXT_NAMES[TEXTS_COUNT];
extern const command_spec_t COMMANDS[COMMANDS_COUNT];
extern const char *const HELP_LINES[HELP_LINES_COUNT];
"""


def quoted(text: str | None) -> str:
    """Return a C string, or NULL."""
    return "NULL" if text is None else json.dumps(text)


def number(value: int) -> str:
    """Return a C constant of type long long."""
    return "(-9223372036854775807LL - 1)" if value < -INT64_MAX else f"{value}LL"


def array(declaration: str, rows: list[str]) -> str:
    """Return the definition of an array with one row a line."""
    return "\n".join([f"{declaration} = {{", *(f"    {row}," for row in rows), "};"])


# ---- tables.h -----------------------------------------------------------------------


def header() -> str:
    """Return tables.h: constants, and the declarations of the arrays."""
    guard = "KEYSPACE_AMQP_TABLES_H"
    lines = [HEAD, f"#ifndef {guard}", f"#define {guard}", '#include "parameters.h"', ""]
    return "\n".join([*lines, defines(), DECLARATIONS, "#endif", ""])


def defines() -> str:
    """Return the constants, as #define lines."""
    major, minor, patch = (int(part) for part in keyspace_amqp.__version__.split(".")[:3])
    constants: dict[str, str | int] = {
        "MODULE_VERSION": quoted(keyspace_amqp.__version__),
        "MODULE_VERSION_NUMBER": major * 10000 + minor * 100 + patch,
        "OWN_KEY_PREFIX": quoted(keys.PREFIX.decode()),
        "OWN_KEY_SUFFIX": quoted(keys.SUFFIX.decode()),
        "OWN_KEY_REFUSED_SUFFIX": quoted(keys.REFUSED_SUFFIX.decode()),
        "MASK_BYTES": MASK_BYTES,
        "SUBKEYS_BYTES": SUBKEYS_BYTES,
        "PARAMETERS_COUNT": len(PARAMETERS),
        "ADVICE_COUNT": len(ADVICE),
        "EVENT_CLASSES_COUNT": len(classes()),
        "CLASS_LETTERS": quoted(CLASS_LETTERS),
        "UNKNOWN_CLASS": f"'{UNKNOWN_CLASS}'",
        "SNAPSHOT_BIT": SNAPSHOT.bit,
        "VALUE_TYPES_COUNT": len(VALUE_TYPES),
        "UNKNOWN_TYPE": quoted(UNKNOWN_TYPE),
        "EVENT_BITS": hex(sum(1 << c.bit for c in EVENT_CLASSES)),
        "EVENT_BITS_EVERYWHERE": hex(sum(1 << c.bit for c in EVENT_CLASSES if not c.since)),
        "EVENT_BITS_OTHER": hex(sum(1 << bit for bit in OTHER_BITS)),
        "STATS_COUNT": len(Stat),
        "TEXTS_COUNT": len(Text),
        "STAT_FIRST_REASON": FIRST_REASON.value,
        "COMMANDS_COUNT": len(COMMANDS),
        "HELP_LINES_COUNT": len(help_lines()),
    }
    for name in TIMES:
        constants[f"{name}_MS"] = round(getattr(times, name) * 1000)
    for index, parameter in enumerate(PARAMETERS):
        constants[f"PARAMETER_INDEX_{parameter.name.upper().replace('-', '_')}"] = index
    for stat in Stat:
        constants[f"STAT_{stat.name}"] = stat.value
    for text in Text:
        constants[f"TEXT_{text.name}"] = text.value
    return "\n".join(f"#define {name} {value}" for name, value in constants.items())


# ---- tables.c -----------------------------------------------------------------------


def parameter_row(parameter: Parameter) -> str:
    pattern = f"^({parameter.pattern})$" if parameter.pattern else ""
    fields = [
        quoted(parameter.name),
        f"PARAMETER_{Kind.TEXT.name if parameter.kind is Kind.SWITCH else parameter.kind.name}",
        quoted(parameter.default),
        number(parameter.minimum),
        number(parameter.maximum),
        str(int(parameter.sensitive)),
        quoted(parameter.accepted),
        quoted(pattern),
    ]
    return "{" + ", ".join(fields) + "}"


def advice_row(advice: Advice) -> str:
    fields = [
        str(INDEX[advice.parameter]),
        quoted(advice.pattern),
        quoted(advice.text),
        str(int(advice.found)),
    ]
    return "{" + ", ".join(fields) + "}"


def classes() -> list[str]:
    """Return the rows of EVENT_CLASSES."""
    bits = {event_class.letter: 1 << event_class.bit for event_class in EVENT_CLASSES}
    bits = {"A": sum(1 << c.bit for c in EVENT_CLASSES if c.in_all)} | bits
    return [f"{{'{letter}', {value:#x}}}" for letter, value in bits.items()]


def arguments(name: str, items: tuple[Argument, ...], out: list[str]) -> str:
    """Append the array `name` of these arguments to `out`, after the arrays that it refers
    to. Return its name, or NULL if there are no arguments."""
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
            f"{{.name = {quoted(item.name)}, .type = REDISMODULE_ARG_TYPE_{item.type}, "
            f".key_spec_index = -1, .token = {quoted(item.token)}, "
            f".flags = {flags or 'REDISMODULE_CMD_ARG_NONE'}, .subargs = {inner}}}"
        )
    out.append(array(f"static RedisModuleCommandArg {name}[]", [*rows, "{0}"]))
    return name


def command_row(command: CommandSpec, out: list[str]) -> str:
    fields = [
        quoted(f"keyspaceamqp.{command.name.lower()}"),
        quoted(command.summary),
        quoted(command.complexity),
        quoted(command.flags),
        quoted(command.acl_categories),
        arguments(f"ARGUMENTS_{command.name}", command.arguments, out),
    ]
    return "{" + ", ".join(fields) + "}"


def help_lines() -> list[str]:
    """Return the lines of KEYSPACEAMQP.HELP."""
    lines = ["KEYSPACEAMQP.<command>. Commands are:"]
    for command in COMMANDS:
        lines += command.usage
        lines.append(f"    {command.summary}.")
    return lines


def source() -> str:
    """Return tables.c: the definitions of the arrays."""
    out = [
        "\n".join([HEAD, '#include "tables.h"', "", '#include "redis_api.h"']),
        array("const parameter_t PARAMETERS[]", [parameter_row(p) for p in PARAMETERS]),
        array("const advice_t ADVICE[]", [advice_row(advice) for advice in ADVICE]),
        array("const event_class_t EVENT_CLASSES[]", classes()),
        array("const char *const VALUE_TYPES[]", [quoted(name) for name in VALUE_TYPES]),
        array("const char *const STAT_NAMES[]", [quoted(stat.name.lower()) for stat in Stat]),
        array("const char *const TEXT_NAMES[]", [quoted(text.name.lower()) for text in Text]),
        array("const char *const HELP_LINES[]", [quoted(line) for line in help_lines()]),
    ]
    commands = [command_row(command, out) for command in COMMANDS]
    out.append(array("const command_spec_t COMMANDS[]", commands))
    return "\n\n".join(out) + "\n"


# ---- handler.c, and the files -------------------------------------------------------


def write_handler(path: pathlib.Path) -> None:
    """Have cffi write the C side of the handler to a file."""
    ffi = cffi.FFI()
    api = (HERE / "api.h").read_text().splitlines()
    ffi.cdef("\n".join(line for line in api if not line.startswith("#")))
    # The handler's entry point. An exception that reaches it is logged there, and the call
    # returns the error value.
    ffi.cdef('extern "Python" int handler_main(void);')
    ffi.set_source(
        "_keyspace_amqp",
        """
        #include "api.h"
        static int handler_main(void);
        int handler_enter(void) { return handler_main(); }
        """,
    )
    ffi.emit_c_code(str(path))


def write(path: pathlib.Path, text: str) -> None:
    """Write the file only if its text has changed, so that unchanged code is not built again."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def main(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "tables.h", header())
    write(folder / "tables.c", source())
    new = folder / "handler.c.new"
    write_handler(new)
    write(folder / "handler.c", new.read_text())
    new.unlink()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
