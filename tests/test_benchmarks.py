"""The benchmark suite runs and says what it should; how fast anything is, is not for a test to say."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import proxy, results
from benchmarks.load import Population, destination, populated
from benchmarks.measurement import Spread, percentile, table
from benchmarks.scenario import NotMeasuredError
from tests import sockets
from tests.processes import environment, python_with_libbpf

PAGE = Path(__file__).parents[1] / "docs" / "proof" / "benchmarks.md"
QUICK_SECONDS = 300.0
WRK = """\
Running 1s test @ http://10.9.1.2:8000/
  1 threads and 100 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.58ms    1.06ms  21.01ms   82.88%
  Latency Distribution
     50%    1.33ms
     99%    {p99}
  71434 requests in 1.00s, 78.34MB read
{errors}Requests/sec:  71434.05
Transfer/sec:     78.34MB
"""


def test_the_quick_run_measures_one_scenario_of_each_way_and_fails_nowhere() -> None:
    done = subprocess.run(
        python_with_libbpf("-m", "benchmarks", "--quick"),
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=QUICK_SECONDS,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    sections = re.findall(r"<!-- begin (\S+) -->\n### \1\n\n(.*?)<!-- end \1 -->", done.stdout, re.DOTALL)
    smoke = [scenario.name for scenario in command.SCENARIOS.values() if scenario.is_smoke]
    assert [name for name, _ in sections] == [*smoke, "bounds"]
    assert {name.partition("-")[0] for name in smoke} == {name.partition("-")[0] for name in command.SCENARIOS}
    assert [name for name, body in sections if "| ---: |" not in body] == []


@pytest.mark.parametrize("name", [*command.SCENARIOS, results.BOUNDS])
def test_the_page_has_a_place_for_each_scenario(name: str) -> None:
    assert PAGE.read_text(encoding="utf-8").count(f"<!-- begin {name} -->") == 1


def test_the_page_gathers_the_bounds_that_its_sections_tell() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert results.bounds(page) in page


def test_a_scenario_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(SystemExit, match=r"^There is no scenario poll-2; --list names them\.$"):
        command.main(["poll-2"])


def test_a_population_is_what_it_says() -> None:
    """Established sockets inside the range toward their destinations, accepted ones and TIME_WAIT as many as asked."""
    with populated(Population(established=40, destinations=20, accepted=30, time_wait=40)) as namespace:
        seen = Counter(namespace.call(connections))

    assert seen == Counter(
        {
            **{("ESTAB", True, f"{destination(number)}:443"): 2 for number in range(20)},
            **{("ESTAB", False, f"{destination(number)}:20000"): 1 for number in range(30)},
            **{("TIME-WAIT", True, f"{destination(number)}:{8000 + number % 4}"): 2 for number in range(20)},
        }
    )


def test_a_population_has_a_table_of_its_own() -> None:
    """Negative is how the kernel says that a namespace shares the table of the host."""
    with populated(Population()) as namespace:
        assert int(namespace.call(sockets.read_sysctl, "net.ipv4.tcp_ehash_entries")) > 0


def connections() -> list[tuple[str, bool, str]]:
    """Return what ss sees in this namespace: state, whether the local port is in the range, and the peer."""
    low, high = map(int, sockets.read_sysctl("net.ipv4.ip_local_port_range").split())
    lines = subprocess.run(["ss", "-tnH", "state", "all"], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in lines.splitlines())
    return [(row[0], low <= int(row[3].rpartition(":")[2]) <= high, row[4]) for row in rows if row[0] != "LISTEN"]


def test_a_section_is_renewed_in_its_place_and_the_bounds_are_gathered() -> None:
    page = f"head\n{results.section('a', 'old')}\nbetween\n{results.section('bounds', '')}\nfoot"
    new = results.section("a", "| thing | **2** | <= 3 | kept | 7 |\n| other | 2 |  |  | 7 |\n")

    gathered = results.section("bounds", table(["scenario", "what", "measured", "bound", ""], [_GATHERED]))
    assert results.renewed(page, new) == f"head\n{new}\nbetween\n{gathered}\nfoot"


_GATHERED = ("a", "thing", "**2**", "<= 3", "kept")


def test_a_page_without_a_place_for_a_section_is_reported_what_it_lacks() -> None:
    with pytest.raises(results.NoSuchSectionError, match="one section a: a line <!-- begin a -->"):
        results.renewed("", results.section("a", ""))


def test_a_spread_is_the_median_between_the_least_and_the_greatest() -> None:
    assert Spread((3.0, 1000.0, 2.25)).written(1) == "3.0 (2.2-1,000.0)"
    assert Spread((3.0, 1.0)).over(Spread((2.0, 4.0))).values == (1.5, 0.25)


@pytest.mark.parametrize(("ratio", "value"), [(0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100)])
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(ratio: float, value: float) -> None:
    assert percentile(range(1, 101), ratio) == value


@pytest.mark.parametrize(("p99", "milliseconds"), [("2.95ms", 2.95), ("812.00us", 0.812), ("1.20s", 1200.0)])
def test_what_wrk_prints_is_understood(p99: str, milliseconds: float) -> None:
    assert proxy.parse(WRK.format(p99=p99, errors="")) == proxy.Run(71434.05, milliseconds)


def test_requests_that_fail_are_no_measurement() -> None:
    with pytest.raises(NotMeasuredError):
        proxy.parse(WRK.format(p99="2.95ms", errors="  Non-2xx or 3xx responses: 12\n"))
