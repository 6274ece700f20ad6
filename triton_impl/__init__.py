"""The Triton engine's kernels, installed as `idsel_kernels.triton_impl`."""
