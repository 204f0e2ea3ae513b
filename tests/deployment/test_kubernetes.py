"""The manifests for Kubernetes: what its schemas, its Pod Security Standards and ephmon itself say of them."""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import kubernetes_validate
import pytest
import yaml

import ephmon
from ephmon.commands.reading import DEFAULT_CONFIG
from ephmon.config.settings import Config, parse
from tests.deployment.manifests import (
    FOLDER,
    documents,
    ephmon_in,
    only,
    patched,
    pod_of,
    tls_configuration,
    volumes_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.deployment.manifests import Document

ROOT = Path(__file__).parents[2]
SIDECAR = only("sidecar.yaml", "Deployment")
DAEMON_SET = only("daemonset.yaml", "DaemonSet")
WITH_OWNERS = patched(DAEMON_SET, "owners.patch.yaml")
WITH_BPF = patched(DAEMON_SET, "bpf.patch.yaml")
WITH_TLS = patched(DAEMON_SET, "tls.patch.yaml")
WORKLOADS = {
    "sidecar": SIDECAR,
    "daemonset": DAEMON_SET,
    "with owners": WITH_OWNERS,
    "with BPF": WITH_BPF,
    "with TLS": WITH_TLS,
}
TO_APPLY = {
    f"{document['kind']} {document['metadata']['name']}": document
    for document in chain(documents("sidecar.yaml"), documents("daemonset.yaml"))
}
MONITORS = {document["metadata"]["name"]: document for document in documents("podmonitor.yaml")}
OLDEST, NEWEST = "1.25", "1.37"
SINCE_APPARMOR = "1.30"
"""The first version that has `appArmorProfile`."""


def every_workload(*names: str) -> pytest.MarkDecorator:
    """Run a test on these workloads, or on all."""
    return pytest.mark.parametrize("workload", [WORKLOADS[name] for name in names or WORKLOADS], ids=names or WORKLOADS)


# --- what Kubernetes takes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("document", TO_APPLY.values(), ids=TO_APPLY)
def test_a_manifest_follows_the_schema_and_has_no_key_that_the_schema_has_not(document: Document, version: str) -> None:
    assert kubernetes_validate.validate(document, version, strict=True) == version


@pytest.mark.parametrize(
    ("document", "version"),
    [
        (WITH_OWNERS, SINCE_APPARMOR),
        (WITH_OWNERS, NEWEST),
        *((document, version) for document in (WITH_BPF, WITH_TLS) for version in (OLDEST, NEWEST)),
    ],
)
def test_a_patch_makes_what_follows_the_schema(document: Document, version: str) -> None:
    assert kubernetes_validate.validate(document, version, strict=True) == version


def test_the_schema_refuses_a_key_that_is_misspelt() -> None:
    mistake = {**DAEMON_SET, "spec": {**DAEMON_SET["spec"], "updatestrategy": {}}}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(mistake, NEWEST, strict=True)


@every_workload()
def test_a_workload_selects_its_own_pods(workload: Document) -> None:
    labels = workload["spec"]["template"]["metadata"]["labels"]

    assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items()


# --- rights -------------------------------------------------------------------------------------------------------


@every_workload("sidecar", "daemonset", "with TLS")
def test_ephmon_gets_no_privilege(workload: Document) -> None:
    assert ephmon_in(pod_of(workload))["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod_of(workload)["automountServiceAccountToken"] is False


def test_the_pod_with_the_sidecar_meets_the_restricted_pod_security_standard() -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, of what a manifest can have."""
    pod = pod_of(SIDECAR)

    assert {"hostNetwork", "hostPID", "hostIPC", "hostUsers", "initContainers"} & pod.keys() == set()
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= {"configMap", "emptyDir"}
    assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["seccompProfile"]["type"]) == (
        True,
        "RuntimeDefault",
    )
    for container in pod["containers"]:
        context = container["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["capabilities"]) == (False, {"drop": ["ALL"]})
        assert "privileged" not in context
        assert [port for port in container["ports"] if "hostPort" in port] == []


def test_the_daemon_set_has_the_network_of_the_node_and_nothing_else_of_it_that_can_be_written() -> None:
    pod = pod_of(DAEMON_SET)

    assert (pod["hostNetwork"], pod.get("hostPID"), pod.get("hostIPC")) == (True, None, None)
    of_the_node = {path: mount["readOnly"] for path, mount in volumes_of(pod).items() if "hostPath" in mount}
    assert of_the_node == {"/sys/fs/cgroup": True}


def test_the_daemon_set_says_whose_sockets_it_sees_and_whose_it_does_not() -> None:
    text = " ".join((FOLDER / "daemonset.yaml").read_text(encoding="utf-8").replace("#", " ").split())

    assert "sees the sockets and the port range of the node itself" in text
    assert "does NOT see into pods with a network of their own" in text


def test_the_patch_for_owners_adds_two_capabilities_and_the_processes_of_the_node() -> None:
    before, after = pod_of(DAEMON_SET), pod_of(WITH_OWNERS)

    assert after["hostPID"] is True
    assert ephmon_in(after)["securityContext"] == {
        **ephmon_in(before)["securityContext"],
        "runAsNonRoot": False,
        "runAsUser": 0,
        "runAsGroup": 0,
        "capabilities": {"drop": ["ALL"], "add": ["DAC_READ_SEARCH", "SYS_PTRACE"]},
        "appArmorProfile": {"type": "Unconfined"},
    }
    changed = {"hostPID": None, "securityContext": None, "containers": None}
    assert {**after, **changed} == {**before, **changed}


def test_the_patch_for_bpf_adds_two_capabilities_and_nothing_else_of_the_node() -> None:
    before, after = pod_of(DAEMON_SET), pod_of(WITH_BPF)

    assert ephmon_in(after)["securityContext"] == {
        **ephmon_in(before)["securityContext"],
        "runAsNonRoot": False,
        "runAsUser": 0,
        "runAsGroup": 0,
        "capabilities": {"drop": ["ALL"], "add": ["BPF", "PERFMON"]},
        "seccompProfile": {"type": "Unconfined"},
    }
    changed = {"securityContext": None, "containers": None}
    assert {**after, **changed} == {**before, **changed}


@every_workload()
def test_ephmon_may_take_as_much_memory_as_the_service_may(workload: Document) -> None:
    unit = (ROOT / "deploy" / "systemd" / "ephmon.service").read_text(encoding="utf-8")

    assert "\nMemoryMax=256M\n" in unit
    assert ephmon_in(pod_of(workload))["resources"]["limits"]["memory"] == "256Mi"


# --- what ephmon takes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sidecar.yaml", "daemonset.yaml"])
def test_the_configuration_is_one_that_ephmon_takes_and_lies_where_it_looks(name: str) -> None:
    config_map, (workload,) = only(name, "ConfigMap"), [one for one in documents(name) if one["kind"] in KINDS]
    mounts = volumes_of(pod_of(workload))
    config = parse(config_map["data"][DEFAULT_CONFIG.name], name)

    assert mounts[str(DEFAULT_CONFIG.parent)]["configMap"]["name"] == config_map["metadata"]["name"]
    assert "emptyDir" in mounts[str(config.incidents.directory)]
    assert config.listen == Config().listen


KINDS = {"Deployment", "DaemonSet"}


def test_the_configuration_for_tls_names_files_that_the_patch_mounts() -> None:
    text = (FOLDER / "tls.patch.yaml").read_text(encoding="utf-8")
    config = parse(tls_configuration(), "tls.patch.yaml")
    files = {Path(config.tls.certificate), Path(config.tls.key), Path(config.tls.client_ca)}

    assert {str(file.parent) for file in files} <= volumes_of(pod_of(WITH_TLS)).keys()
    assert {f"--from-file={file.name}" for file in files} == set(re.findall(r"--from-file=\S+", text))


def test_incidents_fit_into_their_volume() -> None:
    for workload in (SIDECAR, DAEMON_SET):
        assert volumes_of(pod_of(workload))["/var/lib/ephmon"]["emptyDir"]["sizeLimit"] == "32Mi"
    assert Config().incidents.max_mib < 32


@every_workload()
def test_ephmon_listens_on_the_port_that_is_named_and_on_no_address_but_one(workload: Document) -> None:
    container = ephmon_in(pod_of(workload))
    (address,), (port,) = container["env"], container["ports"]

    assert container["args"] == ["run", "--listen", f"$({address['name']}):{port['containerPort']}"]
    assert address["valueFrom"]["fieldRef"]["fieldPath"] in {"status.podIP", "status.hostIP"}
    assert (port["name"], port["containerPort"]) == ("ephmon", Config().listen.port)


@every_workload("sidecar", "daemonset", "with owners", "with BPF")
def test_a_process_that_hangs_is_restarted(workload: Document) -> None:
    probe = ephmon_in(pod_of(workload))["livenessProbe"]

    assert probe["httpGet"] == {"path": "/-/healthy", "port": "ephmon"}


def test_readiness_is_asked_for_where_nothing_but_ephmon_depends_on_it() -> None:
    assert ephmon_in(pod_of(DAEMON_SET))["readinessProbe"]["httpGet"] == {"path": "/-/ready", "port": "ephmon"}
    assert "readinessProbe" not in ephmon_in(pod_of(SIDECAR))


def test_with_tls_the_kubelet_asks_for_nothing_that_takes_a_certificate() -> None:
    container = ephmon_in(pod_of(WITH_TLS))

    for name in ("livenessProbe", "readinessProbe"):
        assert container[name]["tcpSocket"] == {"port": "ephmon"}
        assert "httpGet" not in container[name]


@every_workload()
def test_the_image_is_of_this_version(workload: Document) -> None:
    assert ephmon_in(pod_of(workload))["image"] == f"registry.example.com/ephmon:{ephmon.__version__}"


def test_the_image_runs_as_the_user_of_the_manifests() -> None:
    text = (ROOT / "deploy" / "container" / "Containerfile").read_text(encoding="utf-8")

    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["65532:65532"]


def test_the_network_policy_lets_prometheus_alone_reach_ephmon() -> None:
    everybody, prometheus = only("sidecar.yaml", "NetworkPolicy")["spec"]["ingress"]

    assert everybody == {"ports": [{"port": "http"}]}
    assert prometheus["ports"] == [{"port": "ephmon"}]
    assert len(prometheus["from"]) == 1


# --- the Prometheus Operator --------------------------------------------------------------------------------------


def paths(value: object, path: str = "") -> Iterator[str]:
    """Yield the path of every key, `[]` for the items of a list."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}.{key}"
            yield from paths(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, f"{path}[]")


FIELDS = {
    ".jobLabel",
    ".namespaceSelector",
    ".namespaceSelector.any",
    ".namespaceSelector.matchNames",
    ".podMetricsEndpoints",
    ".podMetricsEndpoints[].authorization",
    ".podMetricsEndpoints[].authorization.credentials",
    *(f".podMetricsEndpoints[].authorization.credentials.{key}" for key in ("name", "key")),
    ".podMetricsEndpoints[].interval",
    ".podMetricsEndpoints[].port",
    ".podMetricsEndpoints[].relabelings",
    ".podMetricsEndpoints[].relabelings[].action",
    ".podMetricsEndpoints[].relabelings[].regex",
    ".podMetricsEndpoints[].relabelings[].replacement",
    ".podMetricsEndpoints[].relabelings[].separator",
    ".podMetricsEndpoints[].relabelings[].sourceLabels",
    ".podMetricsEndpoints[].relabelings[].targetLabel",
    ".podMetricsEndpoints[].scheme",
    ".podMetricsEndpoints[].scrapeTimeout",
    ".podMetricsEndpoints[].tlsConfig",
    *(f".podMetricsEndpoints[].tlsConfig.{of}" for of in ("ca", "cert", "serverName", "keySecret")),
    *(f".podMetricsEndpoints[].tlsConfig.{of}.secret" for of in ("ca", "cert")),
    *(f".podMetricsEndpoints[].tlsConfig.{of}.{key}" for of in ("ca.secret", "cert.secret") for key in ("name", "key")),
    *(f".podMetricsEndpoints[].tlsConfig.keySecret.{key}" for key in ("name", "key")),
    ".selector",
    ".selector.matchLabels",
}
"""Of a PodMonitor's `spec`, as far as ephmon may use them: example/prometheus-operator-crd of prometheus-operator,
monitoring.coreos.com_podmonitors.yaml (0.93.0)."""


def with_keys_in_comments(text: str) -> str:
    """Return the PodMonitors with the lines for TLS and the token taken in."""
    return re.sub(r"^( +)# ( *\w+: ?.*)$", r"\1\2", text, flags=re.MULTILINE)


@pytest.mark.parametrize("scheme", [None, "https"])
def test_a_pod_monitor_has_no_field_that_the_operator_does_not_know(scheme: str | None) -> None:
    text = (FOLDER / "podmonitor.yaml").read_text(encoding="utf-8")
    monitors = list(yaml.safe_load_all(with_keys_in_comments(text) if scheme else text))
    for monitor in monitors:
        assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
        labels = {f".selector.matchLabels.{name}" for name in monitor["spec"]["selector"]["matchLabels"]}
        assert set(paths(monitor["spec"])) - labels - FIELDS == set()
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert re.fullmatch(r"\d+s", endpoint["interval"])
    (endpoint,) = monitors[0]["spec"]["podMetricsEndpoints"]
    assert endpoint.get("scheme") == scheme
    assert ("authorization" in endpoint) is ("tlsConfig" in endpoint) is (scheme is not None)


@pytest.mark.parametrize(
    ("name", "workload", "everywhere"),
    [("ephmon-nodes", DAEMON_SET, None), ("ephmon-sidecars", SIDECAR, {"any": True})],
)
def test_a_pod_monitor_finds_the_pods_and_their_port(
    name: str, workload: Document, everywhere: dict[str, bool] | None
) -> None:
    monitor, template = MONITORS[name], workload["spec"]["template"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]

    assert monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert endpoint["port"] in {port["name"] for port in ephmon_in(template["spec"])["ports"]}
    assert monitor["spec"].get("namespaceSelector") == everywhere
    assert everywhere or monitor["metadata"]["namespace"] == workload["metadata"]["namespace"]


@pytest.mark.parametrize("monitor", MONITORS.values(), ids=MONITORS)
def test_targets_have_the_job_that_the_rules_look_for_and_an_instance_that_says_where_it_is(monitor: Document) -> None:
    rules = (ROOT / "deploy" / "prometheus" / "ephmon-alerts.yml").read_text(encoding="utf-8")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    labels = {rule["targetLabel"]: rule for rule in endpoint["relabelings"]}

    assert 'up{job="ephmon"}' in rules
    assert labels["job"] == {"targetLabel": "job", "replacement": "ephmon"}
    assert labels["instance"]["sourceLabels"][-1] in {
        "__meta_kubernetes_pod_node_name",
        "__meta_kubernetes_pod_name",
    }
