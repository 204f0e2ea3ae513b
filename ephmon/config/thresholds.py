"""The shape of the thresholds: which part a missing part is taken from, and which values fit together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ephmon.config.scalars import NETWORK, PORT, RATIO, duration_seconds, one_of
from ephmon.config.schema import ListOf, ReadState, Section, Shape, Single, join, locate
from ephmon.config.yaml_document import SequenceNode, dump
from ephmon.model.alerting.thresholds import CLEARANCE, Severity, Threshold, ThresholdOverride, Thresholds
from ephmon.model.pools.kinds import PoolKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ephmon.config.yaml_document import Document, Node, TextTree

_PARTS = {
    "utilisation": ("utilisation", Single(RATIO)),
    "for": ("for_seconds", Single(duration_seconds("0s", "24h"))),
    "clear": ("clear", Single(RATIO)),
}


@dataclass(frozen=True, slots=True)
class ThresholdShape:
    """One threshold. Missing parts come from `base`, but a new `utilisation` without `clear` gets a new `clear`."""

    base: Threshold

    def read(self, node: Node, path: str, state: ReadState) -> Threshold | None:
        """Return the threshold, or None after adding what is wrong with it."""
        threshold = Section(self.base, _PARTS).read(node, path, state)
        if threshold is None:
            return None
        if join(path, "utilisation") in state.set_keys and join(path, "clear") not in state.set_keys:
            threshold = threshold.at(threshold.utilisation)
        mistake = _clear_mistake(threshold)
        if mistake is not None:
            key = "clear" if join(path, "clear") in state.set_keys else "utilisation"
            state.refuse(locate(node, key), join(path, key), mistake)
            return None
        return threshold

    def dump(self, value: Threshold) -> TextTree:
        """Return all parts of the threshold."""
        return Section(self.base, _PARTS).dump(value)


@dataclass(frozen=True, slots=True)
class ThresholdsShape:
    """The thresholds of all pools; an override takes missing parts from the general thresholds."""

    default: Thresholds

    def read(self, node: Node, path: str, state: ReadState) -> Thresholds | None:
        """Return the thresholds, or None after adding what is wrong with them."""
        before = len(state.problems)
        entries = state.entries(node, path, ("warning", "critical", "overrides"))
        parts: dict[str, Threshold | None] = {}
        for key, base in (("warning", self.default.warning), ("critical", self.default.critical)):
            if key in entries:
                parts[key] = ThresholdShape(base).read(entries[key], join(path, key), state)
        is_valid = None not in parts.values()
        general = Thresholds(
            warning=parts.get("warning") or self.default.warning,
            critical=parts.get("critical") or self.default.critical,
        )
        mistake = _order_mistake(general.warning, general.critical) if is_valid else None
        if mistake is not None:
            key = f"{'warning' if 'warning' in entries else 'critical'}.utilisation"
            state.refuse(locate(node, key), f"{path}.{key}", mistake)
        if "overrides" in entries:
            shape = ListOf(_override_shape(general, compare=is_valid and mistake is None))
            overrides = shape.read(entries["overrides"], join(path, "overrides"), state)
            general = replace(general, overrides=overrides or ())
        return general if len(state.problems) == before else None

    def dump(self, value: Thresholds) -> TextTree:
        """Return the thresholds, with every part of each override."""
        return {
            "warning": ThresholdShape(value.warning).dump(value.warning),
            "critical": ThresholdShape(value.critical).dump(value.critical),
            "overrides": ListOf(_override_shape(value)).dump(value.overrides),
        }


def describe_thresholds(thresholds: Mapping[Severity, Threshold]) -> str:
    """Return the thresholds of a pool as YAML, with every part."""
    return dump(
        {severity.value: ThresholdShape(thresholds[severity]).dump(thresholds[severity]) for severity in Severity}
    )


def override_line(document: Document, index: int) -> int | None:
    """Return the line where `thresholds.overrides[index]` begins, or None if the document has no such override."""
    node = locate(document.root, "thresholds.overrides") if document.root else None
    return node.items[index].line if isinstance(node, SequenceNode) and index < len(node.items) else None


def _override_shape(general: Thresholds, *, compare: bool = True) -> Section[ThresholdOverride]:
    """Return the shape; `compare` says whether an override is checked against the general thresholds."""
    keys: dict[str, tuple[str, Shape[Any]]] = {
        "kind": ("kind", Single(one_of(PoolKind))),
        "source": ("source", Single(NETWORK)),
        "destination": ("destination", Single(NETWORK)),
        "destination_port": ("destination_port", Single(PORT)),
        "warning": ("warning", ThresholdShape(general.warning)),
        "critical": ("critical", ThresholdShape(general.critical)),
    }
    return Section(ThresholdOverride(), keys, partial(_override_mistakes, general if compare else None))


def _override_mistakes(general: Thresholds | None, override: ThresholdOverride) -> Iterator[tuple[str, str]]:
    if override.kind not in (None, PoolKind.TCP_CONNECT):
        for key in ("destination", "destination_port"):
            if getattr(override, key) is not None:
                yield key, f"a {override.kind} pool has no destination; remove this key or kind"
    source, destination = override.source, override.destination
    if source is not None and destination is not None and source.version != destination.version:
        yield (
            "source",
            f"the source is IPv{source.version}, but the destination is IPv{destination.version}; use one family",
        )
    if general is not None and (override.warning or override.critical):
        mistake = _order_mistake(override.warning or general.warning, override.critical or general.critical)
        if mistake is not None:
            yield f"{'warning' if override.warning else 'critical'}.utilisation", mistake


def _order_mistake(warning: Threshold, critical: Threshold) -> str | None:
    low, high = warning.utilisation, critical.utilisation
    return None if low < high else f"the warning at {low} is not below the critical at {high}; change one of them"


def _clear_mistake(threshold: Threshold) -> str | None:
    utilisation, clear = threshold.utilisation, threshold.clear
    if clear <= 0:
        return f"clear would be {CLEARANCE} below the utilisation of {utilisation}, so not above 0; set clear too"
    if clear >= utilisation:
        return f"{clear} is not below the utilisation of {utilisation}; use a smaller value"
    return None
