"""`python -m idsel_kernels` is the `idsel` command."""

from idsel_kernels._cli.command import main

if __name__ == "__main__":
    raise SystemExit(main())
