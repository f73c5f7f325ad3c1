"""One setting: how it is declared, what values it takes, and how these are read and written. Imports no Keras."""

import argparse
import dataclasses
import json
import math
import numbers
import operator
import os
import types
import typing
from pathlib import Path

NONE = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known of a setting besides its name, type and default.

    Attributes:
        help: What it is, for `--help` and the class's docstring. The default is added where it is not told.
        flag: Its flag, such as "--lr"; a name without dashes for a positional argument; None for no flag.
        metavar: What `--help` calls the value; None for N, X or the like.
        choices: Allowed values, of a setting without range.
        at_least, above, at_most, below: Range of a number, or of each number of a tuple.
        multiple_of: What an integer, or each integer of a tuple, must be a multiple of.
        machine_only: Whether it says where a run is computed, not what: it may differ when a run is taken up again.
        placeholder: What records that leave this machine say in place of a path, such as "$DATA".
        formerly: Older names, read for ever from constructors, files and records.
        old_flags: Older flags, read for ever but not shown.
        read: Function from a text or a stored value to the value, for a type of its own; raises ValueError.
        expected: What `read` takes, in words: "must be ...".
    """

    help: str
    flag: str | None = None
    metavar: str | None = None
    choices: tuple = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    multiple_of: int | None = None
    machine_only: bool = False
    placeholder: str | None = None
    formerly: tuple = ()
    old_flags: tuple = ()
    read: typing.Callable | None = None
    expected: str | None = None


def setting(default=dataclasses.MISSING, help="", flag=None, **more):
    """Makes a field of a `Config`.

    Args:
        default: Its default; left out, the setting must be given.
        help, flag, **more: As in `Setting`.
    """
    return dataclasses.field(default=default, metadata={"setting": Setting(help=help, flag=flag, **more)})


def inner_config(field):
    """The class of an inner config, None for a plain setting."""
    is_config = field is not None and isinstance(field.type, type) and dataclasses.is_dataclass(field.type)
    return field.type if is_config else None


def explain(field):
    """The help of a setting, with its default where the text does not tell it."""
    known = field.metadata["setting"]
    default = field.default
    untold = default is None or default is False or default is dataclasses.MISSING or dataclasses.is_dataclass(default)
    if untold or "default" in known.help:
        return known.help
    return f"{known.help}{'; ' if known.help else ''}default: {to_text(default)}"


def _kind(field):
    """`(type, whether None is allowed)`; the type is None where several are."""
    if not isinstance(field.type, types.UnionType):
        return field.type, False
    kinds = [kind for kind in typing.get_args(field.type) if kind is not types.NoneType]
    return kinds[0] if len(kinds) == 1 else None, len(kinds) < len(typing.get_args(field.type))


def _expected(field):
    """What a value must be, in words."""
    known = field.metadata["setting"]
    kind, optional = _kind(field)
    if known.expected:
        return known.expected
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        if inner[0] is str:
            words = "names NAME,..."
        else:
            words = "numbers such as 8,8,16" if Ellipsis in inner else "a pair of numbers such as 0.5,1"
    else:
        words = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}[kind]
    return f"{words} or none" if optional else words


def _wrong(field, value):
    return ValueError(f"{field.name} must be {_expected(field)}. Received: {value!r}")


def read_value(field, value):
    """The value from a text or from what a file holds; ValueError where it is of another kind."""
    known = field.metadata["setting"]
    kind, optional = _kind(field)
    if not isinstance(value, str) or known.read is not None:
        is_one = isinstance(value, numbers.Real) and Ellipsis in typing.get_args(kind)
        return coerce_value(field, (value,) if is_one else value)
    try:
        if optional and kind is not str and value.lower() == NONE:
            return None
        return _coerce(kind, _from_text(kind, value))
    except (TypeError, ValueError, OverflowError) as error:
        raise _wrong(field, value) from error


def _from_text(kind, text):
    if typing.get_origin(kind) is tuple:
        if text.startswith("["):
            # As TOML and JSON write them.
            return json.loads(text)
        inner = typing.get_args(kind)
        return [_from_text(inner[0], part) for part in text.split(",") if part or Ellipsis not in inner]
    if kind is bool:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else None
    return text if kind is str else _number(text)


def _number(text):
    try:
        return int(text)
    except ValueError:
        return float(text)


def coerce_value(field, value):
    """A value as the field's type, or ValueError."""
    known = field.metadata["setting"]
    kind, optional = _kind(field)
    if inner_config(field):
        if not isinstance(value, inner_config(field)):
            raise ValueError(f"{field.name} must be a {inner_config(field).__name__}. Received: {value!r}")
        return value
    try:
        if known.read is not None:
            return known.read(value)
        if value is None and optional:
            return None
        return _coerce(kind, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise _wrong(field, value) from error


def _coerce(kind, value):
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        if isinstance(value, (str, dict)):
            raise TypeError
        values = tuple(_coerce(inner[0], part) for part in value)
        if Ellipsis not in inner and len(values) != len(inner):
            raise ValueError
        return values
    if isinstance(value, bool) != (kind is bool):
        raise TypeError
    if kind is int:
        if isinstance(value, numbers.Real) and value == int(value):
            return int(value)
        return operator.index(value)
    if kind is float:
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise TypeError
        return float(value)
    if kind is str:
        if not isinstance(value, (str, Path)):
            raise TypeError
        return str(value)
    return value


def check_range(field, value):
    """The value; ValueError unless it is in the field's range."""
    known = field.metadata["setting"]
    if value is None or dataclasses.is_dataclass(value):
        return value
    values = value if isinstance(value, tuple) else (value,)
    if all(_is_in_range(known, part) for part in values):
        return value
    allowed = _allowed(known, _kind(field)[0])
    if isinstance(value, tuple):
        allowed = f"among {', '.join(known.choices)}" if known.choices else f"numbers, each {allowed}"
    optional = f" or {NONE}" if _kind(field)[1] else ""
    raise ValueError(f"{field.name} must be {allowed}{optional}. Received: {value!r}")


def _is_in_range(known, value):
    return (
        (not known.choices or value in known.choices)
        and (known.at_least is None or value >= known.at_least)
        and (known.above is None or value > known.above)
        and (known.at_most is None or value <= known.at_most)
        and (known.below is None or value < known.below)
        and (known.multiple_of is None or value % known.multiple_of == 0)
    )


def _allowed(known, kind):
    """The range of a setting in words."""
    if known.choices:
        quoted = [f'"{choice}"' for choice in known.choices]
        return " or ".join(quoted) if len(quoted) == 2 else f"one of {', '.join(known.choices)}"
    low, high = known.at_least, known.at_most
    words = []
    if known.above is not None:
        words.append("positive" if known.above == 0 else f"above {known.above}")
    elif low is not None and known.below is not None:
        words.append(f"in {low}..{known.below - 1}" if kind is int else f"in [{low}, {known.below})")
    elif low is not None and high is not None:
        words.append(f"in {low}..{high}" if kind is int else f"in [{low}, {high}]")
    elif low is not None:
        words.append(f"at least {low}")
    if known.above is not None and high is not None:
        words.append(f"at most {high}")
    if known.multiple_of is not None:
        words.append(f"a multiple of {known.multiple_of}")
    return " and ".join(words)


def plain_value(value):
    """A value as JSON holds it."""
    if dataclasses.is_dataclass(value):
        return value.to_dict()
    return list(map(plain_value, value)) if isinstance(value, tuple) else value


def to_text(value):
    """A value as flags and `--set` take it, with all digits."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, tuple):
        parts = [to_text(part) for part in value]
        is_simple = all(not isinstance(part, tuple) for part in value) and not any("," in part for part in parts)
        if is_simple and parts != [""] and not any(part.startswith("[") for part in parts[:1]):
            return ",".join(parts)
        return json.dumps(plain_value(value))
    if isinstance(value, dict):
        parts = [f"{key}={to_text(number)}" for key, number in value.items()]
        is_simple = parts and not any("," in key or key.startswith("{") for key in value)
        return ",".join(parts) if is_simple else json.dumps(value, ensure_ascii=False)
    return str(value)


def flag_words(flag, value, is_choice):
    """The words that give `value` by a flag, or by a positional argument."""
    if not flag.startswith("-"):
        return [to_text(value)]
    if is_choice and isinstance(value, tuple):
        return [flag, *value]
    if value is True:
        return [flag]
    if value is False:
        return [f"--no-{flag.removeprefix('--')}"]
    text = to_text(value)
    # What begins with a dash would be taken for a flag.
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def add_flag(parser, field, prefix, may_be_missing):
    known = field.metadata["setting"]
    kind, optional = _kind(field)
    dest = prefix + field.name
    text = explain(field).replace("%", "%%") if prefix == "" else known.help
    if kind is bool:
        action = argparse.BooleanOptionalAction if optional else "store_true"
        parser.add_argument(known.flag, dest=dest, action=action, default=argparse.SUPPRESS, help=text or None)
        return

    def read(value):
        try:
            return read_value(field, value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{field.name} ")) from error

    metavar = known.metavar or {int: "N", float: "X"}.get(kind)
    if metavar in ("N", "X") and optional and field.default is not None:
        metavar = f"{metavar}|{NONE}"
    options = {"type": read, "default": argparse.SUPPRESS, "metavar": metavar or field.name.upper()}
    if known.choices:
        options["choices"] = known.choices
        if typing.get_origin(kind) is tuple:
            options.update(type=str, nargs="+")
        else:
            del options["metavar"]
    if not known.flag.startswith("-"):
        count = {"nargs": "?"} if may_be_missing else {}
        parser.add_argument(dest, help=text, **{**options, "metavar": known.flag}, **count)
        return
    parser.add_argument(known.flag, dest=dest, help=text or None, **options)
    for flag in known.old_flags:
        parser.add_argument(flag, dest=dest, **{**options, "help": argparse.SUPPRESS})


def integer(at_least):
    """An `argparse` type: an integer of at least so much."""

    def read(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < at_least:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {at_least}. Received: {text!r}")
        return value

    return read


def name_pairs(text):
    """Parses "NAME=OTHER,...", or the lines of a file of such, to a dict, for argparse."""
    path = Path(os.path.expanduser(text))
    pairs = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    pairs = [[name.strip() for name in pair.split("=")] for pair in pairs if pair.strip()]
    if not pairs or not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise argparse.ArgumentTypeError(f"must be NAME=OTHER,... or a file with one in each line, not {text!r}")
    return dict(pairs)
