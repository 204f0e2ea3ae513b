"""The documentation names all that there is and nothing that there is not."""

from __future__ import annotations

import argparse
import re
import subprocess
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from ephmon import cli
from ephmon.config.settings import Config, describe, load
from ephmon.model.alerting.thresholds import ThresholdOverride
from ephmon.outputs.metrics.catalogue import METRICS
from ephmon.outputs.text.wording import explanations
from tests.builders import make_pool
from tests.links import broken_links

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
}
COMMANDS = PAGES["docs/commands.md"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _keys(section: object, path: str = "") -> Iterator[str]:
    """Yield the dotted paths of the keys that hold a value and not more keys."""
    if not (isinstance(section, dict) and section):
        yield path
        return
    for name, value in section.items():
        yield from _keys(value, f"{path}.{name}" if path else name)


KEYS = set(_keys(yaml.safe_load(describe(Config()))))


def test_the_configuration_page_has_a_row_for_every_key_and_for_nothing_else() -> None:
    (section,) = re.findall(r"^## Keys$(.*?)^## ", PAGES["docs/configuration.md"], re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `([a-z_.]+)` \|", section, re.MULTILINE)

    assert sorted(rows) == sorted(KEYS)


def test_the_configuration_page_explains_every_key_of_an_override() -> None:
    (table,) = re.findall(r"^\| key of an override .*?\n\n", PAGES["docs/configuration.md"], re.MULTILINE | re.DOTALL)
    named = {
        name for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    }

    assert named == {field.name for field in fields(ThresholdOverride)}


def test_the_configuration_page_shows_mistakes_as_the_program_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    lines = ["thresholds:", "  warning:", "    utilisation: 1.4", "poll:", "  intervall: 5s"]
    file.write_text("\n" * 4 + "\n".join(lines), encoding="utf-8")

    assert cli.main(["check-config", str(file)]) == 2
    assert capsys.readouterr().err.replace(str(file), "/etc/ephmon/config.yaml") in PAGES["docs/configuration.md"]


def test_the_example_configuration_holds_every_key_at_its_default() -> None:
    example = ROOT / "config.example.yaml"

    assert set(_keys(yaml.safe_load(example.read_text(encoding="utf-8")))) == KEYS
    assert load(example) == Config()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_speaks_of_metrics_that_exist(page: str) -> None:
    """`ephmon_pool_*` stands for all that begin so. What follows a colon is recorded by a rule of Prometheus."""
    names = {metric.name for metric in METRICS}
    words = set(re.findall(r"(?<!:)\bephmon_[a-z_]+\b\*?", PAGES[page]))

    assert {word for word in words if not any(_is_meant(word, name) for name in names)} == set()


def _is_meant(word: str, name: str) -> bool:
    return name.startswith(word[:-1]) if word.endswith("*") else name == word


def test_tables_of_pools_are_explained_in_the_words_of_the_program() -> None:
    estimate, full = make_pool(exact=False, reusable=1), make_pool(remaining=0)
    shown = {
        line for page in PAGES.values() for line in re.findall(r"^(?:~|REUSABLE|At 100\.0) .*$", page, re.MULTILINE)
    }
    of_an_incident = "~ marks an estimate."

    assert shown == {*explanations([estimate, full]), of_an_incident}


def _commands() -> dict[str, argparse.ArgumentParser]:
    actions = cli._parser()._actions
    (commands,) = [action for action in actions if isinstance(action, argparse._SubParsersAction)]
    return dict(commands.choices)


@pytest.mark.parametrize("command", [*_commands(), "--version"])
def test_the_page_of_commands_has_a_row_for_every_command(command: str) -> None:
    assert re.search(rf"^\| `ephmon {command}(?![\w-])[^`]*` \|", COMMANDS, re.MULTILINE)


def test_the_page_of_commands_has_a_row_for_no_other_command() -> None:
    assert set(re.findall(r"^\| `ephmon ([\w-]+)", COMMANDS, re.MULTILINE)) == {*_commands(), "--version"}


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (command, option)
        for command, parser in _commands().items()
        for option in parser._option_string_actions
        if option.startswith("--") and option != "--help"
    ],
)
def test_the_page_of_commands_names_every_option(command: str, option: str) -> None:
    (row,) = re.findall(rf"^\| `ephmon {command}(?![\w-])([^`]*)` \|", COMMANDS, re.MULTILINE)

    assert f"[{option}" in row or f"Every command takes `{option}" in COMMANDS


