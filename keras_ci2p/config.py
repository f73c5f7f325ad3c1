"""Settings that are declared once: each has its default, range, flag, explanation and stored names in one place.

A subclass of `Config` is a frozen dataclass whose fields are made by `setting`:

    class Sizes(Config):
        width: int = setting(192, "channels of a token", flag="--width", at_least=1)

Its values are checked when it is made, and it reads and writes flags, dicts, TOML and command lines. Imports no Keras.
"""

import argparse
import dataclasses
import functools
import json
import math
import numbers
import operator
import shlex
import textwrap
import tomllib
import types
import typing
import warnings
from pathlib import Path

from keras_ci2p.utils import require

NONE = "none"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What `setting` tells of a field; its arguments tell what is what."""

    help: str
    flag: str | None
    metavar: str | None
    group: str | None
    choices: tuple
    at_least: float | None
    above: float | None
    at_most: float | None
    below: float | None
    multiple_of: int | None
    machine_only: bool
    placeholder: str | None
    formerly: tuple
    old_flags: tuple
    read: typing.Callable | None
    expected: str | None


def setting(
    default=dataclasses.MISSING,
    help="",
    flag=None,
    *,
    metavar=None,
    group=None,
    choices=(),
    at_least=None,
    above=None,
    at_most=None,
    below=None,
    multiple_of=None,
    machine_only=False,
    placeholder=None,
    formerly=(),
    old_flags=(),
    read=None,
    expected=None,
):
    """A field of a `Config`.

    Args:
        default: Its default; left out, the field must be given.
        help: What it is, for `--help` and the class's docstring. The default is added where it is not told.
        flag: Its flag, such as "--lr"; a name without dashes for a positional argument; None for no flag.
        metavar: What `--help` calls the value; None for N, X or the like.
        group: Title of the flag's group in `--help`, one of the class's `groups`.
        choices: Allowed values, of a field without range.
        at_least, above, at_most, below: Range of a number, or of each number of a tuple.
        multiple_of: What an integer, or each integer of a tuple, must be a multiple of.
        machine_only: Whether it says where a run is computed, not what: it may differ when a run is taken up again.
        placeholder: What records that leave this machine say in place of a path, such as "$DATA".
        formerly: Older names, read for ever from constructors, files and records.
        old_flags: Older flags, read for ever but not shown.
        read: Function from a text or a stored value to the value, for a type of its own; raises ValueError.
        expected: What `read` takes, in words: "must be ...".
    """
    known = locals()
    metadata = {name: known[name] for name in (field.name for field in dataclasses.fields(Setting))}
    return dataclasses.field(default=default, metadata={"setting": Setting(**metadata)})


@typing.dataclass_transform(frozen_default=True, field_specifiers=(setting,))
class Config:
    """Base class of settings; a subclass becomes a frozen dataclass of its `setting`s.

    A subclass may have `groups`, the titles of its groups of flags in order, and `_check`, which raises ValueError
    where settings do not go together.
    """

    groups = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)
        make = cls.__init__

        @functools.wraps(make)
        def __init__(self, *args, **values):
            renamed = _renamed(cls)
            older = {renamed[name]: value for name, value in values.items() if name in renamed}
            # The older names last: `dataclasses.replace` gives the unchanged value by the new one.
            make(self, *args, **{name: values[name] for name in values if name not in renamed} | older)

        cls.__init__ = __init__
        text, raises, errors = cls.__doc__.rstrip().partition("\n\n    Raises:")
        cls.__doc__ = f"{text}\n\n{_attributes(cls)}{raises}{errors}\n    "

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            checked = _check_range(field, _coerce_field(field, value))
            if checked is not value:
                object.__setattr__(self, field.name, checked)
        self._check()

    def _check(self):
        """Raises ValueError where settings do not go together; may fill in what follows from others."""

    def __getattr__(self, name):
        # Only for what is no field: the older names.
        current = _renamed(type(self)).get(name)
        if current is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warnings.warn(f"{type(self).__name__}.{name} is now called {current}", DeprecationWarning, stacklevel=2)
        return getattr(self, current)

    @classmethod
    def with_current_names(cls, values):
        """A dict of settings, or of dicts of them, with today's names in place of older ones.

        Raises:
            TypeError: A setting by both of its names.
        """
        renamed, result = _renamed(cls), {}
        for name, value in values.items():
            current = renamed.get(name, name)
            if current in result or (current != name and current in values):
                raise TypeError(f"{name} is now called {current}; received both.")
            inner = _nested(_fields(cls).get(current))
            result[current] = inner.with_current_names(value) if inner and isinstance(value, dict) else value
        return result

    @classmethod
    def _from_older(cls, values):
        """Stored settings as this version would have stored them; a subclass may change them."""
        return values

    @classmethod
    def defaults(cls):
        """The defaults of all settings that have one, as `to_dict` gives them."""
        fields = dataclasses.fields(cls)
        return {field.name: _plain(field.default) for field in fields if field.default is not dataclasses.MISSING}

    @classmethod
    def from_dict(cls, values):
        """The config that `to_dict` gave, today or in an older version; what it does not tell is the default.

        Raises:
            ValueError: Unknown setting, or a value that does not fit.
        """
        own = {}
        for name, value in cls._from_older(cls.with_current_names(values)).items():
            inner = _nested(_fields(cls).get(name))
            own[name] = inner.from_dict(value) if inner and isinstance(value, dict) else cls.read(name, value)
        return cls(**own)

    def to_dict(self):
        """The settings as plain values that JSON can hold."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def as_dict(self):
        """`to_dict` by its name in 0.1.0."""
        warnings.warn("as_dict is now called to_dict", DeprecationWarning, stacklevel=2)
        return self.to_dict()

    def to_toml(self):
        """The settings as a TOML file; None is written as "none", since TOML has no null."""
        values = self.to_dict()
        tables = {name: value for name, value in values.items() if isinstance(getattr(self, name), Config)}
        lines = [f"{name} = {_toml(value)}" for name, value in values.items() if name not in tables]
        for name, table in tables.items():
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
        return "\n".join([*lines, ""])

    def override(self, values):
        """This config with other values.

        Args:
            values: dict by setting; of an inner config a dict, or keys such as "augmentation.erasing". Strings are read
                as numbers, "none" as None, "0.3,1" as several.

        Raises:
            ValueError: Unknown setting, or a value that does not fit.
        """
        own, inner = {}, {}
        for key, value in values.items():
            name, _, rest = key.partition(".")
            if _nested(_fields(type(self)).get(name)) and (rest or isinstance(value, dict)):
                inner.setdefault(name, {}).update({rest: value} if rest else value)
            else:
                own[key] = value
        own = {key: self.read(key, value) for key, value in self.with_current_names(own).items()}
        own.update({name: getattr(self, name)._override_inner(name, changes) for name, changes in inner.items()})
        return dataclasses.replace(self, **own)

    def _override_inner(self, prefix, values):
        unknown = [key for key in values if _renamed(type(self)).get(key, key) not in _fields(type(self))]
        if unknown:
            raise ValueError(f"There is no setting {prefix}.{unknown[0]}. {_known(type(self), prefix + '.')}")
        return self.override(values)

    @classmethod
    def placeholders(cls):
        """What records that leave this machine say in place of paths, by setting."""
        known = {name: field.metadata["setting"] for name, field in _fields(cls).items()}
        return {name: setting.placeholder for name, setting in known.items() if setting.placeholder}

    def _required(self):
        """The settings that have no default."""
        fields = dataclasses.fields(self)
        return {field.name: getattr(self, field.name) for field in fields if field.default is dataclasses.MISSING}

    @classmethod
    def read(cls, name, value):
        """The value of a setting from a text or from what a file or a record holds.

        Raises:
            ValueError: Unknown setting, or a value of another kind.
        """
        field = _fields(cls).get(name)
        if field is None or (_nested(field) and not isinstance(value, Config)):
            raise ValueError(f"There is no setting {name}. {_known(cls)}")
        return _read_field(field, value)

    @classmethod
    def add_flags(cls, parser, prefix="", group=None, names=None, optional=()):
        """Adds the flags of this class to an `argparse` parser, without defaults: what is not given is not there.

        Args:
            parser: The parser.
            prefix: What precedes the settings' names in the parsed arguments, such as "recipe.".
            group: `argparse` group for all of them; None for those that the settings name.
            names: Names of the settings whose flags to add; None for all.
            optional: Names of positional arguments that may be missing.
        """
        groups = {} if group else {title: parser.add_argument_group(title) for title in cls.groups}
        for field in dataclasses.fields(cls):
            known = field.metadata["setting"]
            if known.flag is not None and (names is None or field.name in names):
                _add_flag(group or groups.get(known.group, parser), field, prefix, field.name in optional)

    @classmethod
    def given(cls, args, prefix=""):
        """The settings that parsed arguments give, a dict by name."""
        values = vars(args)
        return {name: values[prefix + name] for name in _fields(cls) if prefix + name in values}

    @classmethod
    def from_args(cls, args, **values):
        """The config that parsed arguments give, with other settings as `values`.

        Raises:
            ValueError: A value that does not fit.
        """
        return cls(**{**cls.given(args), **values})

    def differences(self, stored):
        """What of a stored config differs from this one and changes the result.

        Args:
            stored: What `to_dict` gave, today or in an older version; what it does not tell is the default.

        Returns:
            List of `(name, stored value, value of this one)`.
        """
        now = self.lasting()
        then = {**_flat(self.defaults()), **_flat(self._from_older(self.with_current_names(stored)), self)}
        return [(name, then.get(name), value) for name, value in now.items() if then.get(name) != value]

    def lasting(self):
        """The settings that change the result, as plain values by name, those of inner configs as "recipe.epochs"."""
        machine_only = {name for name, field in _fields(type(self)).items() if field.metadata["setting"].machine_only}
        return {name: value for name, value in _flat(self.to_dict(), self).items() if name not in machine_only}

    def command_line(self, base=None, always=(), without=(), prefix=""):
        """The words of a command that gives this config again, exactly.

        Args:
            base: What the command changes, a config of this class; None for the defaults.
            always: Names of settings to give even where they are those of `base`.
            without: Names of settings to leave out.
            prefix: What precedes the names of settings without a flag, which are given by `--set`.
        """
        # A setting that was not given may stand for a value that follows from others.
        required = self._required()
        implied = {} if base is not None else {**vars(type(self)(**required)), **dict.fromkeys(required)}
        words = []
        for field in dataclasses.fields(self):
            name, known = field.name, field.metadata["setting"]
            value = getattr(self, name)
            other = field.default if base is None else getattr(base, name)
            if name in without:
                continue
            if isinstance(value, Config):
                words += value.command_line(other, prefix=f"{prefix}{name}.")
            elif (value == other or value == implied.get(name)) and (name not in always or value is None):
                continue
            elif known.flag is None:
                words += ["--set", f"{prefix}{name}={_text(value)}"]
            else:
                words += _flag_words(known.flag, value, bool(known.choices))
        return words


