"""The shape of the thresholds: what each part takes from the others where it is left out, and what fits together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ephmon.config.document import SequenceNode, render
from ephmon.config.scalars import NETWORK, PORT, RATIO, duration_seconds, one_of
from ephmon.config.schema import ListOf, Reading, Section, Shape, Single, join, locate
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.rules import Severity, Threshold, ThresholdOverride, Thresholds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ephmon.config.document import Document, Node, Plain

CLEARANCE = 0.05
"""How far `clear` lies below `utilisation` where it is not given."""

_PARTS = {
    "utilisation": ("utilisation", Single(RATIO)),
    "for": ("for_seconds", Single(duration_seconds("0s", "24h"))),
    "clear": ("clear", Single(RATIO)),
}


@dataclass(frozen=True, slots=True)
class ThresholdShape:
    """A threshold whose parts may be left out: `base` gives them, but a new `utilisation` brings its own `clear`."""

    base: Threshold

    def read(self, node: Node, path: str, reading: Reading) -> Threshold | None:
        """Return the threshold, or None after noting what is wrong with it."""
        threshold = Section(self.base, _PARTS).read(node, path, reading)
        if threshold is None:
            return None
        if join(path, "utilisation") in reading.set_keys and join(path, "clear") not in reading.set_keys:
            # Rounded so that 0.7 gives 0.65 and not 0.6499999999999999.
            threshold = replace(threshold, clear=round(threshold.utilisation - CLEARANCE, 12))
        mistake = _clear_mistake(threshold)
        if mistake is not None:
            key = "clear" if join(path, "clear") in reading.set_keys else "utilisation"
            reading.refuse(locate(node, key), join(path, key), mistake)
            return None
        return threshold

    def plain(self, value: Threshold) -> Plain:
        """Return all parts of the threshold."""
        return Section(self.base, _PARTS).plain(value)


@dataclass(frozen=True, slots=True)
class ThresholdsShape:
    """The thresholds of all pools; an override takes from the general ones what it leaves out."""

    default: Thresholds

    def read(self, node: Node, path: str, reading: Reading) -> Thresholds | None:
        """Return the thresholds, or None after noting what is wrong with them."""
        before = len(reading.problems)
        entries = reading.entries(node, path, ("warning", "critical", "overrides"))
        parts: dict[str, Threshold | None] = {}
        for key, base in (("warning", self.default.warning), ("critical", self.default.critical)):
            if key in entries:
                parts[key] = ThresholdShape(base).read(entries[key], join(path, key), reading)
        sound = None not in parts.values()
        general = Thresholds(
            warning=parts.get("warning") or self.default.warning,
            critical=parts.get("critical") or self.default.critical,
        )
        mistake = _disorder(general.warning, general.critical) if sound else None
        if mistake is not None:
            key = f"{'warning' if 'warning' in entries else 'critical'}.utilisation"
            reading.refuse(locate(node, key), f"{path}.{key}", mistake)
        if "overrides" in entries:
            shape = ListOf(_override_shape(general, sound=sound and mistake is None))
            overrides = shape.read(entries["overrides"], join(path, "overrides"), reading)
            general = replace(general, overrides=overrides or ())
        return general if len(reading.problems) == before else None

    def plain(self, value: Thresholds) -> Plain:
        """Return the thresholds, those of overrides in full."""
        return {
            "warning": ThresholdShape(value.warning).plain(value.warning),
            "critical": ThresholdShape(value.critical).plain(value.critical),
            "overrides": ListOf(_override_shape(value, sound=True)).plain(value.overrides),
        }


def describe_thresholds(thresholds: Mapping[Severity, Threshold]) -> str:
    """Return the thresholds of a pool as YAML, all of their parts."""
    return render({severity: ThresholdShape(thresholds[severity]).plain(thresholds[severity]) for severity in Severity})


def override_line(document: Document, place: int) -> int | None:
    """Return the line in which an override of the document begins; None if there is no such override."""
    node = locate(document.root, "thresholds.overrides") if document.root else None
    return node.items[place].line if isinstance(node, SequenceNode) and place < len(node.items) else None


def _override_shape(general: Thresholds, *, sound: bool) -> Section[ThresholdOverride]:
    """Return the shape; only where the general thresholds are `sound` is an override held against them."""
    keys: dict[str, tuple[str, Shape[Any]]] = {
        "kind": ("kind", Single(one_of(PoolKind))),
        "source": ("source", Single(NETWORK)),
        "destination": ("destination", Single(NETWORK)),
        "destination_port": ("destination_port", Single(PORT)),
        "warning": ("warning", ThresholdShape(general.warning)),
        "critical": ("critical", ThresholdShape(general.critical)),
    }
    return Section(ThresholdOverride(), keys, partial(_override_mistakes, general if sound else None))


def _override_mistakes(general: Thresholds | None, override: ThresholdOverride) -> Iterator[tuple[str, str]]:
    if override.kind not in (None, PoolKind.TCP_CONNECT):
        for key in ("destination", "destination_port"):
            if getattr(override, key) is not None:
                yield key, f"a {override.kind} pool has no destination; remove this, or the kind"
    source, destination = override.source, override.destination
    if source is not None and destination is not None and source.version != destination.version:
        yield "source", f"no pool goes from IPv{source.version} to IPv{destination.version}; use one family"
    if general is not None and (override.warning or override.critical):
        mistake = _disorder(override.warning or general.warning, override.critical or general.critical)
        if mistake is not None:
            yield f"{'warning' if override.warning else 'critical'}.utilisation", mistake


def _disorder(warning: Threshold, critical: Threshold) -> str | None:
    low, high = warning.utilisation, critical.utilisation
    return None if low < high else f"the warning at {low} does not come before the critical at {high}; move one of them"


def _clear_mistake(threshold: Threshold) -> str | None:
    utilisation, clear = threshold.utilisation, threshold.clear
    if clear <= 0:
        return f"a utilisation of {utilisation} leaves no room for a clear that is {CLEARANCE} lower; write clear too"
    if clear >= utilisation:
        return f"{clear} is not below the utilisation of {utilisation}; write a smaller one"
    return None
