"""The `idsel` command and its picture demo; `import idsel_kernels` loads nothing of it."""