def shell_words(words, placeholders=()):
    """Words of a command as text for a shell, in which `placeholders` such as "$DATA" are variables."""
    return " ".join(f'"{word}"' if word in placeholders else shlex.quote(word) for word in words)


def read_table(path):
    """The dict that a TOML or YAML file holds.

    Raises:
        ValueError: A file of another kind, or one that cannot be read as such.
        OSError: No such file.
    """
    path = Path(path)
    read = {".toml": tomllib.loads, ".yaml": _read_yaml, ".yml": _read_yaml}.get(path.suffix)
    if read is None:
        raise ValueError(f"it must end in .toml or .yaml. Received: {str(path)!r}")
    values = read(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("it holds no table of names and values")
    return values


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


def _read_yaml(text):
    yaml = require("yaml", extra="train")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


@functools.cache
def _fields(cls):
    return {field.name: field for field in dataclasses.fields(cls)}


@functools.cache
def _renamed(cls):
    """Today's names by the older ones."""
    return {old: name for name, field in _fields(cls).items() for old in field.metadata["setting"].formerly}


def _nested(field):
    """The class of an inner config, None for a plain setting."""
    is_config = field is not None and isinstance(field.type, type) and issubclass(field.type, Config)
    return field.type if is_config else None


def _known(cls, prefix=""):
    names = []
    for name, field in _fields(cls).items():
        inner = _nested(field)
        names += [f"{prefix}{name}.{key}" for key in _fields(inner)] if inner else [prefix + name]
    return f"Known are: {', '.join(names)}"


def _attributes(cls):
    """The section of a docstring that explains the settings."""
    lines = []
    for name, field in _fields(cls).items():
        text = f"{name}: {_explained(field)}."
        lines.append(textwrap.fill(text, 120, initial_indent=" " * 8, subsequent_indent=" " * 12))
    return "\n".join(["    Attributes:", *lines])


def _explained(field):
    """The help of a setting, with its default where the text does not tell it."""
    known = field.metadata["setting"]
    default = field.default
    untold = default is None or default is False or default is dataclasses.MISSING or isinstance(default, Config)
    if untold or "default" in known.help:
        return known.help
    return f"{known.help}{'; ' if known.help else ''}default: {_text(default)}"


# Kinds of values.


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


def _read_field(field, value):
    """The value from a text or from what a file holds; ValueError where it is of another kind."""
    known = field.metadata["setting"]
    kind, optional = _kind(field)
    if not isinstance(value, str) or known.read is not None:
        is_one = isinstance(value, numbers.Real) and Ellipsis in typing.get_args(kind)
        return _coerce_field(field, (value,) if is_one else value)
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


def _coerce_field(field, value):
    """A value as the field's type, or ValueError."""
    known = field.metadata["setting"]
    kind, optional = _kind(field)
    if _nested(field):
        if not isinstance(value, _nested(field)):
            raise ValueError(f"{field.name} must be a {_nested(field).__name__}. Received: {value!r}")
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


def _check_range(field, value):
    """The value; ValueError unless it is in the field's range."""
    known = field.metadata["setting"]
    if value is None or isinstance(value, Config):
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


# Writing.


def _plain(value):
    """A value as JSON holds it."""
    if isinstance(value, Config):
        return value.to_dict()
    return list(map(_plain, value)) if isinstance(value, tuple) else value


def _toml(value):
    return f'"{NONE}"' if value is None else json.dumps(value, ensure_ascii=False)


def _flat(values, config=None, prefix=""):
    """Plain values by name, those of inner configs by "name.name"."""
    flat = {}
    for name, value in values.items():
        inner = getattr(config, name, None) if config is not None else None
        if isinstance(value, dict) and (isinstance(inner, Config) or config is None):
            flat.update(_flat(value, inner, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _text(value):
    """A value as flags and `--set` take it, with all digits."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    if isinstance(value, tuple):
        parts = [_text(part) for part in value]
        is_simple = all(not isinstance(part, tuple) for part in value) and not any("," in part for part in parts)
        if is_simple and parts != [""] and not any(part.startswith("[") for part in parts[:1]):
            return ",".join(parts)
        return json.dumps(_plain(value))
    if isinstance(value, dict):
        parts = [f"{key}={_text(number)}" for key, number in value.items()]
        is_simple = parts and not any("," in key or key.startswith("{") for key in value)
        return ",".join(parts) if is_simple else json.dumps(value, ensure_ascii=False)
    return str(value)


def _flag_words(flag, value, is_choice):
    """The words that give `value` by a flag, or by a positional argument."""
    if not flag.startswith("-"):
        return [_text(value)]
    if is_choice and isinstance(value, tuple):
        return [flag, *value]
    if value is True:
        return [flag]
    if value is False:
        return [f"--no-{flag.removeprefix('--')}"]
    text = _text(value)
    # What begins with a dash would be taken for a flag.
    return [f"{flag}={text}"] if text.startswith("-") else [flag, text]


def _add_flag(parser, field, prefix, may_be_missing):
    known = field.metadata["setting"]
    kind, optional = _kind(field)
    dest = prefix + field.name
    text = _explained(field).replace("%", "%%") if prefix == "" else known.help
    if kind is bool:
        action = argparse.BooleanOptionalAction if optional else "store_true"
        parser.add_argument(known.flag, dest=dest, action=action, default=argparse.SUPPRESS, help=text or None)
        return

    def read(value):
        try:
            return _read_field(field, value)
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
