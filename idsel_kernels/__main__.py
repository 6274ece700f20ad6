"""`python -m idsel_kernels` is the `idsel` command."""

from idsel_kernels.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
