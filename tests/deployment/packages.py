"""The built packages hold the documentation, and its links work where they put it: EPHMON_PACKAGES=DIRECTORY pytest.

The directory is one that `script/package` has filled. `script/test` runs this after it has built the packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.links import anchors, broken_links

ROOT = Path(__file__).parents[2]
PACKAGES = Path(os.environ["EPHMON_PACKAGES"])
RULES = ROOT / "deploy" / "prometheus" / "ephmon-alerts.yml"
BPF_FILES = {file.name: file.read_bytes() for file in (ROOT / "ephmon" / "kernel" / "bpf").glob("bind_table.*bpf.*")}
PAGES = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}


def unpacked_wheel(folder: Path) -> Path:
    """Install the wheel into a folder as pip does, without what it depends on; return where its documentation is."""
    (wheel,) = PACKAGES.glob("ephmon-*.whl")
    # Without --ignore-installed, pip would take the one away that this environment runs.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*pip, "--prefix", folder, wheel], stdin=subprocess.DEVNULL, check=True)
    return folder / "share" / "doc" / "ephmon"


def unpacked_debian_package(folder: Path) -> Path:
    """Unpack the Debian package into a folder; return where its documentation is."""
    (package,) = PACKAGES.glob("ephmon_*_all.deb")
    subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
    return folder / "usr" / "share" / "doc" / "ephmon"


@pytest.fixture(scope="module", name="documentation", params=[unpacked_wheel, unpacked_debian_package])
def _documentation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    documentation: Path = request.param(tmp_path_factory.mktemp("installed"))
    return documentation


def test_the_wheel_has_the_bpf_objects_their_source_and_their_licences(tmp_path: Path) -> None:
    modules = unpacked_wheel(tmp_path).parents[2] / "lib"
    (licences,) = modules.glob("*/site-packages/ephmon-*.dist-info/licenses")

    assert bpf_files(modules) == BPF_FILES
    assert {str(file.relative_to(licences)) for file in licences.rglob("*") if file.is_file()} == {
        "LICENSE",
        "LICENSES/BSD-2-Clause.txt",
        "LICENSES/GPL-2.0-only.txt",
    }


def test_the_debian_package_has_the_bpf_objects_and_recommends_what_loads_them(tmp_path: Path) -> None:
    unpacked_debian_package(tmp_path)
    (package,) = PACKAGES.glob("ephmon_*_all.deb")
    field = ["dpkg-deb", "--field", str(package), "Recommends"]

    assert bpf_files(tmp_path / "usr" / "lib" / "python3") == BPF_FILES
    assert subprocess.run(field, stdout=subprocess.PIPE, encoding="ascii", check=True).stdout == "libbpf1\n"


def bpf_files(folder: Path) -> dict[str, bytes]:
    """Return name and content of the BPF program's files below a folder."""
    return {file.name: file.read_bytes() for file in folder.rglob("bind_table.*bpf.*")}


def test_every_page_is_installed(documentation: Path) -> None:
    assert {str(page.relative_to(documentation)) for page in documentation.rglob("*.md")} == PAGES


def test_every_link_of_the_installed_pages_leads_somewhere(documentation: Path) -> None:
    assert broken_links(documentation.rglob("*.md"), documentation) == []


def test_every_alert_leads_to_a_section_of_the_runbook_that_the_debian_package_installs(tmp_path: Path) -> None:
    unpacked_debian_package(tmp_path)
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    urls = {rule["annotations"]["runbook_url"] for group in groups for rule in group["rules"]}

    missing = []
    for url in urls:
        path, _, anchor = url.removeprefix("file:///").partition("#")
        if not (tmp_path / path).is_file() or anchor not in anchors(tmp_path / path):
            missing.append(url)
    assert urls
    assert missing == []
