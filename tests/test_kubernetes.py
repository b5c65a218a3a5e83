"""deploy/kubernetes*.yaml: what Kubernetes' own schemas say of them, whether they mean what the collector needs, and
their probes beside a real collector. How pods replace each other without a hole is in test_takeover.py.
"""

import os
import re
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml
from conftest import eventually
from programs import ROOT

from conf.rules import NAMES, load
from main import STOP_TIMEOUT
from ops import VERSION
from ops.status import DEADLINE, NOTICE
from relay.redis.leadership import STOPS
from sandbox.bybit import Bybit

FILES = ("kubernetes.yaml", "kubernetes-redis.yaml")
OLDEST, NEWEST = "1.27", "1.37"  # of Kubernetes
OWN_MEMORY = 128  # MiB that a collector and a probe take beside a full buffer, generously
LOG_ENDS = 1.0  # seconds that the collector waits for stderr at its end


def documents(file):
    return list(yaml.safe_load_all((ROOT / "deploy" / file).read_text(encoding="utf-8")))


def found(kind, file="kubernetes.yaml"):
    [document] = [one for one in documents(file) if one["kind"] == kind]
    return document


def pod(file="kubernetes.yaml"):
    return found("Deployment", file)["spec"]["template"]["spec"]


def container(file="kubernetes.yaml"):
    [only] = pod(file)["containers"]
    return only


