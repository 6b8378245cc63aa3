"""Settings of a role: one frozen dataclass, read from a TOML file and command-line overrides.

Notable:
- a field's comment is written once, as ``Annotated[type, "comment"]``, and serves the commented
  TOML that ``init`` writes and the reference of keys;
- an unknown key, a wrong type and a failed check are all collected and reported at once;
- paths in the file are relative to the file, paths on the command line to the working directory.

Sections are dataclasses, their fields scalars (`int`, `float`, `bool`, `str`, `Path`, an `Enum`),
`tuple[scalar, ...]` (a TOML array; on the command line separated by commas), or
`tuple[dataclass, ...]` (an array of tables `[[section.field]]`; on the command line as TOML). A
section may have a mapping `MOVED_KEYS`, without an annotation: keys of old, and where they went.
"""

import contextlib
import dataclasses
import enum
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import tomli_w

from offsite.secure.errors import ConfigError

type_hints = typing.get_type_hints
Scalar = bool | int | float | str
Plain = Scalar | list["Plain"] | dict[str, "Plain"]
Tables = dict[str, dict[str, Plain]]
T = typing.TypeVar("T")
WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
}
"""What a value of a type is called in a message."""
SHOWN_CHARS = 80


def load_settings(cls: type[T], path: Path | None, overrides: Sequence[str] = ()) -> T:
    """The settings in `path` (defaults if None) with `section.key=value` overrides applied.

    Raises:
        ConfigError: naming every unknown key, wrong type and failed check at once.
    """
    problems: list[str] = []
    tables = _read(path) if path else {}
    base = path.parent if path else Path()
    sections = {}
    known = dict(section_types(cls))
    problems += [f"unknown section [{name}]" for name in tables if name not in known]
    for name, section in known.items():
        given = dict(tables.get(name, {}))
        values = _convert(section, given, name, base, problems)
        for key, text in _overrides_for(name, overrides):
            values |= _convert(section, {key: text}, name, Path(), problems, text_form=True)
        sections[name] = _construct(section, values, name, problems)
    problems += [
        f"override {o!r}: expected SECTION.KEY=VALUE with a section of {', '.join(known)}"
        for o in overrides
        if o.partition("=")[1] == "" or o.partition(".")[0] not in known
    ]
    if problems:
        where = path or "the command line"
        raise ConfigError(f"{where}: " + "; ".join(problems))
    return cls(**sections)


def render_toml(settings: object) -> str:
    """The settings as TOML, every key under its comment."""
    lines: list[str] = []
    for name, section in section_types(type(settings)):
        if doc := (section.__doc__ or "").strip().partition("\n")[0]:
            lines += [f"# {doc}"]
        lines.append(f"[{name}]")
        values = getattr(settings, name)
        tables: list[str] = []  # behind the scalars: what follows a table belongs to it
        for field, comment in documented_fields(section):
            documented = [f"# {comment}"] if comment else []
            item = _item_of(type_hints(section)[field])
            if item is not None and dataclasses.is_dataclass(item):
                tables += ["", *documented, *_key_comments(item)]
                tables += _array_of_tables(f"{name}.{field}", getattr(values, field))
            else:
                lines += [*documented, render_line(field, _plain(getattr(values, field)))]
        lines += [*tables, ""]
    return "\n".join(lines)


def render_line(key: str, value: Plain) -> str:
    """`key = value` as TOML, an array on one line."""
    if isinstance(value, list):
        items = (render_line("", item).removeprefix('"" = ') for item in value)
        return f"{key} = [{', '.join(items)}]"
    return tomli_w.dumps({key: value}).strip()


def _key_comments(item: type) -> list[str]:
    return [f"#   {field}: {comment}" for field, comment in documented_fields(item)]


def _array_of_tables(name: str, items: Sequence[object]) -> list[str]:
    """Every item as a table; without any, the header as a comment."""
    lines = [] if items else [f"# [[{name}]]"]
    for item in items:
        lines.append(f"[[{name}]]")
        lines += [render_line(field, value) for field, value in _plain_table(item).items()]
    return lines


def to_tables(settings: object) -> Tables:
    """Plain nested dictionaries, for JSON."""
    return {
        name: _plain_table(getattr(settings, name)) for name, _ in section_types(type(settings))
    }


def section_types(cls: type) -> list[tuple[str, type]]:
    """Name and dataclass of every section, in order."""
    hints = type_hints(cls)
    return [(f.name, hints[f.name]) for f in dataclasses.fields(cls)]


def documented_fields(section: type) -> Iterator[tuple[str, str]]:
    """Name and comment of every field of a section."""
    hints = type_hints(section, include_extras=True)
    for field in dataclasses.fields(section):
        extras = getattr(hints[field.name], "__metadata__", ())
        yield field.name, next((e for e in extras if isinstance(e, str)), "")


