from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import piecework.errors
from piecework.errors import PieceworkError

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
PROMISES = ROOT / "docs" / "promises.md"
NUMBER = re.compile(r"[A-Z]\d+")


def blocks(page):
    """The Python blocks of a page, each with the line that it begins at."""
    text = page.read_text("utf-8")
    for found in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield text[: found.start()].count("\n") + 1, found[1]


def programs(page):
    """The Python blocks of a page that are whole programs: they make their own App."""
    return [(line, text) for line, text in blocks(page) if re.search(r"^app = App\(", text, re.MULTILINE)]


def run(text, folder):
    (folder / "letters.py").write_text(text)
    command = [sys.executable, "-W", "error", "letters.py"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=25, check=True).stdout


@pytest.mark.covers("R6")
def test_the_first_program_of_the_readme_runs(tmp_path):
    """The quick start runs as it is written: the README's first program prints completed."""
    _, text = programs(README)[0]
    assert "completed\n" in run(text, tmp_path)


def test_the_quickstarts_programs_run(tmp_path):
    """Every whole program of the quickstart can be run, and opened as an app."""
    found = programs(ROOT / "docs" / "quickstart.md")
    assert found
    for _, text in found:
        opens = (
            "\nimport asyncio\nasync def opened():\n    async with app:\n        print('open')\nasyncio.run(opened())\n"
        )
        assert run(text + opens, tmp_path) == "open\n"


GUIDES = ["services", "jobs", "database", "transactions", "workspaces", "workflows", "web", "pieces"]


@pytest.mark.parametrize("guide", [f"{name}.md" for name in GUIDES])
def test_a_guide_runs_as_it_is_written(tmp_path, guide):
    """The programs of a guide run, one after the other, and each prints what stands below it."""
    text = (ROOT / "docs" / "guides" / guide).read_text("utf-8")
    programs, told = [], []
    for kind, block in re.findall(r"^```(python|text)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if kind == "python":
            programs.append(block)
            told.append("")
        else:
            told[-1] = block
    assert all(told)
    separator = "if __name__ == '__main__':\n    print(end='\\f')\n"
    (tmp_path / "shop.py").write_text(separator.join(programs))
    command = [sys.executable, "-W", "error", "shop.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=25, check=False)
    assert (done.stderr, done.stdout.split("\f")) == ("", told)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_python_block_is_python(page):
    """Every Python block of the documentation can be parsed."""
    for line, text in blocks(page):
        body = "\n    ".join(text.splitlines())
        compile(f"async def block():\n    {body}\n", f"{page.name}:{line}", "exec", ast.PyCF_ONLY_AST)


def test_the_readme_is_short_and_begins_with_code():
    """The README has at most 120 lines, and its first Python block begins by line 25."""
    assert len(README.read_text("utf-8").splitlines()) <= 120
    assert next(blocks(README))[0] <= 25


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_page_that_is_named_is_there(page):
    """Every link to a file and every `docs/…` path in the documentation leads somewhere."""
    text = page.read_text("utf-8")
    links = [page.parent / link for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
    paths = [ROOT / path for path in re.findall(r"`((?:docs|examples|src|tests)/[\w./-]+)`", text)]
    assert [str(path) for path in [*links, *paths] if not path.exists()] == []


def test_every_error_code_is_explained():
    """Every error class of piecework stands in docs/errors.md, with its code."""
    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    classes = [value for value in vars(piecework.errors).values() if isinstance(value, type)]
    errors = [cls for cls in classes if issubclass(cls, PieceworkError)]
    missing = [cls.__name__ for cls in errors if f"`{cls.__name__}`" not in text or f"| {cls.code} |" not in text]
    assert missing == []


@pytest.mark.covers("R175")
def test_one_command_tests_and_one_tests_on_change():
    """`make test` runs all tests, `make watch` runs them again whenever a file changes; `make help` tells both."""
    told = subprocess.run(["make", "help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert {"test", "watch"} <= {line.split()[0] for line in told.splitlines() if line.strip()}
    dry = subprocess.run(["make", "--dry-run", "watch"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert "watchfiles" in dry
    assert "pytest" in dry


def carried():
    """The numbers that tests carry, each with the files that do."""
    found = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "covers":
                for argument in node.args:
                    found.setdefault(ast.literal_eval(argument), set()).add(path.name)
    return found


def promised():
    """The numbers that docs/promises.md gives a sentence, in its order."""
    return re.findall(r"^- \*\*([A-Z]\d+)\*\* \S.*\.$", PROMISES.read_text("utf-8"), re.MULTILINE)


def test_every_number_that_a_test_carries_has_a_sentence():
    """Every number that a test carries has one sentence in docs/promises.md."""
    assert sorted(set(carried()) - set(promised())) == []


def test_every_sentence_has_a_test():
    """Every sentence of docs/promises.md is carried by a test, and stands there once, in order."""
    numbers = promised()
    assert sorted(set(numbers) - set(carried())) == []
    assert numbers == sorted(set(numbers), key=lambda number: ("WREPAN".index(number[0]), int(number[1:])))


def test_numbers_are_well_formed():
    """A number is a letter of its list and digits."""
    assert [number for number in carried() if not NUMBER.fullmatch(number)] == []


def test_every_promise_has_its_sentence():
    """Every test of this folder says in its docstring what it shows."""
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                sentence = ast.get_docstring(node)
                assert sentence, f"{path.name}: {node.name}"
                assert sentence.endswith("."), f"{path.name}: {node.name}"
