"""The settings of four proxies that decide how many ports they need, in the words of their own configuration.

Text between backticks can be pasted: each piece is a whole line or block of the configuration. Words in capitals have
to be filled in. The sources:

- HAProxy 2.6 and newer, doc/configuration.txt: `http-reuse`, `pool-max-conn`, `timeout connect`, `timeout server-fin`,
  and "source" of a server, which sets IP_BIND_ADDRESS_NO_PORT where no port is given.
- nginx, ngx_http_upstream_module (`keepalive`, `keepalive_timeout`; both the version and the header are the default
  from 1.29.7 on), ngx_http_proxy_module (`proxy_bind`, `proxy_connect_timeout`), ngx_http_split_clients_module; its
  CHANGES say that IP_BIND_ADDRESS_NO_PORT is set from 1.11.4 on.
- Envoy, config.cluster.v3.Cluster (`connect_timeout`, `outlier_detection`), config.core.v3.HttpProtocolOptions
  (`max_requests_per_connection`, `idle_timeout`), config.core.v3.BindConfig, whose default selector takes one address
  of each family, so that every source needs a cluster of its own; IP_BIND_ADDRESS_NO_PORT is set from 1.40 on.
- Squid, src/cf.data.pre: `server_persistent_connections`, `server_idle_pconn_timeout`, `connect_timeout`,
  `cache_peer ... connect-fail-limit`, `tcp_outgoing_address`, `acl ... random`; its ChangeLog says that
  IP_BIND_ADDRESS_NO_PORT is set from 6 on.
"""

from __future__ import annotations

import re
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Proxy(StrEnum):
    """The proxies whose settings are known, by the names that people call them."""

    HAPROXY = "HAProxy"
    NGINX = "nginx"
    ENVOY = "Envoy"
    SQUID = "Squid"


class Setting(StrEnum):
    """What a program can be told to do so that it needs fewer ports."""

    REUSE = "reuse"
    """Send many requests over one connection."""
    IDLE = "idle"
    """Keep fewer idle connections, or for a shorter time."""
    CONNECT_TIMEOUT = "connect_timeout"
    """Give up soon on a destination that does not answer."""
    HEALTH_CHECK = "health_check"
    """Send nothing to a destination that does not answer."""
    HALF_CLOSED = "half_closed"
    """Give up on a connection that only one side has closed."""
    SECOND_SOURCE = "second_source"
    """Connect from one more address, SOURCE2, to DESTINATION."""
    NO_PORT = "no_port"
    """Bind to an address, but let connect() choose the port."""
    UNIX_SOCKET = "unix_socket"
    """Reach a destination on the same host without a port."""


_ENVOY_BIND = (
    "`upstream_bind_config: {source_address: {address: ADDRESS, port_value: 0}, "
    "socket_options: [{level: 0, name: 24, int_value: 1, state: STATE_PREBIND}]}`"
)

