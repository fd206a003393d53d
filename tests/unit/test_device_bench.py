"""Measurements on a device: workloads, floors, sums of a profile, the report, and that a failed part stops no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import device
import workloads
from device_parts import checks, floor, report
from device_parts.ceilings import Ceilings
from device_parts.folders import dummy_folder
from device_parts.settings import Record, Settings, model_config
from device_parts.step_profile import Span, summary
from drivetrain.models.families import decoder_spec
from drivetrain.tokenizer import load_tokenizer

H100 = Ceilings(device="H100", copy_bytes_s=3.02e12, product_flop_s=773e12)
DEVICE = Path(device.__file__)


@pytest.mark.parametrize(
    ("name", "digest", "requests", "prompt_tokens", "answer_tokens"),
    [
        ("single", "25ee6e83bff55479", 1, 512, 256),
        ("eight", "efc6c90935f05651", 8, 4096, 2048),
        ("nano", "7afbace75a585a0e", 256, 149090, 151557),
        ("chat", "7f86e98c1f5e9672", 1000, 522739, 255779),
        ("summarize", "2b3f3c01cb8b91af", 128, 524288, 4096),
        ("prefix", "6dc6dc5458e0e8ae", 256, 557056, 32768),
    ],
)
def test_workloads_are_the_lists_that_other_engines_were_timed_on(
    name: str, digest: str, requests: int, prompt_tokens: int, answer_tokens: int
):
    work = workloads.make(name)
    assert workloads.digest(work) == digest
    assert len(work) == requests
    assert sum(len(prompt) for prompt, _ in work) == prompt_tokens
    assert sum(answer for _, answer in work) == answer_tokens


def test_costs_of_a_model_are_its_weights_without_the_embedding_table():
    costs = floor.costs(decoder_spec(model_config("Llama-3.1-8B")))
    assert costs.weights == 8_030_261_248 - 128_256 * 4096
    assert costs.kv_bytes == 32 * 2 * 8 * 128 * 2
    assert costs.attention_flop == 32 * 4 * 32 * 128
    tied = floor.costs(decoder_spec(model_config("Qwen3-0.6B")))
    assert tied.weights - tied.layer_weights == 151_936 * 1024, "a tied table is read as the output matrix"


@pytest.mark.parametrize(
    ("name", "tokens_per_s"),
    [("single", 199.4), ("eight", 1464.2), ("nano", 10855.8), ("summarize", 370.4), ("prefix", 20596.3)],
)
def test_floors_of_the_workloads_on_an_h100(name: str, tokens_per_s: float):
    work = workloads.make(name)
    costs = floor.costs(decoder_spec(model_config("Llama-3.1-8B")))
    seconds = floor.workload_s(work, costs, H100, max_rows=512)
    assert sum(answer for _, answer in work) / seconds == pytest.approx(tokens_per_s, rel=1e-4)


def test_a_floor_counts_every_step_and_every_token_held():
    costs = floor.Costs(weights=100, layer_weights=80, kv_bytes=10, attention_flop=1)
    ceilings = Ceilings(device="x", copy_bytes_s=1000.0, product_flop_s=1e9)
    work = [([1, 2, 3], 3), ([1, 9], 2), ([1, 7, 7, 7], 1)]
    assert floor.shared_tokens(work) == 1
    # Two steps of two and one rows. Held: the shared token, 2 and 1 own ones, and one more a step and row.
    steps = 2 * 0.2 + (1 + 3 + 2) * 0.01 + (1 + 2 + 2) * 0.01
    assert floor.workload_s(work, costs, ceilings, max_rows=8) == pytest.approx(steps, rel=1e-4)
    # One at a time, the second starts when the first has ended, and the third needs no step.
    apart = 3 * 0.2 + (1 + 3) * 0.01 + (1 + 4) * 0.01 + (1 + 2) * 0.01
    assert floor.workload_s(work, costs, ceilings, max_rows=1) == pytest.approx(apart, rel=1e-4)


def test_a_profile_counts_overlapping_kernels_once_and_names_its_gaps():
    spans = [Span(0, 10, "a"), Span(8, 14, "b"), Span(9, 12, "c"), Span(20, 30, "a"), Span(31, 33, "b")]
    found = summary(spans, steps=2)
    assert found["busy_us"] == pytest.approx((14 + 10 + 2) / 2)
    assert found["idle_us"] == pytest.approx((6 + 1) / 2)
    assert found["launches"] == 2.5
    assert [(kernel["name"], kernel["us"], kernel["mean_us"]) for kernel in found["kernels"]] == [
        ("a", 10.0, 10.0),
        ("b", 4.0, 4.0),
        ("c", 1.5, 3.0),
    ]
    assert [(gap["after"], gap["before"], gap["us"]) for gap in found["gaps"]] == [("b", "a", 3.0), ("a", "b", 0.5)]
    assert summary([], steps=2)["kernels"] == []


def test_the_stand_in_tokenizer_has_a_text_for_every_id(tmp_path: Path):
    settings = Settings(backend="cpu", work=str(tmp_path), models=("tiny",), workloads=())
    tokenizer = load_tokenizer(dummy_folder(settings, "tiny"))
    texts = [tokenizer.decode([token_id]) for token_id in range(256, 4094)]
    assert all(len(text) in (2, 3) and text.isascii() and text.isprintable() for text in texts)
    assert len(set(texts)) == len(texts)
    assert Settings.from_json(settings.to_json()) == settings


def offline_result() -> dict[str, Any]:
    row = {"work": "single", "s": 2.0, "out_tok_s": 128.0, "total_tok_s": 384.0, "floor_s": 1.0, "of_floor": 0.5}
    first = row | {"s": 9.0, "out_tok_s": 28.4, "of_floor": 0.11}
    part = {"model": "Llama-3.1-8B", "ceilings": {"device": "H100", "copy_bytes_s": 3e12, "product_flop_s": 7.7e14}}
    return part | {"rows": [first, row], "status": "ok", "seconds": 11.0, "failures": []}


def test_the_report_shows_the_last_repetition_beside_floor_and_rivals():
    text = report.markdown({"offline Llama-3.1-8B": offline_result()})
    assert "| Llama-3.1-8B | `single`, output tok/s | 128 | 256 | 50% | 151.7 | 153.2 |" in text
    assert "copy 3 TB/s, bf16 product 770 TFLOP/s" in text
    assert "not in this run" in text
    assert "Latency" not in text, "no section without results"


def test_of_a_part_that_ran_twice_the_later_run_counts(tmp_path: Path):
    for name, status in (("one", "failed"), ("two", "ok")):
        folder = tmp_path / name
        folder.mkdir()
        results = {name: {"status": "ok"}, "soak": {"status": status}}
        (folder / "results.json").write_text(json.dumps(results))
    found = report.read([tmp_path / "one", tmp_path / "two"])
    assert {name: part["status"] for name, part in found.items()} == {"one": "ok", "soak": "ok", "two": "ok"}


FAKE_SANITIZER = """#!/bin/sh
while [ "$1" != "${1#--}" ]; do shift 2; done
"$@"
echo "========= ERROR SUMMARY: $FAKE_ERRORS errors"
"""


@pytest.mark.slow
@pytest.mark.parametrize("errors", [0, 3])
def test_a_few_tests_of_each_file_run_under_the_sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: int):
    program = tmp_path / "compute-sanitizer"
    program.write_text(FAKE_SANITIZER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_ERRORS", str(errors))
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    tests = tmp_path / "kernel_tests"
    tests.mkdir()
    for name in ("one", "two"):
        cases = "\n".join(f"def test_{index}(): assert {index} < 9" for index in range(7))
        (tests / f"test_{name}.py").write_text(cases)
    settings = Settings(
        backend="cpu",
        work=str(tmp_path),
        models=("tiny",),
        workloads=(),
        kernel_tests="kernel_tests",
        sanitizer_tests=3,
    )
    record = Record(tmp_path / "result.json")
    checks.run_sanitizer(settings, record)
    chosen = [test.split("/")[-1] for test in record.found["tests"]]
    assert chosen == [f"test_{name}.py::test_{index}" for name in ("one", "two") for index in (0, 2, 4)]
    (tool,) = record.found["tools"]
    assert (tool["tool"], tool["errors"], tool["counts"]) == ("memcheck", errors, {"passed": 6})
    assert record.failures == ([f"memcheck: {errors} errors"] if errors else [])


def run_device(out: Path, *options: str) -> tuple[int, str, dict[str, Any]]:
    command = [sys.executable, str(DEVICE), "run", "--out", str(out), "--backend", "cpu", "--tiny", *options]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return answer.returncode, answer.stdout, json.loads((out / "results.json").read_text())


@pytest.mark.slow
def test_a_failed_part_is_reported_and_the_others_go_on(tmp_path: Path):
    none = tmp_path / "no_such_tests"
    status, shown, results = run_device(
        tmp_path, "--only", "kernels,ceilings,offline", "--workloads", "single", "--kernel-tests", str(none)
    )
    assert status == 1, shown
    assert {name: part["status"] for name, part in results.items()} == {
        "ceilings": "ok",
        "kernels": "failed",
        "offline tiny": "ok",
    }
    assert results["kernels"]["failures"] == ["kernel tests: exit status 5, {}"]
    rows = results["offline tiny"]["rows"]
    assert [row["repetition"] for row in rows] == [0, 1]
    assert all(row["out_tok_s"] > 0 and 0 < row["of_floor"] < 1 for row in rows)
    assert shown.count("ROW {") == 2
    assert "| kernels | failed |" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_the_tests_of_the_backend_are_counted(tmp_path: Path):
    status, shown, results = run_device(tmp_path, "--only", "device", "-k", "communicator or allocator or pages")
    assert status == 0, shown
    assert results["device"]["counts"]["passed"] > 0
    assert f"{results['device']['counts']['passed']} passed" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_parts_that_do_not_fit_the_budget_are_not_run(tmp_path: Path):
    status, _, results = run_device(tmp_path, "--only", "soak", "--budget-s", "1")
    assert status == 1
    assert results["soak"]["status"] == "not run"


@pytest.mark.slow
def test_start_latency_and_soak_run_against_the_real_server(tmp_path: Path):
    quick = ("--rates", "8", "--rate-s", "1", "--soak-s", "6")
    engine = ("--engine", '{"kv_memory": 64000000, "backend_options": {"cpu": {"threads": 1}}}')
    status, shown, results = run_device(tmp_path, "--only", "startup,latency,soak", *quick, *engine)
    assert status == 0, shown
    assert [start["kind"] for start in results["startup"]["starts"]] == ["cold", "warm", "warm"]
    assert all(start["first_token_s"] > start["ready_s"] > 0 for start in results["startup"]["starts"])
    assert results["latency"]["rates"][0]["succeeded"] == 8
    assert results["soak"]["pages"]["used"] == 0
    assert min(results["soak"]["finished"], results["soak"]["aborted"]) > 0


@pytest.mark.slow
@pytest.mark.real_model
def test_golden_answers_over_http_in_any_company(tmp_path: Path, smollm2_path: Path):
    engine = ("--engine", '{"backend_options": {"cpu": {"threads": 1}}}', "--model", str(smollm2_path))
    status, shown, results = run_device(tmp_path, "--only", "served", *engine)
    assert status == 0, shown
    assert [row["how"].removeprefix("over HTTP, ") for row in results["served"]["golden"]] == [
        "alone",
        "from the prefix cache",
        "in company",
    ]
    assert results["served"]["company"]["requests"] == 24
    assert "15 golden answers, 24 others, 8 embeddings" in (tmp_path / "report.md").read_text()
