"""The Helm chart, linted and rendered by Helm's own library, and what it renders against Kubernetes' schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from drivetrain.config import load_config
from drivetrain.messages import EngineStats
from drivetrain_server.pages import PAGES
from drivetrain_server.telemetry import Telemetry, render

MISSING = "the extra deploy is not installed; `make check-deploy` does that"
helm = pytest.importorskip("helm_python.chart", reason=MISSING)
schemas = pytest.importorskip("kubernetes_validate", reason=MISSING)

KUBERNETES = ("1.29", "1.37")
KEYS = {"apiKeysSecret": "drivetrain-keys"}
EVERYTHING = KEYS | {
    "platform": "cuda",
    "devices": 2,
    "pull": "org/model",
    "model": "model",
    "hubTokenSecret": "hub",
    "drainSeconds": 120,
    "autoscaling": {"enabled": True},
    "ingress": {"enabled": True, "className": "nginx", "tlsSecret": "tls"},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "models": {"existingClaim": "shared"},
    "supplementalGroups": [44],
    "imagePullSecrets": [{"name": "pull"}],
    "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "env": [{"name": "DRIVETRAIN_MAX_NUM_SEQS", "value": "64"}],
}


@pytest.fixture(scope="module")
def chart(deploy: Path) -> Path:
    return deploy / "helm" / "drivetrain"


def rendered(chart: Path, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The manifests by kind."""
    texts = helm.Chart.load(chart).render(values, name="rel", namespace="ns")
    documents = [yaml.safe_load(text) for name, text in texts.items() if name.endswith(".yaml")]
    return {document["kind"]: document for document in documents if document}


def pod(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return manifests["Deployment"]["spec"]["template"]["spec"]


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def test_helm_lints_it(chart: Path) -> None:
    found = helm.lint(chart, KEYS, strict=True)
    assert found["errors"] == []
    assert [said["error"] for said in found["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("values", [KEYS, EVERYTHING], ids=["defaults", "everything"])
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_would_take_it(chart: Path, values: dict[str, Any], version: str) -> None:
    manifests = rendered(chart, values)
    own = {"ServiceMonitor"}  # A type of the Prometheus operator, not of Kubernetes.
    for kind, manifest in manifests.items():
        if kind not in own:
            schemas.validate(manifest, version, strict=True)
    assert len(manifests) == (8 if values is EVERYTHING else 6)


def test_ending_has_time_to_drain(chart: Path) -> None:
    spec = pod(rendered(chart, EVERYTHING))
    (server,) = spec["containers"]
    wait = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] > wait + 120
    assert variables(server)["DRIVETRAIN_DRAIN_S"] == "120"


def test_probes_are_routes_that_need_no_key(chart: Path) -> None:
    (server,) = pod(rendered(chart, KEYS))["containers"]
    paths = {name: server[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/health", "livenessProbe": "/health", "readinessProbe": "/ready"}
    assert not set(paths.values()) & set(PAGES)


def test_the_server_takes_what_the_chart_gives_it(chart: Path, tmp_path: Path) -> None:
    manifests = rendered(chart, EVERYTHING)
    (server,) = pod(manifests)["containers"]
    (tmp_path / "drivetrain.toml").write_text(manifests["ConfigMap"]["data"]["drivetrain.toml"])
    (tmp_path / "keys.txt").write_text("secret-key\n")
    given = variables(server) | {"DRIVETRAIN_API_KEYS_FILE": str(tmp_path / "keys.txt")}
    config = load_config(tmp_path / "drivetrain.toml", env=given)
    assert (config.engine.model, config.engine.max_num_seqs) == ("model", 64)
    assert (config.server.host, config.server.port, config.server.drain_s) == ("0.0.0.0", 8000, 120)
    assert config.server.metrics_public
    ports = [port["containerPort"] for port in server["ports"]]
    assert ports == [config.server.port]
    # A service named like the product would set DRIVETRAIN_PORT to an address of its own.
    assert pod(manifests)["enableServiceLinks"] is False


def test_keys_come_from_a_secret_and_are_required(chart: Path) -> None:
    spec = pod(rendered(chart, KEYS))
    secrets = {volume["name"]: volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume}
    assert secrets == {"keys": "drivetrain-keys"}
    with pytest.raises(Exception, match="apiKeysSecret: a server that listens beyond its pod needs keys"):
        rendered(chart, {})


@pytest.mark.parametrize(
    ("platform", "device"),
    [("cpu", None), ("cuda", "nvidia.com/gpu"), ("rocm", "amd.com/gpu"), ("gaudi", "habana.ai/gaudi")],
)
def test_each_platform_asks_for_its_devices_and_image(chart: Path, platform: str, device: str | None) -> None:
    spec = pod(rendered(chart, KEYS | {"platform": platform, "devices": 2}))
    (server,) = spec["containers"]
    assert server["image"] == f"drivetrain:{platform}-0.1.0"
    asked = {name: count for name, count in server["resources"]["limits"].items() if "/" in name}
    assert asked == ({device: 2} if device else {})
    strategy = rendered(chart, KEYS | {"platform": platform})["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    assert strategy["maxSurge"] == (0 if device else 1)


def test_it_scales_by_a_metric_that_the_server_has(chart: Path) -> None:
    manifests = rendered(chart, EVERYTHING)
    (metric,) = manifests["HorizontalPodAutoscaler"]["spec"]["metrics"]
    exported = render([Telemetry().reading(open_requests=0)], ready=True, info=None, stats=EngineStats()).decode()
    assert f"\n{metric['pods']['metric']['name']} " in exported
    assert "replicas" not in manifests["Deployment"]["spec"]


def test_nothing_runs_as_root_or_writes_its_image(chart: Path) -> None:
    spec = pod(rendered(chart, EVERYTHING))
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 10001
    for container in (*spec["containers"], *spec["initContainers"]):
        own = container["securityContext"]
        assert own["readOnlyRootFilesystem"] and not own["allowPrivilegeEscalation"]
        assert own["capabilities"] == {"drop": ["ALL"]}
    assert spec["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"platform": "tpu"}, "/platform"),
        ({"replica": 2}, "'replica' not allowed"),
        ({"devices": 0}, "/devices"),
        ({"drainSeconds": -1}, "/drainSeconds"),
        ({"autoscaling": {"min": 1}}, "'min' not allowed"),
    ],
)
def test_wrong_values_are_refused(chart: Path, wrong: dict[str, Any], message: str) -> None:
    loaded = helm.Chart.load(chart)
    loaded.validate_schema(KEYS)
    with pytest.raises(Exception, match=message):
        loaded.validate_schema(KEYS | wrong)


def test_every_value_is_used_and_in_the_schema(chart: Path) -> None:
    values = yaml.safe_load((chart / "values.yaml").read_text())
    known = json.loads((chart / "values.schema.json").read_text())["properties"]
    templates = "".join(path.read_text() for path in (chart / "templates").iterdir())
    assert set(values) == set(known) - {"global"}
    for name in values:
        assert f".Values.{name}" in templates, name
