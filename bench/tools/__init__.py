"""Single measurements and checks: `python -m bench.tools.NAME`, from the root of a checkout."""
