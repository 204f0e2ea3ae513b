"""The image that deploy/container makes, run as deploy/kubernetes says, by podman with its default seccomp profile.

Run by script/container, which has built the image, as root; pytest runs it only where it is named.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ephmon
from tests import sockets
from tests.certificates import make_certificate
from tests.deployment.manifests import ephmon_in, only, patched, pod_of, tls_configuration, volumes_of
from tests.namespaces import Namespace
from tests.processes import Running, eventually, fetch, parse_metrics, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.deployment.manifests import Document
    from tests.processes import Reply

IMAGE = "localhost/ephmon"
ADDRESS = "10.8.0.1"
"""Of the pod, or of the node."""
SERVER = "127.0.0.9"
SIDECAR = pod_of(only("sidecar.yaml", "Deployment"))
DAEMON_SET = only("daemonset.yaml", "DaemonSet")
NODE = pod_of(DAEMON_SET)
NODE_WITH_OWNERS = pod_of(patched(DAEMON_SET, "owners.patch.yaml"))
NODE_WITH_BPF = pod_of(patched(DAEMON_SET, "bpf.patch.yaml"))
NODE_WITH_TLS = pod_of(patched(DAEMON_SET, "tls.patch.yaml"))
SECCOMP = {"RuntimeDefault": [], "Unconfined": ["--security-opt=seccomp=unconfined"]}
NAME = "under-test"
RUN = ["podman", "run", "--rm", "--network=host"]
"""With the network of podman, which is started in that of the test."""


def podman(*arguments: str | Path) -> str:
    """Run podman and return what it printed."""
    result = run(["podman", *map(str, arguments)])
    assert result.returncode == 0, result
    return result.stdout


def inside(*command: str) -> str:
    """Run a command in the container and return what it printed."""
    return podman("exec", NAME, *command)


def options(pod: Document, config: str, secret: Path | None = None) -> list[str]:
    """Return what makes podman run ephmon as the kubelet would."""
    context = ephmon_in(pod)["securityContext"]
    assert not context["allowPrivilegeEscalation"]
    return [
        f"--user={context['runAsUser']}:{context['runAsGroup']}",
        "--security-opt=no-new-privileges",
        *SECCOMP[context["seccompProfile"]["type"]],
        *(["--read-only", "--read-only-tmpfs=false"] if context["readOnlyRootFilesystem"] else []),
        *(f"--cap-drop={name}" for name in context["capabilities"]["drop"]),
        *(f"--cap-add={name}" for name in context["capabilities"].get("add", [])),
        *(mounted(path, volume, config, secret) for path, volume in volumes_of(pod).items()),
    ]


def mounted(path: str, volume: Document, config: str, secret: Path | None) -> str:
    """Return the option for one volume; an emptyDir can be written by everybody, as the kubelet makes it."""
    if "emptyDir" in volume:
        return f"--tmpfs={path}:mode=0777,size={volume['emptyDir']['sizeLimit'].removesuffix('i').lower()}"
    if "configMap" in volume:
        return f"--volume={config}:{path}:ro"
    if "secret" in volume:
        assert secret is not None
        return f"--volume={secret}:{path}:ro"
    return f"--volume={volume['hostPath']['path']}:{path}:ro"


def arguments(pod: Document, address: str = ADDRESS) -> list[str]:
    """Return the arguments of ephmon, with the address that the manifest asks Kubernetes for."""
    (variable,) = ephmon_in(pod)["env"]
    return [argument.replace(f"$({variable['name']})", address) for argument in ephmon_in(pod)["args"]]


@contextmanager
def container(ns: Namespace, *command: str) -> Iterator[Running]:
    """Run the image in the namespace, in the foreground; `command` are options, the image and arguments."""
    with Running(ns, [*RUN, f"--name={NAME}", *command]) as running:
        try:
            yield running
        finally:
            run(["podman", "rm", "--force", "--time=0", NAME])


def ran(ns: Namespace, *command: str) -> str:
    """Run the image in the namespace to its end and return what it printed."""
    result = run(ns.command(*RUN, *command))
    assert result.returncode == 0, result
    return result.stdout


@contextmanager
def daemon(ns: Namespace, pod: Document, config: str, secret: Path | None = None) -> Iterator[Running]:
    """Run ephmon as the manifest says, until it has polled."""
    with container(ns, *options(pod, config, secret), IMAGE, *arguments(pod)) as running:
        running.wait_for_line("ports are usable")
        yield running


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    """The network of a pod or of a node, with a hundred ports."""
    with Namespace(addresses=[f"{ADDRESS}/32"]) as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40099")
        yield ns


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> str:
    """The directory that the ConfigMap of the DaemonSet makes."""
    return config_map(tmp_path, only("daemonset.yaml", "ConfigMap")["data"]["config.yaml"])


def config_map(folder: Path, text: str) -> str:
    made = folder / "config"
    made.mkdir()
    (made / "config.yaml").write_text(text, encoding="utf-8")
    return str(made)


def get(ns: Namespace, path: str) -> Reply:
    return ns.call(fetch, path, host=ADDRESS)


def use_ports(ns: Namespace, number: int) -> None:
    ns.call(sockets.listen, SERVER, 80, tag="server")
    ns.call(sockets.fill, SERVER, 80, tag="clients", limit=number)


# --- the image ----------------------------------------------------------------------------------------------------


def test_the_image_is_of_this_version_and_starts_as_a_user_without_rights(ns: Namespace) -> None:
    assert ran(ns, IMAGE, "--version").split()[:2] == ["ephmon", ephmon.__version__]
    assert podman("image", "inspect", "--format={{.Config.User}}", IMAGE) == "65532:65532\n"


def test_without_arguments_it_listens_on_the_loopback_device_alone(ns: Namespace) -> None:
    with container(ns, IMAGE) as running:
        running.wait_for_line("ports are usable")

        assert running.get("/-/ready").status == 200
        with pytest.raises(ConnectionRefusedError):
            get(ns, "/-/ready")


def test_it_ends_at_once_and_in_order_when_it_is_reported_to(ns: Namespace, config: str) -> None:
    """A signal reaches process 1 only if it has a handler for it, and no shell is in between."""
    with daemon(ns, SIDECAR, config) as running:
        assert inside("/usr/bin/python3", "-c", "print(open('/proc/1/cmdline').read().split(chr(0))[1])") == (
            "/usr/bin/ephmon\n"
        )
        assert running.stop() == 0


def test_it_reads_its_configuration_again_when_it_is_reported_to(ns: Namespace, config: str) -> None:
    with daemon(ns, SIDECAR, config) as running:
        podman("kill", "--signal=HUP", NAME)

        running.wait_for_line("The configuration was reloaded.")


def test_a_wrong_configuration_ends_it_with_a_sentence(ns: Namespace, tmp_path: Path) -> None:
    wrong = config_map(tmp_path, "poll: {interval: never}\n")
    with container(ns, *options(SIDECAR, wrong), IMAGE, *arguments(SIDECAR)) as running:
        assert running.wait() == 2
    assert "poll.interval" in running.lines[-1]


# --- as the manifests run it --------------------------------------------------------------------------------------


KEPT = "ephmon_incidents_total"


@pytest.mark.parametrize("pod", [SIDECAR, NODE], ids=["sidecar", "daemonset"])
def test_without_any_privilege_it_reads_the_sockets_of_its_network_and_keeps_incidents(
    ns: Namespace, config: str, pod: Document
) -> None:
    use_ports(ns, 95)
    with daemon(ns, pod, config):
        eventually(lambda: parse_metrics(get(ns, "/metrics").body), lambda seen: seen.get(KEPT) == 1)
        (pool,) = json.loads(get(ns, "/api/v1/pools").body)["pools"]
        status = Path(f"/proc/{podman('inspect', '--format={{.State.Pid}}', NAME).strip()}/status").read_text("ascii")
        incidents = inside("/usr/bin/ephmon", "incidents")

    assert (pool["destination"], pool["in_use_ports"]) == (SERVER, 95)
    assert re.findall(r"^(?:Uid|Gid):\t(\d+)", status, re.MULTILINE) == ["65532", "65532"]
    assert len(re.findall(r"^Cap\w+:\t0+$", status, re.MULTILINE)) == 5
    assert re.findall(r"^(?:NoNewPrivs|Seccomp):\t(\d)$", status, re.MULTILINE) == ["1", "2"]
    assert "/var/lib/ephmon/ephmon-" in incidents


def test_netlink_is_how_it_reads_under_the_default_seccomp_profile(ns: Namespace, config: str) -> None:
    with daemon(ns, SIDECAR, config):
        metrics = get(ns, "/metrics").body

    assert 'ephmon_backend_info{backend="inet_diag",protocol="tcp"} 1.0' in metrics
    assert 'ephmon_backend_info{backend="inet_diag",protocol="udp"} 1.0' in metrics
    assert "ephmon_poll_success 1.0" in metrics


@pytest.mark.parametrize("pod", [SIDECAR, NODE], ids=["sidecar", "daemonset"])
def test_the_probes_of_the_kubelet_are_answered(ns: Namespace, config: str, pod: Document) -> None:
    probes = [probe["httpGet"]["path"] for name, probe in ephmon_in(pod).items() if name.endswith("Probe")]
    with daemon(ns, pod, config):
        assert {get(ns, path).status for path in probes} == {200}


WRITABLE = """
import os
for folder, folders, _ in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/dev")]
    if os.access(folder, os.W_OK):
        print(folder)
