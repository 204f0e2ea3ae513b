"""The completions and the manual name every command and option that there is, and none that there is not."""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

import pytest

from ephmon import cli

DEPLOY = Path(__file__).parents[2] / "deploy"
BASH = DEPLOY / "completions" / "ephmon.bash"
ZSH = (DEPLOY / "completions" / "_ephmon").read_text(encoding="utf-8")
FISH = (DEPLOY / "completions" / "ephmon.fish").read_text(encoding="utf-8")
MANUAL = DEPLOY / "man" / "ephmon.1"
GENERAL = {"--config", "--help"}
"""What every command takes."""


def commands() -> dict[str, set[str]]:
    """Return the long options of each command."""
    (found,) = [action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: _options(parser) for name, parser in found.choices.items()}


def _options(parser: argparse.ArgumentParser) -> set[str]:
    return {option for option in parser._option_string_actions if option.startswith("--")}


COMMANDS = commands()


def completed(*words: str) -> set[str]:
    """Return what bash offers for the last of the words."""
    script = (
        'source "$1"; shift; COMP_WORDS=(ephmon "$@"); COMP_CWORD=$#; compopt() { :; }; _ephmon; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    result = subprocess.run(
        ["bash", "-eu", "-c", script, "bash", str(BASH), *words],
        capture_output=True,
        cwd=DEPLOY / "completions",
        encoding="utf-8",
        check=True,
    )
    return set(result.stdout.split())


def test_bash_offers_the_commands_and_the_options_without_one() -> None:
    assert completed("") == {*COMMANDS, *_options(cli._parser())}
    assert completed("--config", "file", "--v") == {"--version"}


@pytest.mark.parametrize("command", COMMANDS)
def test_bash_offers_the_options_of_a_command(command: str) -> None:
    assert completed(command, "--") == COMMANDS[command]
    assert completed("--config", "pools", command, "--") == COMMANDS[command]


def test_bash_offers_files_where_files_belong_and_nothing_where_it_knows_nothing() -> None:
    assert completed("--config", "ephmon.f") == {"ephmon.fish"}
    assert completed("check-config", "ephmon.f") == {"ephmon.fish"}
    assert completed("pools", "--top", "") == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_zsh_has_the_options_of_a_command(command: str) -> None:
    (branch,) = re.findall(rf"^        {command}\)\n(.*?);;$", ZSH, re.MULTILINE | re.DOTALL)

    assert "_arguments $config " in branch
    # What excludes an option stands before it in parentheses.
    assert {*re.findall(r"'(?:\([\w -]+\))?(--[\w-]+)", branch), "--config"} == COMMANDS[command]


def test_zsh_has_the_commands_and_the_options_without_one() -> None:
    (last,) = re.findall(r"^_arguments \$config \\\n.*", ZSH, re.MULTILINE | re.DOTALL)

    assert set(re.findall(r"^ +([\w-]+)\\:", last, re.MULTILINE)) == set(COMMANDS)
    assert {*re.findall(r"\)(--[\w-]+)", last), "--config"} == _options(cli._parser())


@pytest.mark.parametrize("command", COMMANDS)
def test_fish_has_the_options_of_a_command(command: str) -> None:
    lines = re.findall(r"^complete .*_from ([\w -]+)' -l ([\w-]+)", FISH, re.MULTILINE)

    assert {f"--{name}" for meant, name in lines if command in meant.split()} | GENERAL == COMMANDS[command]


def test_fish_has_the_commands_and_the_options_without_one() -> None:
    (listed,) = re.findall(r"^set -l commands (.*)$", FISH, re.MULTILINE)

    assert listed.split() == re.findall(r'commands" -a ([\w-]+)', FISH) == list(COMMANDS)
    without = re.findall(r"^complete -c ephmon (?:-n \"not .*?\" )?-l ([\w-]+)", FISH, re.MULTILINE)
    assert {f"--{name}" for name in without} == _options(cli._parser())


def _sections(heading: str, text: str) -> dict[str, str]:
    """Return the sections of the manual below headings of this level, by the first word of their names."""
    parts = re.split(rf"^\.{heading} (.*)\n", text, flags=re.MULTILINE)[1:]
    return {name.replace("\\-", "-").split()[0]: body for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _named(section: str) -> set[str]:
    tags = re.findall(r"^\.TP\n(.*)$", section, re.MULTILINE)
    return {word for tag in tags for word in re.findall(r"--[a-z-]+", tag.replace("\\-", "-"))}


def test_the_manual_explains_every_command_and_option() -> None:
    sections = _sections("SH", MANUAL.read_text(encoding="utf-8"))
    explained = {name: _named(body) for name, body in _sections("SS", sections["COMMANDS"]).items()}

    assert {name: options | GENERAL for name, options in explained.items()} == COMMANDS
    assert _named(sections["OPTIONS"]) == _options(cli._parser())


def test_the_manual_is_well_formed() -> None:
    result = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", str(MANUAL)], capture_output=True, encoding="utf-8", check=True
    )

    assert result.stderr == ""
