"""The table of all fuzz targets."""

from __future__ import annotations

from tests.fuzz import bind_table, configuration, incidents, names, netlink, procfs, trace, web

TARGETS = {
    target.name: target
    for module in (netlink, trace, bind_table, procfs, names, configuration, web, incidents)
    for target in module.TARGETS
}
"""By name."""
