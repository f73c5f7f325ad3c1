"""Settings that are declared once: each has its default, range, flag, explanation and stored names in one place.

A subclass of `Config` is a frozen dataclass whose fields are made by `setting`:

    class Sizes(Config):
        width: int = setting(192, "channels of a token", flag="--width", at_least=1)

Its values are checked when it is made, and it reads and writes flags, dicts, TOML and command lines. Imports no Keras.
"""

import argparse
import dataclasses
import functools
import inspect
import json
import shlex
import textwrap
import tomllib
import typing
import warnings
from collections.abc import Iterable
from typing import Any, Self

from keras_ci2p.setting import (
    NONE,
    add_flag,
    check_range,
    coerce_value,
    explain,
    flag_words,
    inner_config,
    plain_value,
    read_value,
    to_text,
)
from keras_ci2p.utils import did_you_mean, require, user_path


@typing.dataclass_transform(frozen_default=True)
class Config:
    """Base class of settings; a subclass becomes a frozen dataclass of its `setting`s.

    A subclass may have `groups`, the groups of its flags: settings by title, in order, the last with all that are in no
    other; and `_check`, which raises ValueError where settings do not go together.
    """

    groups: typing.ClassVar[dict[str, tuple[str, ...]]] = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)
        _accept_older_names(cls)
        # Python 3.13 leaves out the indentation of docstrings.
        text, raises, errors = inspect.cleandoc(cls.__doc__).partition("\n\nRaises:")
        cls.__doc__ = f"{text}\n\n{_attributes(cls)}{raises}{errors}"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            checked = check_range(field, coerce_value(field, value))
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
    def with_current_names(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A dict of settings, or of dicts of them, with today's names in place of older ones.

        Raises:
            TypeError: A setting by both of its names.
        """
        renamed, result = _renamed(cls), {}
        for name, value in values.items():
            current = renamed.get(name, name)
            if current in result or (current != name and current in values):
                raise TypeError(f"{name} is now called {current}; received both.")
            inner = inner_config(_fields(cls).get(current))
            result[current] = inner.with_current_names(value) if inner and isinstance(value, dict) else value
        return result

    @classmethod
    def _from_older(cls, values):
        """Stored settings as this version would have stored them; a subclass may change them."""
        return values

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The defaults of all settings that have one, as `to_dict` gives them."""
        fields = dataclasses.fields(cls)
        return {field.name: plain_value(field.default) for field in fields if field.default is not dataclasses.MISSING}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The config that `to_dict` gave, today or in an older version; what it does not tell is the default.

        Raises:
            ValueError: Unknown setting, or a value that does not fit.
        """
        own = {}
        for name, value in cls._from_older(cls.with_current_names(values)).items():
            inner = inner_config(_fields(cls).get(name))
            own[name] = inner.from_dict(value) if inner and isinstance(value, dict) else cls.read(name, value)
        return cls(**own)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values that JSON can hold."""
        return {field.name: plain_value(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def as_dict(self) -> dict[str, Any]:
        """`to_dict` by its name in 0.1.0."""
        warnings.warn("as_dict is now called to_dict", DeprecationWarning, stacklevel=2)
        return self.to_dict()

    def to_toml(self) -> str:
        """The settings as a TOML file; None is written as "none", since TOML has no null."""
        values = self.to_dict()
        tables = {name: value for name, value in values.items() if isinstance(getattr(self, name), Config)}
        lines = [f"{name} = {_toml(value)}" for name, value in values.items() if name not in tables]
        for name, table in tables.items():
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
        return "\n".join([*lines, ""])

    def override(self, values: dict[str, Any]) -> Self:
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
            if inner_config(_fields(type(self)).get(name)) and (rest or isinstance(value, dict)):
                inner.setdefault(name, {}).update({rest: value} if rest else value)
            else:
                own[key] = value
        own = {key: self.read(key, value) for key, value in self.with_current_names(own).items()}
        for name, changes in inner.items():
            _check_known(type(getattr(self, name)), changes, f"{name}.")
            own[name] = getattr(self, name).override(changes)
        return dataclasses.replace(self, **own)

    @classmethod
    def placeholders(cls) -> dict[str, str]:
        """What records that leave this machine say in place of paths, by setting."""
        known = {name: field.metadata["setting"] for name, field in _fields(cls).items()}
        return {name: setting.placeholder for name, setting in known.items() if setting.placeholder}

    @classmethod
    def read(cls, name: str, value: Any) -> Any:
        """The value of a setting from a text or from what a file or a record holds.

        Raises:
            ValueError: Unknown setting, or a value of another kind.
        """
        field = _fields(cls).get(name)
        if field is None or (inner_config(field) and not isinstance(value, Config)):
            raise ValueError(f"There is no setting {name}.{did_you_mean(name, _names(cls))} {_known(cls)}")
        return read_value(field, value)

    @classmethod
    def add_flags(
        cls,
        parser: Any,
        prefix: str = "",
        group: Any = None,
        names: Iterable[str] | None = None,
        optional: Iterable[str] = (),
    ) -> None:
        """Adds the flags of this class to an `argparse` parser, without defaults: what is not given is not there.

        Args:
            parser: The parser.
            prefix: What precedes the settings' names in the parsed arguments, such as "recipe.".
            group: `argparse` group for all of them; None for the class's `groups`.
            names: Names of the settings whose flags to add; None for all.
            optional: Names of positional arguments that may be missing.
        """
        titled = {} if group else {title: parser.add_argument_group(title) for title in cls.groups}
        group_of = {name: titled[title] for title in titled for name in cls.groups[title]}
        last = group or ([parser, *titled.values()])[-1]
        for field in dataclasses.fields(cls):
            flag = field.metadata["setting"].flag
            if flag is not None and (names is None or field.name in names):
                into = parser if not flag.startswith("-") else group_of.get(field.name, last)
                add_flag(into, field, prefix, field.name in optional)

    @classmethod
    def given(cls, args: argparse.Namespace, prefix: str = "") -> dict[str, Any]:
        """The settings that parsed arguments give, a dict by name."""
        values = vars(args)
        return {name: values[prefix + name] for name in _fields(cls) if prefix + name in values}

    @classmethod
    def from_args(cls, args: argparse.Namespace, **values: Any) -> Self:
        """The config that parsed arguments give, with other settings as `values`.

        Raises:
            ValueError: A value that does not fit.
        """
        return cls(**{**cls.given(args), **values})

    def differences(self, stored: dict[str, Any]) -> list[tuple[str, Any, Any]]:
        """What of a stored config differs from this one and changes the result.

        Args:
            stored: What `to_dict` gave, today or in an older version; what it does not tell is the default.

        Returns:
            List of `(name, stored value, value of this one)`.
        """
        now = self.lasting()
        then = {**_flat(self.defaults()), **_flat(self._from_older(self.with_current_names(stored)), self)}
        return [(name, then.get(name), value) for name, value in now.items() if then.get(name) != value]

    def lasting(self) -> dict[str, Any]:
        """The settings that change the result, as plain values by name, those of inner configs as "recipe.epochs"."""
        machine_only = {name for name, field in _fields(type(self)).items() if field.metadata["setting"].machine_only}
        return {name: value for name, value in _flat(self.to_dict(), self).items() if name not in machine_only}

    def command_line(
        self, base: Self | None = None, always: Iterable[str] = (), without: Iterable[str] = (), prefix: str = ""
    ) -> list[str]:
        """The words of a command that gives this config again, exactly.

        Args:
            base: What the command changes, a config of this class; None for the defaults.
            always: Names of settings to give even where they are those of `base`.
            without: Names of settings to leave out.
            prefix: What precedes the names of settings without a flag, which are given by `--set`.
        """
        # A setting that was not given may stand for a value that follows from others.
        return list(_command_words(self, base, always, without, prefix))


def shell_words(words, placeholders=()):
    """Words of a command as text for a shell, in which `placeholders` such as "$DATA" are variables."""
    return " ".join(f'"{word}"' if word in placeholders else shlex.quote(word) for word in words)


def read_table(path):
    """The dict that a TOML or YAML file holds.

    Raises:
        ValueError: A file of another kind, or one that cannot be read as such.
        OSError: No such file.
    """
    path = user_path(path)
    read = {".toml": tomllib.loads, ".yaml": _read_yaml, ".yml": _read_yaml}.get(path.suffix)
    if read is None:
        raise ValueError(f"it must end in .toml or .yaml. Received: {str(path)!r}")
    values = read(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError("it holds no table of names and values")
    return values


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


def _accept_older_names(cls):
    """Lets the constructor of a class take the older names of its settings."""
    make, renamed = cls.__init__, _renamed(cls)

    @functools.wraps(make)
    def __init__(self, *args, **values):
        older = {renamed[name]: value for name, value in values.items() if name in renamed}
        # Last: `dataclasses.replace` gives the unchanged value by the new name.
        make(self, *args, **{name: values[name] for name in values if name not in renamed} | older)

    cls.__init__ = __init__


def _check_known(cls, values, prefix):
    """Raises ValueError where a dict has a key that is no setting of the class."""
    for key in values:
        if key.partition(".")[0] not in {*_fields(cls), *_renamed(cls)}:
            hint = did_you_mean(key, _names(cls))
            raise ValueError(f"There is no setting {prefix}{key}.{hint} {_known(cls, prefix)}")


def _command_words(config, base, always, without, prefix):
    """Yields the words of `Config.command_line`."""
    cls, implied = type(config), {}
    if base is None:
        # A setting that was not given may stand for a value that follows from others.
        required = {
            name: getattr(config, name) for name, field in _fields(cls).items() if field.default is dataclasses.MISSING
        }
        implied = {name: value for name, value in vars(cls(**required)).items() if name not in required}
    for name, field in _fields(cls).items():
        known, value = field.metadata["setting"], getattr(config, name)
        other = field.default if base is None else getattr(base, name)
        if name in without:
            continue
        if isinstance(value, Config):
            yield from value.command_line(other, prefix=f"{prefix}{name}.")
        elif value in (other, implied.get(name, other)) and (name not in always or value is None):
            continue
        elif known.flag is None:
            yield from ("--set", f"{prefix}{name}={to_text(value)}")
        else:
            yield from flag_words(known.flag, value, bool(known.choices))


def _known(cls, prefix=""):
    return f"Known are: {', '.join(_names(cls, prefix))}"


def _names(cls, prefix=""):
    names = []
    for name, field in _fields(cls).items():
        inner = inner_config(field)
        names += [f"{prefix}{name}.{key}" for key in _fields(inner)] if inner else [prefix + name]
    return names


def _attributes(cls):
    """The section of a docstring that explains the settings."""
    lines = []
    for name, field in _fields(cls).items():
        text = f"{name}: {explain(field)}."
        lines.append(textwrap.fill(text, 120, initial_indent=" " * 4, subsequent_indent=" " * 8))
    return "\n".join(["Attributes:", *lines])


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
