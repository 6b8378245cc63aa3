"""Settings: round trip through TOML, overrides, and every problem reported at once."""

import enum
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
