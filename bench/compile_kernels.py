"""Seconds from the start of a process until a model's kernels are compiled, by threads alone and with processes.

    python bench/compile_kernels.py [--model Llama-3.1-8B] [--arch sm_90] [--processes 0 2 4] [--lanes 2] [--repeat 1]

Needs no GPU: kernels are compiled for one that is not here. Each line is a process of its own on an empty cache, which
imports torch and Triton as a server does. Threads alone are as many as a server uses: one less than processors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

PARTS = {"sm": ("drivetrain_cuda", 132, 227 << 10, 32), "gfx": ("drivetrain_rocm", 304, 64 << 10, 64)}
"""By the beginning of the architecture: package, processors, bytes of shared memory, threads that run in step."""


def start(model: str, arch: str, processes: int, lanes: int | None) -> dict[str, float]:
    """What a server does of its start: begin processes, import, list and compile."""
    began = time.perf_counter()
    from drivetrain_triton.device import compilers as module
    from drivetrain_triton.device.compilers import Compilers

    if lanes is not None:
        module.LANES = lanes
    package, num_processors, shared_bytes, warp_size = PARTS["sm" if arch.startswith("sm") else "gfx"]
    listing = f"{package}.variants:kernel_variants"
    compilers = Compilers(listing, processes) if processes else None

    # Torch and Triton come with these.
    from device_parts.settings import model_config
    from drivetrain.models.families import decoder_spec
    from drivetrain_plugins.contract.executor import ExecutorLimits
    from drivetrain_plugins.contract.memory import MemoryLimits
    from drivetrain_plugins.import_string import import_object
    from drivetrain_triton.arch import GpuArch
    from drivetrain_triton.cross_compile import compile_here_for, target_of
    from drivetrain_triton.device.compilation import Compiling
    from drivetrain_triton.device.compile_job import encode_job

    limits = ExecutorLimits(
        dtype="bfloat16",
        kv_dtype="bfloat16",
        max_num_rows=512,
        max_step_tokens=8192,
        max_model_len=8192,
        page_size=64,
        memory=MemoryLimits(fraction=0.9, max_pages=65537),
    )
    spec = decoder_spec(model_config(model))
    part = GpuArch(
        name=arch,
        num_processors=num_processors,
        shared_bytes=shared_bytes,
        pdl=arch.startswith("sm") and int(arch[3:]) >= 90,
        warp_size=warp_size,
    )
    compile_here_for(target_of(arch))
    variants = import_object(listing)(spec, limits, part)
    imported = time.perf_counter()
    told: list[float] = []
    job = encode_job(spec, limits, part) if compilers else b""
    Compiling(variants, lambda _phase, _done, total, _unit: told.append(total), compilers, job).wait()
    return {
        "kernels": told[-1],
        "by_processes": compilers.num_compiled if compilers else 0,
        "imported_s": imported - began,
        "compiled_s": time.perf_counter() - began,
    }


def main() -> None:
    """Time every number of processes, each `--repeat` times in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Llama-3.1-8B", help="a configuration in tests/data/configs, or tiny")
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--processes", type=int, nargs="+", default=[0, 2, 4])
    parser.add_argument("--lanes", type=int, help="kernels that a process compiles at once")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(start(options.model, options.arch, *options.processes, options.lanes)))
        return
    print(f"{options.model} for {options.arch}, {len(os.sched_getaffinity(0))} processors", flush=True)
    for processes in options.processes * options.repeat:
        command = [sys.executable, __file__, "--one", "--model", options.model, "--arch", options.arch]
        if options.lanes is not None:
            command += ["--lanes", str(options.lanes)]
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {"TRITON_CACHE_DIR": cache}
            done = subprocess.run(
                [*command, "--processes", str(processes)], env=environment, stdout=subprocess.PIPE, check=True
            )
        found = json.loads(done.stdout)
        print(
            f"{processes} processes: imported after {found['imported_s']:.1f} s, {found['kernels']} kernels compiled "
            f"after {found['compiled_s']:.1f} s, {found['by_processes']} of them by the processes",
            flush=True,
        )


if __name__ == "__main__":
    main()
