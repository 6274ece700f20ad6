"""Extension for the API reference: the `Example:` of a docstring is shown as code.

The docstring parser knows a section of that name only in the plural, and would quote the prompts as plain text.
"""

from __future__ import annotations

from typing import Any

import griffe


class DocstringExamples(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