def environment(name="bybit-collector-7d9c5b8f6-x2x4z"):
    """What the collector's container has in its environment, in a pod of this name."""
    given = dict(found("ConfigMap")["data"])
    for one in container()["env"]:
        given[one["name"]] = one.get("value", name)
    return given


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("file", FILES)
def test_kubernetes_knows_every_field(file, version):
    for document in documents(file):
        kubernetes_validate.validate(document, version, strict=True)
    wrong = documents(file)[-1]
    wrong["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


@pytest.mark.parametrize("file", FILES)
def test_what_refers_to_something_finds_it(file):
    """Selectors their pods, mounts their volumes; and no other Secret than the one that the header makes."""
    text = (ROOT / "deploy" / file).read_text(encoding="utf-8")
    labels = re.findall(r"(matchLabels|labels|selector): *(\{.*\})", text)
    assert len({chosen for _, chosen in labels}) == 1
    assert len(labels) == len(re.findall(r"matchLabels|labels:|selector: \{", text))
    volumes = {volume["name"]: volume for volume in pod(file)["volumes"]}
    assert [mount["name"] for mount in container(file)["volumeMounts"]] == list(volumes)

    made = re.search(r"create secret generic (\S+) --from-literal=([\w-]+)=", (ROOT / "deploy" / FILES[0]).read_text())
    if file == FILES[1]:
        [password] = container(file)["env"]
        assert password["valueFrom"] == {"secretKeyRef": {"name": made[1], "key": made[2]}}
        assert f"$({password['name']})" in container(file)["args"]
        return
    assert volumes["secret"]["secret"]["secretName"] == made[1]
    assert container()["envFrom"] == [{"configMapRef": {"name": found("ConfigMap")["metadata"]["name"]}}]
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert environment()["REDIS_PASSWORD_FILE"] == f"{mounts['secret']}/{made[2]}"
    assert environment()["PULSE_FILE"].startswith(f"{mounts['pulse']}/")


def test_the_collector_takes_these_settings():
    given = environment()
    assert given.keys() <= set(NAMES)
    assert all(isinstance(value, str) for value in given.values())
    assert given.keys() >= {"LEADER_KEY", "INSTANCE", "PULSE_FILE"}
    assert load(given).instance == given["INSTANCE"]
    load(environment("b" * 63))  # the longest name of a pod that a Deployment makes
    service = found("Service", FILES[1])
    assert load(given).redis_host == ((service["metadata"]["name"], service["spec"]["ports"][0]["port"]),)


def test_no_password_is_in_the_files():
    for file in FILES:
        assert "Secret" not in {one["kind"] for one in documents(file)}
        text = (ROOT / "deploy" / file).read_text(encoding="utf-8")
        assert not re.search(r"PASSWORD(?!_FILE|')", text)


def test_the_memory_has_room_for_the_buffer():
    limits, requests = container()["resources"]["limits"], container()["resources"]["requests"]
    assert requests["memory"] == limits["memory"]
    assert int(re.fullmatch(r"(\d+)Mi", limits["memory"])[1]) >= load(environment()).redis_buffer_mb + OWN_MEMORY
    assert "cpu" not in limits


def test_two_are_ready_at_any_moment_of_an_upgrade():
    spec = found("Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert found("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_the_times_fit_together():
    """A stop is never cut short. A start may take a minute."""
    ready, live = container()["readinessProbe"], container()["livenessProbe"]
    assert pod()["terminationGracePeriodSeconds"] > 2 * STOPS + STOP_TIMEOUT + LOG_ENDS
    assert live["periodSeconds"] * live["failureThreshold"] >= 60
    for probe in (ready, live):
        assert DEADLINE + NOTICE < probe["timeoutSeconds"] <= probe["periodSeconds"]
    assert found("Deployment")["spec"]["minReadySeconds"] >= ready["timeoutSeconds"]


@pytest.mark.parametrize("file", FILES)
def test_the_pods_are_as_restricted_as_kubernetes_can(file):
    """Its Pod Security Standard "restricted", a file system that is read-only, and no token of Kubernetes."""
    assert pod(file)["automountServiceAccountToken"] is False
    security = pod(file)["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(file)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_image_fits():
    """The user, the folder and the Python are those of deploy/Dockerfile, the tag is this version."""
    text = (ROOT / "deploy/Dockerfile").read_text(encoding="utf-8")
    security = pod()["securityContext"]
    assert f"\nUSER {security['runAsUser']}:{security['runAsGroup']}\n" in text
    assert security["fsGroup"] == security["runAsGroup"]
    [image] = {container()["image"], *re.findall(r"REGISTRY/(\S+)", (ROOT / "deploy" / FILES[0]).read_text())}
    assert image == f"bybit-collector:{VERSION}"
    for probe in ("readinessProbe", "livenessProbe"):
        python, script = container()[probe]["exec"]["command"][:2]
        assert f'CMD ["{python}", "{script}"]\n' in text


def test_no_variable_of_kubernetes_is_taken_for_a_setting():
    """A Service named redis gives every pod REDIS_PORT=tcp://10.0.0.1:6379, unless the pod does not want that."""
    assert "REDIS_PORT" in NAMES
    assert all(pod(file)["enableServiceLinks"] is False for file in FILES)


def test_the_probes_say_what_kubernetes_should_do(program, own_redis, tmp_path):
    """Not live and not ready before it runs; both when it is subscribed; live and not ready while Redis hangs."""
    given = environment() | {
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(own_redis.port),
        "REDIS_PASSWORD_FILE": str(tmp_path / "redis-password"),
        "PULSE_FILE": str(tmp_path / "pulse"),
    }
    (tmp_path / "redis-password").write_text("secret", encoding="utf-8")
    with own_redis.client() as client:
        client.config_set("requirepass", "secret")

    def passes(probe):
        command = [sys.executable, *container()[probe]["exec"]["command"][1:]]
        return (
            subprocess.run(command, cwd=ROOT, env=os.environ | given, capture_output=True, timeout=20).returncode == 0
        )

    assert not passes("livenessProbe")
    assert not passes("readinessProbe")
    with Bybit(rate=500) as bybit:
        program(own_redis, bybit, **given)
        eventually(lambda: passes("readinessProbe"), 30)
        eventually(lambda: passes("livenessProbe"), 30)
        own_redis.pause()
        assert not passes("readinessProbe")
        assert passes("livenessProbe")
        own_redis.resume()
        eventually(lambda: passes("readinessProbe"), 30)
