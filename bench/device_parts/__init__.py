"""The parts of `bench/device.py`, each a module with `run(settings, record)`, in the order they run.

settings      what a run is asked to do, and where a part writes what it found
ceilings      what the device can do at most: copies and matrix products
checks        kernel tests, the conformance suite, compute-sanitizer
answers       golden outputs of the quick-start model; small random models against the CPU
offline       the token workloads through `LLM`, beside the floor of physics
step_profile  device time by kernel, and the gaps between kernels
startup       from the start of the process to the first token over HTTP, caches cold and warm
latency       time to first token and between tokens against load
soak          mixed load with clients that go away
report        Markdown from the results
"""
