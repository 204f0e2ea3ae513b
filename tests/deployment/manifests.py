"""The manifests of deploy/kubernetes as a cluster would take them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
Document = dict[str, Any]


def documents(name: str) -> list[Document]:
    """Return the documents of a file."""
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def only(name: str, kind: str) -> Document:
    """Return the one document of this kind that a file has."""
    (found,) = [document for document in documents(name) if document["kind"] == kind]
    return found


def patched(target: Document, name: str) -> Document:
    """Return what `kubectl patch --patch-file` makes of a document (a strategic merge)."""
    (patch,) = documents(name)
    return _merged(target, patch)


def _merged(target: Document, patch: Document) -> Document:
    merged = dict(target)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = _merged(merged.get(key, {}), value)
        elif isinstance(value, list) and key in _MERGE_KEYS:
            merged[key] = _merged_list(merged.get(key, []), value, _MERGE_KEYS[key])
        else:
            merged[key] = value
    return merged


_MERGE_KEYS = {"containers": "name", "volumes": "name", "volumeMounts": "mountPath"}
"""Lists of which a patch changes single items: patchMergeKey in staging/src/k8s.io/api/core/v1/types.go."""


def _merged_list(target: list[Document], patch: list[Document], key: str) -> list[Document]:
    items = {item[key]: item for item in target}
    for item in patch:
        items[item[key]] = _merged(items.get(item[key], {}), item)
    return list(items.values())


def tls_configuration() -> str:
    """Return the lines that the patch for TLS asks for in the configuration."""
    text = (FOLDER / "tls.patch.yaml").read_text(encoding="utf-8")
    (block,) = re.findall(r"^#   tls:\n(?:#     .*\n)+", text, re.MULTILINE)
    return re.sub(r"^#   ", "", block, flags=re.MULTILINE)


def pod_of(workload: Document) -> Document:
    """Return the specification of the pods that a workload makes."""
    pod: Document = workload["spec"]["template"]["spec"]
    return pod


def ephmon_in(pod: Document) -> Document:
    """Return the container of ephmon."""
    (found,) = [container for container in pod["containers"] if container["name"] == "ephmon"]
    return dict(found)


def volumes_of(pod: Document) -> dict[str, Document]:
    """Return by its path in the container of ephmon what is mounted there: the mount and the volume in one."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    return {mount["mountPath"]: {**volumes[mount["name"]], **mount} for mount in ephmon_in(pod)["volumeMounts"]}
