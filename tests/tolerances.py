"""Every tolerance of the tests, with its derivation."""

from __future__ import annotations

# Worst regret and score error of an engine, relative to the largest priority. A float32 dot product of unit vectors
# carries about sqrt(D) / 2 roundings of 6e-8: 2e-6 at D = 4096. IDSelection multiplies it by at most
# max |d/dx exp(-20 x^2)| = 3.8, DPP adds up one such term per pick; 1e-5 leaves little room beyond that.
REGRET = 1e-5

# Published code runs on float32 input too, and golden margins are called clear above 1e-5.
GOLDEN_REGRET = 1e-5
