"""The settings of proxies: HAProxy and nginx themselves read theirs, a YAML parser those of Envoy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import yaml

from ephmon.model.advice.proxies import SETTINGS, Proxy, Setting, how_to, known_program
from tests.processes import run

if TYPE_CHECKING:
    from pathlib import Path

FILLED_IN = {
    "DESTINATION": "127.0.0.1:8080",
    "ADDRESS": "127.0.0.2",
    "SOURCE2": "127.0.0.3",
    "SOURCE": "127.0.0.2",
    "SERVICE": "service",
}


def pieces(proxy: Proxy) -> dict[str, Setting]:
    """Return what stands between backticks, filled in, and which setting it belongs to."""
    return {
        re.sub("|".join(FILLED_IN), lambda word: FILLED_IN[word[0]], piece): setting
        for setting, texts in SETTINGS.items()
        for piece in re.findall(r"`([^`]*)`", texts.get(proxy, ""))
    }


# --- HAProxy ------------------------------------------------------------------------------------------------------

SECTION = """\
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
listen service
    bind 127.0.0.1:18080
    {piece}
    server first 127.0.0.1:8080
"""


@pytest.mark.parametrize("piece", pieces(Proxy.HAPROXY))
def test_haproxy_takes_each_line_in_a_section_with_servers(piece: str, tmp_path: Path) -> None:
    assert haproxy_takes(SECTION.format(piece=piece), tmp_path)


def haproxy_takes(text: str, folder: Path) -> bool:
    file = folder / "haproxy.cfg"
    file.write_text(text, encoding="utf-8")
    return run(["haproxy", "-c", "-f", str(file)]).returncode == 0


def test_haproxy_refuses_what_is_wrong(tmp_path: Path) -> None:
    assert not haproxy_takes(SECTION.format(piece="http-reuse agressive"), tmp_path)


# --- nginx --------------------------------------------------------------------------------------------------------

PROXY = """\
error_log stderr;
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    scgi_temp_path {folder};
    uwsgi_temp_path {folder};
    {http}
    upstream backend {{
        server 127.0.0.1:8080;
        {upstream}
    }}
    server {{
        listen 127.0.0.1:8081;
        location / {{
            proxy_pass http://backend;
            {location}
        }}
    }}
}}
"""


def nginx_takes(folder: Path, *, http: str = "", upstream: str = "", location: str = "") -> bool:
    file = folder / "nginx.conf"
    file.write_text(PROXY.format(folder=folder, http=http, upstream=upstream, location=location), encoding="utf-8")
    return run(["nginx", "-t", "-e", "stderr", "-c", str(file)]).returncode == 0


def test_nginx_takes_all_settings_at_once_where_they_are_said_to_belong(tmp_path: Path) -> None:
    """A word behind the piece says so where it is not the location; the upstream's server is the one there is."""
    lines = pieces(Proxy.NGINX)
    http = [line for line in lines if line.startswith("split_clients ")]
    location = [line for line in lines if line.startswith("proxy_") and line != "proxy_bind 127.0.0.2;"]
    upstream = [line for line in lines if line not in {*http, *location, "proxy_bind 127.0.0.2;"}]
    said = {
        piece: place
        for text in (texts.get(Proxy.NGINX, "") for texts in SETTINGS.values())
        for piece, place in re.findall(r"`([^`]*)` in (?:the )?(\w+)", text)
    }

    assert (len(http), len(location), len(upstream)) == (1, 3, 4)
    assert sorted(said.values()) == ["http", "upstream", "upstream", "upstream", "upstream"]
    assert nginx_takes(tmp_path, http="\n".join(http), upstream="\n".join(upstream), location="\n".join(location))
    assert nginx_takes(tmp_path, location="proxy_bind 127.0.0.2;")


def test_nginx_refuses_what_is_wrong(tmp_path: Path) -> None:
    assert not nginx_takes(tmp_path, upstream="keepalive many;")
    assert not nginx_takes(tmp_path, location="keepalive 64;")


# --- Envoy and Squid ----------------------------------------------------------------------------------------------

OF_A_CLUSTER = {
    "max_requests_per_connection": 1,
    "idle_timeout": "15s",
    "connect_timeout": "3s",
    "outlier_detection": {},
    "address": {"pipe": {"path": "/run/service.sock"}},
}


def test_what_is_for_envoy_is_yaml_with_the_names_of_its_api() -> None:
    values = [yaml.safe_load(piece) for piece in pieces(Proxy.ENVOY)]
    fields = {name: value for one in values if isinstance(one, dict) for name, value in one.items()}
    bind = fields.pop("upstream_bind_config")

    assert fields == OF_A_CLUSTER
    assert {one for one in values if isinstance(one, str)} == {"common_http_protocol_options", "weighted_clusters"}
    assert bind == {
        "source_address": {"address": "127.0.0.2", "port_value": 0},
        "socket_options": [{"level": 0, "name": 24, "int_value": 1, "state": "STATE_PREBIND"}],
    }


def test_what_is_for_squid_is_what_squid_5_was_seen_to_take() -> None:
    assert list(pieces(Proxy.SQUID)) == [
        "server_persistent_connections on",
        "server_idle_pconn_timeout 15 seconds",
        "connect_timeout 3 seconds",
        "connect-fail-limit=2",
        "cache_peer",
        "acl half random 0.5",
        "tcp_outgoing_address 127.0.0.3 half",
        "tcp_outgoing_address 127.0.0.2",
    ]


# --- the choice ---------------------------------------------------------------------------------------------------

PROGRAMS = {
    "haproxy": "HAProxy: `timeout connect 3s`",
    "haproxy.service": "HAProxy: `timeout connect 3s`",
    "NGINX": "nginx: `proxy_connect_timeout 3s;`",
    "envoy": "Envoy: `connect_timeout: 3s` in the cluster",
    "squid": "Squid: `connect_timeout 3 seconds`",
    "python3": "In its settings or its code: a connect timeout of a few seconds",
    "": "In its settings or its code: a connect timeout of a few seconds",
}


@pytest.mark.parametrize(("program", "text"), PROGRAMS.items(), ids=PROGRAMS)
def test_a_program_is_known_by_how_its_name_begins(program: str, text: str) -> None:
    assert how_to(Setting.CONNECT_TIMEOUT, program) == text


@pytest.mark.parametrize(
    ("names", "known"),
    [
        (["haproxy"], "haproxy"),
        (["lb.service", "nginx.service"], "nginx.service"),
        ([None, "haproxy@blue.service", "nginx"], "haproxy@blue.service"),
        (["haproxy_exporter", "3f2a9c0b1d4e", "uid 33", "", None], None),
    ],
)
def test_the_first_name_of_a_known_proxy_is_chosen_and_else_none(names: list[str | None], known: str | None) -> None:
    assert known_program(names) == known


def test_a_proxy_without_the_setting_gets_what_fits_any_program() -> None:
    assert how_to(Setting.HALF_CLOSED, "nginx").startswith("In its settings or its code: close() instead of")


@pytest.mark.parametrize("setting", Setting)
def test_every_setting_says_what_other_programs_do(setting: Setting) -> None:
    assert None in SETTINGS[setting]
    assert f"; other programs: {SETTINGS[setting][None]}" in how_to(setting, None)