"""


def test_nothing_but_the_volume_for_incidents_can_be_written(ns: Namespace, config: str) -> None:
    with daemon(ns, SIDECAR, config):
        assert inside("/usr/bin/python3", "-c", WRITABLE) == "/var/lib/ephmon\n"


AMONG_THE_PROCESSES_OF_THE_HOST = """
root=$1 bounding=$2
shift 2
mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
exec chroot "$root" setpriv --bounding-set="$bounding" --no-new-privs "$@"
"""
"""Podman gives a container the process ids of the host only with a cgroup of its own."""
AS_SOMEBODY = ("setpriv", "--reuid=33", "--regid=33", "--clear-groups")
HOLDS_PORTS = f"""
import signal, socket, sys
held = [socket.create_connection(("{SERVER}", 80)) for _ in range(20)]
print("connected", file=sys.stderr, flush=True)
signal.pause()
"""


def bounding_set(pod: Document) -> str:
    """Return the capabilities that root has in the container, as setpriv takes them."""
    return ",".join(
        ["-all", *(f"+{name.lower()}" for name in ephmon_in(pod)["securityContext"]["capabilities"]["add"])]
    )


@pytest.mark.parametrize(
    ("bounding", "named"),
    [
        ("-all", False),
        ("-all,+sys_ptrace", False),
        ("-all,+dac_read_search", False),
        (bounding_set(NODE_WITH_OWNERS), True),
    ],
)
def test_root_names_processes_with_the_capabilities_of_the_patch_for_owners_alone(
    ns: Namespace, bounding: str, named: bool
) -> None:
    ns.call(sockets.listen, SERVER, 80, tag="server")
    root = podman("image", "mount", IMAGE).strip()
    with Running(ns, ["chroot", root, *AS_SOMEBODY, "/usr/bin/python3", "-c", HOLDS_PORTS]) as holder:
        holder.wait_for_line("connected")
        shell = ["unshare", "--mount", "sh", "-eu", "-c", AMONG_THE_PROCESSES_OF_THE_HOST, "sh", root, bounding]
        result = run(ns.command(*shell, "/usr/bin/ephmon", "pools", "--owners", "--json"))
    podman("image", "unmount", IMAGE)
    document = json.loads(result.stdout)
    (pool,) = document["pools"]

    assert ({process["pid"] for process in pool["processes"]} == {holder.pid}) is named
    assert document["processes_complete"] is named


WALKS = (
    "from ephmon.kernel.bpf.reader import BindTableReader as R; from ephmon.kernel.deadline import Deadline as D; "
    "import time; print(R().read(D(10, time.monotonic)).own.usable)"
)
"""Loads the BPF program and counts the ports of the range."""


def test_the_bind_table_is_walked_with_the_patch_for_bpf_alone(ns: Namespace, config: str) -> None:
    """As root with two capabilities."""
    walked = {}
    for name, pod in {"": NODE, "bpf": NODE_WITH_BPF}.items():
        command = [*RUN, *options(pod, config), "--entrypoint=/usr/bin/python3", IMAGE, "-c", WALKS]
        walked[name] = run(ns.command(*command))

    assert (walked["bpf"].stdout, walked["bpf"].stderr) == ("100\n", "")
    assert walked[""].returncode == 1
    assert (
        walked[""]
        .stderr.splitlines()[-1]
        .endswith("Loading a BPF program takes the capabilities CAP_BPF and CAP_PERFMON, and this process lacks them.")
    )


def test_with_the_patch_for_tls_it_answers_those_alone_that_show_a_certificate(ns: Namespace, tmp_path: Path) -> None:
    text = only("daemonset.yaml", "ConfigMap")["data"]["config.yaml"] + tls_configuration()
    files = make_certificate(tmp_path, "ephmon")
    secret = tmp_path / "secret"
    secret.mkdir()
    for name, file in {"tls.crt": files.certificate, "tls.key": files.key, "ca.crt": files.certificate}.items():
        shutil.copy(file, secret / name)
        (secret / name).chmod(0o440)
        os.chown(secret / name, 0, NODE_WITH_TLS["securityContext"]["fsGroup"])
    known = (str(files.certificate), str(files.key))
    started = (*options(NODE_WITH_TLS, config_map(tmp_path, text), secret), IMAGE)

    with container(ns, *started, *arguments(NODE_WITH_TLS, "127.0.0.1")) as running:
        running.wait_for_line("ports are usable")
        assert ns.call(fetch, "/-/ready", authority=known[0], certificate=known).status == 200
        with pytest.raises((OSError, http.client.HTTPException)):
            ns.call(fetch, "/-/ready", authority=known[0])
