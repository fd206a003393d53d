"""Cores and memory that a process may use. In a container the limits of its control group count, not those of the host.

`root` is the folder that /proc and /sys are read under.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from drivetrain_plugins.host import ROOT, text_of


def usable_cores(root: Path = ROOT) -> int:
    """Logical cores that this process may use: its affinity, cut down to the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    for folder in _cgroup_folders(root, "cpu"):
        quota, period = _cpu_quota(folder)
        if quota > 0 and period > 0:
            cores = min(cores, max(1, quota // period))
    return cores


def total_memory_bytes(root: Path = ROOT) -> int:
    """Memory of the machine or, if less, of the control group."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if root == ROOT else _meminfo(root)["MemTotal"]
    return min([total, *(limit for limit, _ in _memory_limits(root))])


def available_memory_bytes(root: Path = ROOT) -> int:
    """Memory that can still be taken without swapping or passing a limit; file cache counts as free."""
    if sys.platform == "darwin" and root == ROOT:
        return free_memory_of_vm_stat(output_of("vm_stat"))
    room = [limit - used for limit, used in _memory_limits(root)]
    return max(0, min([_meminfo(root)["MemAvailable"], *room]))


def free_memory_of_vm_stat(text: str) -> int:
    """Free, inactive, speculative and purgeable pages in the output of macOS's `vm_stat`, in bytes."""
    page_size = re.search(r"page size of (\d+) bytes", text)
    pages = re.findall(r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)\.", text, re.MULTILINE)
    return int(page_size.group(1)) * sum(map(int, pages)) if page_size else 0


def output_of(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=5).stdout


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control group and its ancestors, of either version of the file system."""
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        folder = mount / path.strip("/")
        yield folder
        while folder != mount:
            folder = folder.parent
            yield folder


def _cpu_quota(folder: Path) -> tuple[int, int]:
    """Quota and period in microseconds; a quota of -1 is none."""
    words = text_of(folder / "cpu.max").split()
    if len(words) == 2 and words[0] != "max":
        return int(words[0]), int(words[1])
    return _number(folder / "cpu.cfs_quota_us", -1), _number(folder / "cpu.cfs_period_us", 0)


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of each control group that has a limit; cache that can be dropped is not use."""
    for folder in _cgroup_folders(root, "memory"):
        for limit_file, use_file, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _number(folder / limit_file, -1)
            if limit < 0:
                continue
            dropped = re.search(rf"^{cache} (\d+)$", text_of(folder / "memory.stat"), re.MULTILINE)
            yield limit, _number(folder / use_file, 0) - (int(dropped.group(1)) if dropped else 0)


def _meminfo(root: Path) -> dict[str, int]:
    rows = re.findall(r"^(\w+):\s+(\d+) kB$", text_of(root / "proc/meminfo"), re.MULTILINE)
    return {name: int(kibibytes) * 1024 for name, kibibytes in rows}


def _number(path: Path, absent: int) -> int:
    text = text_of(path)
    return int(text) if text.lstrip("-").isdigit() else absent