def _read(path: Path) -> Tables:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run `init` to write a commented one") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    loose = [key for key, value in document.items() if not isinstance(value, dict)]
    if loose:
        raise ConfigError(f"{path}: keys outside of a section: {', '.join(loose)}")
    return document


def _overrides_for(section: str, overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    for override in overrides:
        name, _, value = override.partition("=")
        table, _, key = name.partition(".")
        if table == section:
            yield key.strip(), value.strip()


def _convert(
    section: type,
    given: Mapping[str, Plain],
    name: str,
    base: Path,
    problems: list[str],
    text_form: bool = False,
) -> dict[str, object]:
    hints = type_hints(section)
    values: dict[str, object] = {}
    for key, raw in given.items():
        if key not in hints:
            problems.append(_unknown_key(section, name, key, hints))
            continue
        try:
            values[key] = _parse(raw, hints[key], base, text_form)
        except (TypeError, ValueError) as error:
            problems.append(f"{name}.{key}: {error}")
    return values


def _unknown_key(section: type, name: str, key: str, known: Iterable[str]) -> str:
    moved: Mapping[str, str] = getattr(section, "MOVED_KEYS", {})
    if key in moved:
        return f"{name}.{key} is called {moved[key]} now"
    return f"unknown key {name}.{key} (known: {', '.join(known)})"


def _parse(raw: Plain, wanted: object, base: Path, text_form: bool) -> object:
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else ()
    if options:  # `Path | None`: an empty text means "not set"
        return None if raw == "" else _parse(raw, options[0], base, text_form)
    if (item := _item_of(wanted)) is not None:
        return _parse_array(raw, item, base, text_form)
    if wanted is bool and text_form and str(raw).lower() in {"true", "false"}:
        return str(raw).lower() == "true"
    if wanted in (int, float) and text_form:
        with contextlib.suppress(ValueError):
            return wanted(str(raw))
    if wanted is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if wanted is Path and isinstance(raw, str):
        return base / Path(raw).expanduser()
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        names = [member.value for member in wanted]
        if raw not in names:
            raise ValueError(f"expected one of {', '.join(map(str, names))}, found {_shown(raw)}")
        return wanted(raw)
    if isinstance(wanted, type) and type(raw) is wanted:
        return raw
    expected = WORDS[wanted] if isinstance(wanted, type) and wanted in WORDS else "another value"
    raise ValueError(f"expected {expected}, found {_shown(raw)}")


def _shown(raw: Plain) -> str:
    """A value as whoever wrote it knows it, cut to a line."""
    return json.dumps(raw, default=str, ensure_ascii=False)[:SHOWN_CHARS]


def _item_of(wanted: object) -> type | None:
    """`X` of a `tuple[X, ...]`."""
    if typing.get_origin(wanted) is not tuple:
        return None
    return typing.cast(type, typing.get_args(wanted)[0])


def _parse_array(raw: Plain, item: type, base: Path, text_form: bool) -> tuple[object, ...]:
    if text_form and isinstance(raw, str):
        if not raw.startswith("["):
            parts = [part.strip() for part in raw.split(",") if part.strip()]
            return tuple(_parse(part, item, base, True) for part in parts)
        try:
            raw = tomllib.loads(f"array = {raw}")["array"]
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"expected a TOML array: {error}") from None
    if not isinstance(raw, list):
        raise TypeError(f"expected an array, found {_shown(raw)}")
    if dataclasses.is_dataclass(item):
        return tuple(_parse_table(value, number, item, base) for number, value in enumerate(raw, 1))
    return tuple(_parse(value, item, base, False) for value in raw)


def _parse_table(raw: Plain, number: int, item: type, base: Path) -> object:
    """One table of an array of tables, numbered from 1."""
    if not isinstance(raw, dict):
        raise TypeError(f"expected tables, found {_shown(raw)}")
    problems: list[str] = []
    name, made = f"table {number}", None
    values, needed = _convert(item, raw, name, base, problems), _keys_without_default(item)
    if missing := [key for key in needed if key not in raw]:
        problems.append(f"{name}: expected {' and '.join(missing)} too, found {', '.join(raw)}")
    if values.keys() >= set(needed):
        made = _construct(item, values, name, problems)
    if problems:
        raise ValueError("; ".join(problems))
    return made


def _keys_without_default(item: type) -> list[str]:
    return [
        field.name
        for field in dataclasses.fields(item)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]


def _construct(section: type, values: dict[str, object], name: str, problems: list[str]) -> object:
    try:
        return section(**values)
    except ConfigError as error:
        problems.append(f"[{name}] {error}")
    return None


def _plain(value: object) -> Plain:
    if isinstance(value, enum.Enum):
        return typing.cast(Scalar, value.value)
    if value is None:
        return ""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return dict(_plain_table(value))
    return str(value) if isinstance(value, Path) else typing.cast(Scalar, value)


def _plain_table(item: object) -> dict[str, Plain]:
    return {field: _plain(getattr(item, field)) for field, _ in documented_fields(type(item))}
