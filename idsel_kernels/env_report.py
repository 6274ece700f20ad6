"""What this machine and this installation are: the first thing to attach to a bug report.

`python -m idsel_kernels.env_report` prints it. Only the standard library is imported at the top and every probe
is guarded, so that it still reports when torch is missing or broken.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

__all__ = ["collect", "cpu_model", "format_report", "installation", "main", "rows"]

PACKAGES = ("torch", "triton", "numpy", "pybind11", "transformers", "matplotlib", "rich")
TOOLS = ("nvcc", "cmake", "ninja", "c++")
TOOL_TIMEOUT_S = 10


def collect() -> dict[str, Any]:
    """Gathers the report; never raises.

    Returns:
        A dict that `json.dumps` takes, with the keys "idsel_kernels", "python", "platform", "cpu",
        "packages", "torch", "gpu", "tools", "environment" and "backends". What could not be found out is None
        or, where something failed, a string "error: ...". "backends" maps each backend to the reasons why it
        is not available here; an empty list means that it is.

    Example:
        >>> collect()["backends"]["torch"]
        []
    """
    return {
        "idsel_kernels": _probe(_package_facts),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "platform": platform.platform(),
        "cpu": _probe(_cpu_facts),
        "packages": {name: _probe(partial(_installed_version, name)) for name in PACKAGES},
        "torch": _probe(_torch_facts),
        "gpu": _probe(_gpu_facts),
        "tools": {name: _probe(partial(_tool_version, name)) for name in TOOLS},
        "environment": {key: os.environ[key] for key in sorted(os.environ) if key.startswith("IDSEL_")},
        "backends": _probe(_backend_facts),
    }


def format_report(report: dict[str, Any]) -> str:
    """Writes what `collect` returns as plain text, one fact a line.

    Example:
        >>> print(format_report({"platform": "Linux", "backends": {"torch": [], "cuda": ["no CUDA device"]}}))
        platform: Linux
        backends:
          torch: available
          cuda: no CUDA device
    """
    lines = []
    heading = ""
    for section, fact, text in rows(report):
        if not fact:
            lines.append(f"{section}: {text}")
            continue
        if section != heading:
            lines.append(f"{section}:")
            heading = section
        lines.append(f"  {fact}: {text}")
    return "\n".join(lines)


def rows(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields the report as (section, fact, text); the fact is empty where a section is one fact itself."""
    for section, value in report.items():
        if not isinstance(value, dict):
            yield section, "", _as_text(value)
        elif not value:
            yield section, "", "none set" if section == "environment" else "none"
        else:
            yield from ((section, str(fact), _as_text(text)) for fact, text in value.items())


def installation() -> str:
    """Which copy of the package this is, with which compiled library, or why without one; one line.

    Example:
        >>> installation().startswith("idsel_kernels 0.1.0 in ")
        True
    """
    facts = _package_facts()
    library = f"library {facts['library']}" if facts["library"] else "no compiled library"
    return f"idsel_kernels {facts['version']} in {facts['location']}, {library}: {facts['build']}"


def cpu_model() -> str:
    """The processor's name as its system gives it, or its architecture where the system gives none."""
    return _cpu_name() or platform.processor() or platform.machine() or "unknown processor"


def main() -> int:
    """Prints the report."""
    print(format_report(collect()))
    return 0


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        # Lists are reasons against a backend, or names; without any there is nothing against it.
        return "; ".join(_one_line(item) for item in value) or "available"
    return "not found" if value is None else _one_line(value)


def _one_line(value: Any) -> str:
    return " ".join(str(value).split())


def _probe(fact: Callable[[], Any]) -> Any:
    """The fact, or in words why it could not be had: one broken component must not hide the others."""
    try:
        return fact()
    except Exception as error:
        return f"error: {type(error).__name__}: {_one_line(error)}"


def _package_facts() -> dict[str, Any]:
    package = importlib.import_module("idsel_kernels")
    library, state = importlib.import_module("idsel_kernels._native").build_state()
    return {
        "version": package.__version__,
        "location": str(Path(str(package.__file__)).parent),
        "library": library,
        "build": state,
    }


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_facts() -> dict[str, Any]:
    # A container or a batch system may leave the process fewer CPUs than there are.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": cpu_model(),
        "architecture": platform.machine(),
        "count": os.cpu_count(),
        "usable": usable,
    }


def _cpu_name() -> str | None:
    try:
        if sys.platform == "darwin":
            return _output_of(["sysctl", "-n", "machdep.cpu.brand_string"])
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return None


def _torch_facts() -> dict[str, Any]:
    torch = importlib.import_module("torch")
    facts = {
        "version": str(torch.__version__),
        "cuda runtime": torch.version.cuda,
        "hip runtime": getattr(torch.version, "hip", None),
        "cuda available": torch.cuda.is_available(),
        "threads": torch.get_num_threads(),
    }
    if facts["cuda available"]:
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            facts[f"device {index}"] = f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
    return facts


def _gpu_facts() -> dict[str, Any]:
    """What the driver itself says, which also works where torch is built without CUDA."""
    if shutil.which("nvidia-smi") is None:
        return {"driver": None}
    fields = "driver_version,name,compute_cap"
    listing = _output_of(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"])
    facts: dict[str, Any] = {"driver": None}
    for index, line in enumerate(listing.splitlines()):
        facts["driver"], name, capability = (part.strip() for part in line.split(",", 2))
        facts[f"gpu {index}"] = f"{name}, compute capability {capability}"
    return facts


def _tool_version(name: str) -> str | None:
    path = shutil.which(name)
    if path is None:
        return None
    lines = _output_of([path, "--version"]).splitlines()
    # nvcc prints its release on a later line, the others on the first.
    chosen = next((line for line in lines if "release" in line), lines[0] if lines else "no version printed")
    return f"{chosen.strip()} ({path})"


def _backend_facts() -> dict[str, list[str]]:
    status: dict[str, list[str]] = importlib.import_module("idsel_kernels.dispatch").backend_status()
    return status


def _output_of(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
