"""Every input of the corpus is answered as it must be: what programs really wrote, and what once failed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fuzz.findings import Findings
from tests.fuzz.mutation import Structure, mutate
from tests.fuzz.target import CORPUS, REGRESSIONS
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
MOST_KIB = 300
"""Of all corpora: they are read by everybody who clones the project."""


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_is_answered_as_it_must_be(name: str) -> None:
    target = TARGETS[name]
    inputs = target.inputs()
    for data in inputs.values():
        target.check(data)

    assert inputs


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_cut_off_anywhere_is_answered_too(name: str) -> None:
    target = TARGETS[name]
    for data in sorted(target.inputs().values(), key=len)[:3]:
        for end in range(0, len(data), 1 + len(data) // 50):
            target.check(data[:end])


def test_each_folder_belongs_to_a_target_and_together_they_are_small() -> None:
    folders = [folder for kind in (CORPUS, REGRESSIONS) for folder in kind.iterdir() if folder.is_dir()]

    assert {folder.name for folder in folders} <= TARGETS.keys()
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) < MOST_KIB << 10


def test_the_page_says_of_every_target_what_must_hold_and_how_far_it_came() -> None:
    page = (ROOT / "docs/proof/fuzzing.md").read_text(encoding="utf-8")
    tables = [re.findall(r"^\| ([a-z_]+) \| [^|]", part, re.MULTILINE) for part in page.split("\n## ")]

    assert [names[1:] for names in tables if set(names) >= TARGETS.keys()] == [list(TARGETS), list(TARGETS)]


def test_the_corpus_fits_into_what_is_tried() -> None:
    """A longer input is cut by libFuzzer."""
    for target in TARGETS.values():
        lengths = [len(data) for data in target.inputs().values()]
        assert sum(length <= target.max_bytes for length in lengths) >= len(lengths) / 2, target.name


@pytest.mark.parametrize("structure", Structure)
def test_a_mutation_depends_on_input_and_seed_alone(structure: Structure) -> None:
    data = {Structure.NETLINK: TARGETS["inet_diag"].seeds()[0][:256]}.get(
        structure, b'{"a": [1, 22, {"b": "text"}],\n "c": 333}\n'
    )

    def changed(seed: int) -> bytes:
        return mutate(data, 256, seed, lambda given, _: given[::-1], structure)

    results = [changed(seed) for seed in range(200)]
    assert results == [changed(seed) for seed in range(200)]
    assert len(set(results)) > 20
    assert max(map(len, results)) <= 256


def test_of_inputs_that_fail_in_one_place_the_shortest_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = Findings(tmp_path / "target")
    for data in (b"four", b"longer", b"two"):
        findings.keep(data, _error(int, "x"))

    (kept,) = (tmp_path / "target").iterdir()
    assert kept.read_bytes() == b"two"
    assert kept.name.startswith("ValueError-test_corpora.py-")
    assert capsys.readouterr().err.count("finding: ") == 1


def _error(function: Callable[[Any], object], argument: Any) -> BaseException:
    with pytest.raises((ValueError, KeyError)) as caught:
        function(argument)
    return caught.value


def test_what_fails_in_two_places_is_kept_twice(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "target")
    for error in (_error(int, "x"), _error({}.__getitem__, 0)):
        findings.keep(b"x", error)

    assert len(list((tmp_path / "target").iterdir())) == 2
