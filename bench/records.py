"""Records: what was measured, on what, by what command, from which sources. One JSON file per device.

`schema.json` beside this file says what a record holds, and every record is checked against it when it is written and
when it is read.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from idsel_kernels.env_report import cpu_model

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
SCHEMA = ROOT / "bench" / "schema.json"
SCHEMA_VERSION = 1

PACKAGES = ("torch", "triton", "numpy", "transformers", "torch_cluster")

# The files that decide how fast an engine is. A record is of the engines it timed, so that a new kernel for GPUs does
# not make the record of a CPU stale.
SOURCES = {
    "cpu": ("csrc/common", "csrc/core", "csrc/cpu", "csrc/rules", "idsel_kernels/engines/cpu.py"),
    "cuda": ("csrc/common", "csrc/core", "csrc/cuda", "csrc/rules", "idsel_kernels/engines/cuda.py"),
    "triton": ("triton_impl", "idsel_kernels/engines/triton.py"),
    "torch": ("idsel_kernels/engines/reference.py",),
}


# --- Sources ----------------------------------------------------------------------------------------------------------


def source_hashes(root: Path = ROOT) -> dict[str, str]:
    """SHA-256, shortened, of every kernel source: csrc, triton_impl and the engines."""
    folders = ("csrc", "triton_impl", "idsel_kernels/engines")
    files = sorted(path for folder in folders for path in (root / folder).rglob("*") if path.is_file())
    suffixes = {".py", ".h", ".cpp", ".cu", ".cuh"}
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in files
        if path.suffix in suffixes
    }


def digest(hashes: dict[str, str]) -> str:
    """One number for all sources."""
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16]


def changed_sources(record: dict[str, Any], now: dict[str, str]) -> list[str]:
    """Files of the engines in a record that are not what they were when it was taken."""
    then = record["sources"]["files"]
    changed = {path for path in then.keys() | now.keys() if then.get(path) != now.get(path)}
    prefixes = tuple(prefix for engine in record["engines"] for prefix in SOURCES[engine])
    return sorted(path for path in changed if path.startswith(prefixes))


# --- Environment ------------------------------------------------------------------------------------------------------


def environment(device: torch.device) -> dict[str, Any]:
    """The device and what stands between it and the code; None where something cannot be read."""
    return {
        "device": _device(device),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "taken": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return {"type": "cpu", "name": cpu_model(), "cores": cores, "driver": None, "clocks_mhz": _cpu_clocks()}
    driver, sm, memory = _nvidia_smi("driver_version,clocks.sm,clocks.mem", device)
    clocks = {"sm": float(sm), "memory": float(memory)} if sm and memory else None
    return {
        "type": "cuda",
        "name": torch.cuda.get_device_name(device),
        "cores": torch.cuda.get_device_properties(device).multi_processor_count,
        "driver": driver,
        "clocks_mhz": clocks,
    }


def _cpu_clocks() -> dict[str, float] | None:
    try:
        found = re.findall(r"cpu MHz\s*:\s*([\d.]+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        return None
    return {"cpu": max(map(float, found))} if found else None


def _nvidia_smi(fields: str, device: torch.device) -> list[str | None]:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", f"--id={device.index or 0}"]
    nothing: list[str | None] = [None] * len(fields.split(","))
    if shutil.which(command[0]) is None:
        return nothing
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return nothing
    values = [value.strip() for value in found.split(",")]
    return [value if value and not value.startswith("[") else None for value in values]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> dict[str, Any]:
    """The commit of the checkout, and whether files differ from it; nulls outside a checkout."""
    try:
        run = ["git", "-C", str(ROOT)]
        head = subprocess.run([*run, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = [*run, "status", "--porcelain", "--", "csrc", "triton_impl", "idsel_kernels", "bench/*.py"]
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "modified": None}
    return {"commit": head, "modified": bool(changed)}


# --- Files ------------------------------------------------------------------------------------------------------------


def file_name(record: dict[str, Any]) -> str:
    """One name per device: that of the processor, and how many of its cores were used."""
    device = record["environment"]["device"]
    words = device["name"] if device["type"] == "cuda" else f"{device['name']} {device['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") + ".json"


def check(record: dict[str, Any]) -> None:
    """Raises `jsonschema.ValidationError` where a record is not what schema.json says.

    Without jsonschema it warns: a machine that is lent for an hour may lack it, and its record is checked when it is
    read elsewhere.
    """
    try:
        import jsonschema
    except ImportError:
        warnings.warn("jsonschema is not installed, so the record is not checked", stacklevel=2)
        return
    jsonschema.validate(record, json.loads(SCHEMA.read_text()))


def write(record: dict[str, Any], out: Path) -> Path:
    """Writes a checked record to a .json file, or under its own name into a folder; the path."""
    check(record)
    path = out if out.suffix == ".json" else out / file_name(record)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One row a line: a diff of two records is readable.
    head = {name: value for name, value in record.items() if name != "rows"}
    lines = ",\n".join("    " + json.dumps(row, allow_nan=False) for row in record["rows"])
    text = json.dumps(head, indent=2, allow_nan=False).removesuffix("\n}")
    path.write_text(f'{text},\n  "rows": [\n{lines}\n  ]\n}}\n')
    return path


class NotARecord(ValueError):
    """A file that is no record; the message names it and says why."""


def read(path: Path) -> dict[str, Any]:
    """A checked record.

    Raises:
        NotARecord: there is none in the file.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        check(record)
    except OSError as error:
        raise NotARecord(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise NotARecord(f"{path} is not JSON: {error}") from error
    except Exception as error:  # whatever jsonschema, which may be missing, raises
        words = str(getattr(error, "message", error))
        raise NotARecord(f"{path} is not a record of this bench: {words[:200]}") from error
    return record


def read_all(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Every record of a folder by the name of its file."""
    return {path.stem: read(path) for path in sorted(folder.glob("*.json"))}


def title(record: dict[str, Any]) -> str:
    """The device of a record in words."""
    device = record["environment"]["device"]
    return device["name"] if device["type"] == "cuda" else f"{device['name']}, {device['cores']} cores"


def rows_of(record: dict[str, Any], suite: str, **wanted: Any) -> list[dict[str, Any]]:
    """The rows of a suite whose fields are as wanted."""
    return [r for r in record["rows"] if r["suite"] == suite and all(r.get(f) == v for f, v in wanted.items())]


def engines_in(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Which of our engines the rows time."""
    return sorted({row["provider"] for row in rows} & SOURCES.keys())