def test_every_link_within_the_project_leads_somewhere() -> None:
    assert broken_links((ROOT / page for page in PAGES), ROOT) == []


def test_the_documentation_leads_to_nothing_that_is_not_installed_with_it() -> None:
    """Packages install docs/ as a folder of its own; tests/deployment/packages.py looks at what they really install."""
    docs = ROOT / "docs"

    assert broken_links(docs.rglob("*.md"), docs) == []


MOST_WORDS = 40


@pytest.mark.parametrize("page", sorted(PAGES.keys() - {"CHANGELOG.md"}))
def test_no_sentence_is_too_long_to_follow(page: str) -> None:
    """Cells of a table and items of a list are sentences of their own; code counts as one word."""
    assert [sentence for sentence in _sentences(PAGES[page]) if len(sentence.split()) > MOST_WORDS] == []


def _sentences(page: str) -> Iterator[str]:
    prose = re.sub(r"^( *)```.*?^\1```$|^    .*$|<!--.*?-->", "", page, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"`[^`]+`", "code", prose)
    prose = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", prose)
    for block in re.split(r"\n\s*\n|^#+ |^ *(?:[-*]|\d+\.) |\|", prose, flags=re.MULTILINE):
        yield from re.split(r"(?<=[.!?])[*)\"]*\s", block)


def _blocks(language: str) -> list[str]:
    """Return the fenced blocks of the README in this language, without the indentation of a list item."""
    blocks = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", README, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indentation}", "", text, flags=re.MULTILINE) for indentation, text in blocks]


def test_prometheus_takes_the_scrape_configuration_of_the_readme(tmp_path: Path) -> None:
    (block,) = _blocks("yaml")
    file = tmp_path / "prometheus.yaml"
    file.write_text(block, encoding="utf-8")

    assert _promtool("check", "config", str(file)) == 0
    assert yaml.safe_load(block)["scrape_configs"][0]["static_configs"] == [{"targets": [str(Config().listen)]}]


def test_prometheus_takes_the_queries_of_the_readme_and_of_the_page_of_metrics(tmp_path: Path) -> None:
    of_the_readme = [line for block in _blocks("promql") for line in block.splitlines()]
    of_the_page = re.findall(r"^\| [^|]*\? \| `([^`]+)` \|$", PAGES["docs/metrics.md"], re.MULTILINE)
    rules = [{"alert": f"Query{number}", "expr": query} for number, query in enumerate(of_the_readme + of_the_page)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "readme", "rules": rules}]}), encoding="utf-8")

    assert len(of_the_readme) == 3
    assert len(of_the_page) == 8
    assert _promtool("check", "rules", str(file)) == 0


def _promtool(*arguments: str) -> int:
    return subprocess.run(["promtool", *arguments], timeout=60, check=False).returncode


@pytest.mark.parametrize("dependency", PROJECT["dependencies"])
def test_a_dependency_is_explained_and_its_oldest_version_is_tested(dependency: str) -> None:
    name, oldest = dependency.split(">=")
    constraints = (ROOT / "tests" / "constraints-debian12.txt").read_text(encoding="utf-8")

    assert re.search(rf"^\| \[{name}\]\(\S+\) \| {re.escape(oldest)} \|", PAGES["docs/dependencies.md"], re.MULTILINE)
    assert re.search(rf"^{name}=={re.escape(oldest)}(\.0)*$", constraints, re.MULTILINE)
