"""`make wheel` ends here: what the compiled library in a wheel links and weighs, and a selection with it alone."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

MOST_MIB = 32
# Everything else, torch and CUDA above all, has to be absent: one wheel serves every version of them.
OF_THE_SYSTEM = re.compile(r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so\.\d+|ld-linux.*\.so\.\d+")
SELECTION = """
import torch, idsel_kernels as idsel
case = idsel.testing.clustered(2, 64, 32)
sel = idsel.select(**case.inputs(), k=8, backend="cpu")
idsel.testing.check_selection(sel, **case.inputs()).assert_ok()
print(idsel.__file__)
"""
VERSION = "import sys, _idsel_start; _idsel_start.main(['--version']); sys.exit('torch' in sys.modules)"


def check(wheel: Path) -> None:
    """Raises AssertionError, or prints what it found."""
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        found = [path for path in Path(folder).rglob("*.so*") if path.is_file()]
        assert [path.name.partition(".")[0] for path in found] == ["_core"], f"libraries in the wheel: {found}"
        dynamic = subprocess.run(["readelf", "-d", found[0]], check=True, capture_output=True, text=True).stdout
        needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
        foreign = [name for name in needed if not OF_THE_SYSTEM.fullmatch(name)]
        assert needed and not foreign, f"the library needs {foreign}"
        mib = found[0].stat().st_size / 2**20
        assert mib < MOST_MIB, f"the library has {mib:.1f} MiB, allowed are {MOST_MIB}"
        # -c puts the working directory before everything that is installed.
        ran = subprocess.run([sys.executable, "-c", SELECTION], cwd=folder, check=True, capture_output=True, text=True)
        assert ran.stdout.startswith(folder), f"the selection ran in {ran.stdout}"
        said = subprocess.run([sys.executable, "-c", VERSION], cwd=folder, check=True, capture_output=True, text=True)
        assert said.stdout == f"idsel {wheel.name.split('-')[1]}\n", f"idsel --version says {said.stdout}"
    print(f"{wheel}: {wheel.stat().st_size / 2**20:.1f} MiB, its library {mib:.1f} MiB, needs {', '.join(needed)}")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        check(Path(name))
