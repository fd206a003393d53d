"""The files under deploy fit the code and one another."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import yaml

from drivetrain.config import EngineConfig, ServerConfig, settings_of
from drivetrain.version import __version__

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
COMPOSE = ROOT / "deploy" / "compose"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VARIABLES = {setting.env for schema in (EngineConfig, ServerConfig) for setting in settings_of(schema)}


def dockerfiles() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("render", DOCKER / "render.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.dockerfiles()


def test_dockerfiles_are_those_of_the_template() -> None:
    made = dockerfiles()
    assert set(made) == {"Dockerfile.cpu", "Dockerfile.cuda", "Dockerfile.rocm", "Dockerfile.gaudi"}
    for name, text in made.items():
        assert (DOCKER / name).read_text() == text, f"{name} is out of step: python deploy/docker/render.py"
    assert {path.name for path in DOCKER.glob("Dockerfile.*")} - {"Dockerfile.jinja"} == set(made)


def test_images_hold_what_the_distribution_is_built_from() -> None:
    roots = {path.split("/")[0] for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, text in dockerfiles().items():
        copied = {part for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M) for part in line.split()}
        assert roots | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"} == copied == let_in, name
        assert all((ROOT / part).exists() for part in copied)


def test_images_install_extras_that_exist_and_never_run_as_root() -> None:
    for name, text in dockerfiles().items():
        (extra,) = re.findall(r"'\.(?:\[(\w+)\])?'", text)
        assert not extra or extra in PROJECT["project"]["optional-dependencies"], name
        last = text.rsplit("\nFROM ", 1)[1]
        assert "\nUSER 10001:10001\n" in last and "/health" in last and 'ENTRYPOINT ["drivetrain"]' in last
        assert not re.search(r"\b(sudo|curl|wget)\b|https?://(?!127)", text)


def test_variables_that_files_set_are_settings() -> None:
    texts = [*dockerfiles().values(), (COMPOSE / "compose.yaml").read_text()]
    texts += [path.read_text() for path in (ROOT / "deploy/helm/drivetrain/templates").iterdir()]
    named = {name for text in texts for name in re.findall(r"\bDRIVETRAIN_[A-Z_]+\b", text)} - {"DRIVETRAIN_HOME"}
    assert {"DRIVETRAIN_HOST", "DRIVETRAIN_MODEL", "DRIVETRAIN_API_KEYS_FILE"} <= named <= VARIABLES


def test_compose_fits_the_server_and_its_files() -> None:
    compose = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    server = compose["services"]["server"]
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert source == "../grafana" or (COMPOSE / source).exists(), source
            else:
                assert source in compose["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert set(service.get("depends_on", [])) <= set(compose["services"])
    assert server["read_only"] and server["cap_drop"] == ["ALL"]
    assert int(server["stop_grace_period"].rstrip("s")) > int(server["environment"]["DRIVETRAIN_DRAIN_S"])
    assert server["environment"]["DRIVETRAIN_API_KEYS_FILE"] == f"/run/secrets/{server['secrets'][0]}"
    (scraped,) = yaml.safe_load((COMPOSE / "prometheus.yaml").read_text())["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": ["server:8000"]}]
    overlay = yaml.safe_load((COMPOSE / "compose.cuda.yaml").read_text())
    assert set(overlay["services"]) <= set(compose["services"])


def test_the_charts_version_is_the_products() -> None:
    chart = yaml.safe_load((ROOT / "deploy/helm/drivetrain/Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__
