"""Vision-language models of Hugging Face transformers with fewer visual tokens.

`pruned` makes `model.generate` prune, `prune_inputs` returns the pruned inputs for a loop of one's own. Tested with
transformers 5.24.0 and 4.57.6. From 5.18 on everything goes through public arguments (`mm_encoder_outputs`,
`position_ids`); before, embeddings are given as `inputs_embeds`, and a hook on the language model hands it positions.
"""

from __future__ import annotations

from .generation import Pruner, pruned
from .inputs import PrunedInputs, prune_inputs
from .scores import Visual

__all__ = ["PrunedInputs", "Pruner", "Visual", "prune_inputs", "pruned"]
