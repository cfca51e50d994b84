"""Promises about where settings come from."""

from __future__ import annotations

from dataclasses import fields

import pytest

from piecework.config import Settings, tool_setting
from piecework.errors import ValidationError


@pytest.fixture
def folder(tmp_path):
    def write(text):
        (tmp_path / "pyproject.toml").write_text(text, "utf-8")
        return tmp_path

    return write


def test_defaults(tmp_path):
    """Where nobody says anything the defaults hold."""
    assert Settings.load({}, tmp_path) == Settings()


def test_the_environment(tmp_path):
    """Every setting may come from a variable of its name."""
    settings = Settings.load({"PIECEWORK_CRASH_LIMIT": "3", "PIECEWORK_SWITCH_INTERVAL_SECONDS": "0.0005"}, tmp_path)
    assert (settings.crash_limit, settings.switch_interval_seconds) == (3, 0.0005)


def test_the_project_file(folder):
    """Every setting may stand in the project's own file."""
    settings = Settings.load({}, folder("[tool.piecework]\ncrash_limit = 4\nmail_retry_seconds = [1, 2.5]\n"))
    assert (settings.crash_limit, settings.mail_retry_seconds) == (4, (1.0, 2.5))


def test_the_environment_wins_over_the_project_file(folder):
    """An operator's variable wins over what the project says."""
    where = folder("[tool.piecework]\ncrash_limit = 4\n")
    assert Settings.load({"PIECEWORK_CRASH_LIMIT": "3"}, where).crash_limit == 3


@pytest.mark.parametrize(
    "name", [f.name for f in fields(Settings) if f.name.endswith("_seconds") and f.name != "mail_retry_seconds"]
)
def test_a_duration_may_be_a_fraction(folder, name):
    """Half a second is a duration, from either source."""
    assert getattr(Settings.load({f"PIECEWORK_{name.upper()}": "2.5"}, folder("")), name) == 2.5
    assert getattr(Settings.load({}, folder(f"[tool.piecework]\n{name} = 2.5\n")), name) == 2.5


@pytest.mark.parametrize("text", ["many", "", "2.5", "1e3"])
def test_a_count_is_a_whole_number(tmp_path, text):
    """What is no whole number is refused with the variable's name."""
    with pytest.raises(ValidationError, match="PIECEWORK_CRASH_LIMIT"):
        Settings.load({"PIECEWORK_CRASH_LIMIT": text}, tmp_path)


def test_a_list_of_durations(tmp_path):
    """Several durations are separated by commas."""
    assert Settings.load({"PIECEWORK_MAIL_RETRY_SECONDS": "1,2.5"}, tmp_path).mail_retry_seconds == (1.0, 2.5)


def test_a_bad_value_in_the_project_file(folder):
    """A value of the wrong type is refused with its key."""
    with pytest.raises(ValidationError, match=r"\[tool.piecework\] crash_limit"):
        Settings.load({}, folder("[tool.piecework]\ncrash_limit = [1]\n"))


def test_a_project_file_that_is_no_toml(folder):
    """A broken project file is told with its path, not skipped."""
    with pytest.raises(ValidationError, match=r"pyproject\.toml cannot be read"):
        Settings.load({}, folder("[tool"))


def test_other_tools_do_not_matter(folder):
    """Whatever else stands in the project file is none of our business."""
    assert Settings.load({}, folder("[tool.other]\ncrash_limit = 4\n")) == Settings()


def test_a_text_of_the_project(folder):
    """Texts such as the app's name can be asked for."""
    where = folder("[tool.piecework]\napp = 'shop:app'\ncrash_limit = 4\n")
    assert [tool_setting(name, where) for name in ("app", "crash_limit", "store")] == ["shop:app", None, None]
