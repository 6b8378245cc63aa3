"""Settings: round trip through TOML, overrides, and every problem reported at once."""

import enum
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest

from offsite.emulator.settings import load_settings, render_toml, to_tables
from offsite.secure.errors import ConfigError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Paint:
    """What it looks like."""

    colour: Annotated[Colour, "red or blue"] = Colour.RED
    layers: Annotated[int, "how often"] = 1
    share: Annotated[float, "of the wall"] = 0.5
    glossy: Annotated[bool, "or matt"] = False

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ConfigError("layers: expected at least 1")


@dataclass(frozen=True, slots=True)
class Place:
    file: Annotated[Path | None, "where it is"] = None


@dataclass(frozen=True, slots=True)
class Job:
    paint: Paint = field(default_factory=Paint)
    place: Place = field(default_factory=Place)


@dataclass(frozen=True, slots=True)
class Brush:
    name: Annotated[str, "what it is called"]
    colour: Annotated[Colour, "its colour"] = Colour.RED
    width: Annotated[float, "in centimetres"] = 1.0

    def __post_init__(self) -> None:
        if self.width <= 0:
            raise ConfigError(f"width: expected more than 0, found {self.width}")


@dataclass(frozen=True, slots=True)
class Tools:
    """What there is to paint with."""

    brushes: Annotated[tuple[Brush, ...], "one table for each"] = ()
    colours: Annotated[tuple[Colour, ...], "in this order"] = (Colour.RED,)
    shares: Annotated[tuple[float, ...], "of the pot"] = (0.5, 1.0)
    limit: Annotated[float | None, "at most (empty: any)"] = None


@dataclass(frozen=True, slots=True)
class Shop:
    tools: Tools = field(default_factory=Tools)
    paint: Paint = field(default_factory=Paint)


def test_what_is_rendered_reads_back(tmp_path: Path) -> None:
    job = Job(Paint(Colour.BLUE, 3, 0.25, True), Place(tmp_path / "x"))
    path = tmp_path / "job.toml"
    path.write_text(render_toml(job))
    assert load_settings(Job, path) == job
    assert "# red or blue" in path.read_text()


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text('[place]\nfile = "data/x.jsonl"\n')
    assert load_settings(Job, path).place.file == tmp_path / "data/x.jsonl"


def test_overrides_win_and_are_parsed_by_type() -> None:
    overrides = ["paint.colour=blue", "paint.layers=2", "paint.share=1e-1", "paint.glossy=true"]
    assert load_settings(Job, None, overrides).paint == Paint(Colour.BLUE, 2, 0.1, True)


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text('[paint]\ncolour = "green"\nlayers = "two"\nsheen = 1\n[plaice]\nfile = "x"\n')
    with pytest.raises(ConfigError) as caught:
        load_settings(Job, path, ["paint.share=half", "nonsense"])
    for part in ("green", "layers", "sheen", "plaice", "half", "nonsense"):
        assert part in str(caught.value)


def test_a_failed_check_names_its_section() -> None:
    with pytest.raises(ConfigError, match=r"\[paint\] layers: expected at least 1"):
        load_settings(Job, None, ["paint.layers=0"])


@pytest.mark.parametrize("text", ["[paint\n", "loose = 1\n"])
def test_a_file_that_is_no_table_of_sections_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"job\.toml"):
        load_settings(Job, path)


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(Job, tmp_path)


def test_tables_are_plain() -> None:
    assert to_tables(Job()) == {
        "paint": {"colour": "red", "layers": 1, "share": 0.5, "glossy": False},
        "place": {"file": ""},
    }


@pytest.mark.parametrize(
    "text",
    [
        "[tools]\n[[tools.brushes]]\nwidth = 0",
        "[tools]\n[[tools.brushes]]\nname = 1\nwidth = true\ncolour = 3",
        "[tools]\nbrushes = true",
        "[tools]\nbrushes = [[]]",
        "[tools]\ncolours = [{a = 1}]\nlimit = 'x'",
        "[tools]\nshares = [1, 'two', false, {a = 1}, [2]]",
        "[paint]\nlayers = 1.5\nglossy = 'yes'\nshare = 2026-01-01",
        "[place]\nfile = 3",
    ],
)
def test_no_message_speaks_python(text: str, tmp_path: Path) -> None:
    """Whoever writes TOML knows neither our classes nor Python's types."""
    path = tmp_path / "shop.toml"
    path.write_text(text)
    cls = Job if text.startswith("[place") else Shop
    with pytest.raises(ConfigError) as caught:
        load_settings(cls, path)
    said = str(caught.value)
    internals = r"__|\bstr\b|\bint\b|\bfloat\b|\bbool\b|\bPath\b|\bdict\b|Brush|Colour|True|False|datetime|'"
    assert re.search(internals, said) is None, said


BRUSHES = Tools((Brush("fine"), Brush("flat", Colour.BLUE, 2.5)), (Colour.BLUE, Colour.RED), ())


@pytest.mark.parametrize("tools", [Tools(), BRUSHES, Tools(limit=0.5)])
def test_arrays_and_tables_read_back_as_they_were_rendered(tools: Tools, tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(render_toml(Shop(tools)))
    assert load_settings(Shop, path) == Shop(tools)
    text = path.read_text()
    assert "# one table for each\n#   name: what it is called\n" in text
    assert ("# [[tools.brushes]]" in text) is (not tools.brushes)


def test_arrays_on_the_command_line_are_separated_by_commas_or_toml() -> None:
    overrides = [
        "tools.colours=blue, red",
        "tools.shares=0.25",
        "tools.limit=0.1",
        'tools.brushes=[{name = "flat", width = 2}]',
    ]
    tools = load_settings(Shop, None, overrides).tools
    assert tools == Tools(
        (Brush("flat", Colour.RED, 2.0),), (Colour.BLUE, Colour.RED), (0.25,), 0.1
    )
    assert load_settings(Shop, None, ["tools.colours=[]", "tools.shares="]).tools.shares == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('brushes = "flat"', "tools.brushes: expected an array"),
        ("brushes = [1]", "tools.brushes: expected tables, found 1"),
        (
            "[[tools.brushes]]\nwidth = 1.0",
            "tools.brushes: table 1: expected name too, found width",
        ),
        ("[[tools.brushes]]\nname = 1", "table 1.name: expected text, found 1"),
        ('[[tools.brushes]]\nname = "x"\nwidth = 0', r"\[table 1\] width: expected more"),
        ('[[tools.brushes]]\nname = "x"\nhair = 0', "unknown key table 1.hair"),
        ('colours = ["green"]', "tools.colours: expected one of red, blue"),
        ("shares = [true]", "tools.shares: expected a number, found true"),
    ],
)
def test_a_wrong_item_of_an_array_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(f"[tools]\n{text}\n")
    with pytest.raises(ConfigError, match=says):
        load_settings(Shop, path)