SETTINGS: Mapping[Setting, Mapping[Proxy | None, str]] = MappingProxyType(
    {
        Setting.REUSE: {
            Proxy.HAPROXY: "`http-reuse safe`, or where clients retry `http-reuse aggressive`, in mode http, without "
            "`option httpclose` and `option http-server-close`",
            Proxy.NGINX: '`keepalive 64;` in the upstream, `proxy_http_version 1.1; proxy_set_header Connection "";`',
            Proxy.ENVOY: "no `max_requests_per_connection: 1` in the cluster's `common_http_protocol_options`",
            Proxy.SQUID: "`server_persistent_connections on`",
            None: "keep-alive, or a pool of connections",
        },
        Setting.IDLE: {
            Proxy.HAPROXY: "`default-server pool-max-conn 100`",
            Proxy.NGINX: "`keepalive_timeout 15s;` in the upstream",
            Proxy.ENVOY: "`idle_timeout: 15s` in the cluster's `common_http_protocol_options`",
            Proxy.SQUID: "`server_idle_pconn_timeout 15 seconds`",
            None: "a smaller pool of connections, or a shorter idle timeout",
        },
        Setting.CONNECT_TIMEOUT: {
            Proxy.HAPROXY: "`timeout connect 3s`",
            Proxy.NGINX: "`proxy_connect_timeout 3s;`",
            Proxy.ENVOY: "`connect_timeout: 3s` in the cluster",
            Proxy.SQUID: "`connect_timeout 3 seconds`",
            None: "a connect timeout of a few seconds",
        },
        Setting.HEALTH_CHECK: {
            Proxy.HAPROXY: "`default-server check inter 2s fall 2`",
            Proxy.NGINX: "`server DESTINATION max_fails=2 fail_timeout=10s;` in the upstream",
            Proxy.ENVOY: "`outlier_detection: {}` in the cluster",
            Proxy.SQUID: "`connect-fail-limit=2` on the `cache_peer` line",
            None: "a health check, or a circuit breaker",
        },
        Setting.HALF_CLOSED: {
            Proxy.HAPROXY: "`timeout server-fin 5s`",
            None: "close() instead of shutdown() once the answer has been read",
        },
        Setting.SECOND_SOURCE: {
            Proxy.HAPROXY: "`server second DESTINATION source SOURCE2`",
            Proxy.NGINX: '`split_clients "$remote_addr$remote_port" $source { 50% SOURCE; * SOURCE2; }` in http, '
            "`proxy_bind $source;`",
            Proxy.ENVOY: f"a second cluster with {_ENVOY_BIND.replace('ADDRESS', 'SOURCE2')}, "
            "and `weighted_clusters` over both",
            Proxy.SQUID: "from version 6 on `acl half random 0.5` and `tcp_outgoing_address SOURCE2 half`",
            None: "bind() to SOURCE2 after setting IP_BIND_ADDRESS_NO_PORT",
        },
        Setting.NO_PORT: {
            Proxy.HAPROXY: "`source ADDRESS` without a port does it by itself",
            Proxy.NGINX: "`proxy_bind ADDRESS;` without a port does it by itself from 1.11.4 on",
            Proxy.ENVOY: f"{_ENVOY_BIND} (1.40 does it by itself)",
            Proxy.SQUID: "`tcp_outgoing_address ADDRESS` does it by itself from version 6 on",
            None: "`setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));` before bind()",
        },
        Setting.UNIX_SOCKET: {
            Proxy.HAPROXY: "`server local unix@/run/SERVICE.sock`",
            Proxy.NGINX: "`server unix:/run/SERVICE.sock;` in the upstream",
            Proxy.ENVOY: "`address: {pipe: {path: /run/SERVICE.sock}}`",
            None: "AF_UNIX, where both ends can",
        },
    }
)
"""What to write for each proxy. Under None is what any other program should do."""


def how_to(setting: Setting, program: str | None) -> str:
    """Return what to write for a setting.

    Args:
        setting: The setting.
        program: The name of a process or unit, such as `haproxy` or `haproxy.service`. For a known proxy the answer is
            that proxy's setting, for another program the advice for any program, and for None everything known.
    """
    known = SETTINGS[setting]
    if program is None:
        return "; ".join(f"{proxy or 'other programs'}: {text}" for proxy, text in known.items())
    proxy = next((proxy for proxy in known if proxy and program.lower().startswith(proxy.lower())), None)
    return f"{proxy or 'In its settings or its code'}: {known[proxy]}"


def known_program(names: Iterable[str | None]) -> str | None:
    """Return the first of these names of processes and units that belongs to a known proxy, None if none does.

    `haproxy`, `haproxy.service` and `haproxy@blue.service` do, `haproxy_exporter` does not.
    """
    known = {proxy.lower() for proxy in Proxy}
    return next((name for name in names if name and re.split("[.@]", name)[0].lower() in known), None)
