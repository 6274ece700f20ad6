"""The model for lmms-eval: on a stand-in for it everywhere, and on itself where it is installed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from vlms import build

from idsel_kernels.integrations import lmms_eval as integration
from idsel_kernels.integrations.transformers import pruned

ROOT = Path(__file__).parent.parent


class StandInModel:
    """A transformers model as far as lmms-eval calls it: the prompt, then how many times `generate` was wrapped."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def generate(self, input_ids: torch.Tensor, depth: int = 0) -> torch.Tensor:
        if self.error is not None:
            raise self.error
        return torch.cat([input_ids, torch.full((1, 1), depth)], 1)


class LlavaHf:
    """lmms-eval's class as far as it matters: named arguments only, and no error of `generate` gets out."""

    is_simple = True

    def __init__(self, pretrained: str = "llava", batch_size: int = 1, device: str = "cuda", **kwargs: Any) -> None:
        assert kwargs == {}, f"Unexpected kwargs: {kwargs}"
        self.pretrained, self.batch_size, self.device = pretrained, batch_size, device
        self._model = StandInModel()

    @property
    def model(self) -> StandInModel:
        return self._model

    def generate_until(self, requests: list[torch.Tensor]) -> list[list[int]]:
        answers = []
        for ids in requests:
            try:
                answers.append(self.model.generate(ids)[0, ids.shape[1] :].tolist())
            except Exception:
                answers.append([])
        return answers

    def loglikelihood(self, requests: list[torch.Tensor]) -> list[float]:
        return [0.0 for _ in requests]


class ChatLlavaHf(LlavaHf):
    is_simple = False


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Puts lmms-eval and `pruned` into `sys.modules`; yields the options that `pruned` was entered with."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "lmms_eval"]:
        monkeypatch.delitem(sys.modules, name)
    contents: dict[str, dict[str, Any]] = {
        "lmms_eval": {},
        "lmms_eval.models": {},
        "lmms_eval.models.simple": {},
        "lmms_eval.models.chat": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        "lmms_eval.models.simple.llava_hf": {"LlavaHf": LlavaHf},
        "lmms_eval.models.chat.llava_hf": {"LlavaHf": ChatLlavaHf},
    }
    entered: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def pruned(model: StandInModel, **options: Any) -> Iterator[None]:
        if ("k" in options) == ("keep_ratio" in options):
            raise TypeError("either k or keep_ratio must be given")
        entered.append(options)
        generate = model.generate
        model.generate = lambda ids: generate(ids, depth=1)  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del model.generate  # type: ignore[method-assign]

    contents["idsel_kernels.integrations.transformers"] = {"pruned": pruned}
    for name, names in contents.items():
        module = ModuleType(name)
        module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
    integration._made.cache_clear()
    yield entered
    integration._made.cache_clear()


def _class_at(path: str | None) -> Any:
    """As lmms-eval finds the class of a model."""
    assert path is not None
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


REQUESTS = [torch.tensor([[5, 6, 7]]), torch.tensor([[8]])]


def test_manifest_names_classes_that_exist(stand_in: list[dict[str, Any]]) -> None:
    manifest = integration.manifests()
    assert manifest.model_id == "llava_hf_idsel" and manifest.aliases == ()
    simple, chat = _class_at(manifest.simple_class_path), _class_at(manifest.chat_class_path)
    assert issubclass(simple, LlavaHf) and simple.is_simple and simple.__name__ == "SimpleLlavaHf"
    assert issubclass(chat, ChatLlavaHf) and not chat.is_simple and chat.__name__ == "ChatLlavaHf"
    assert simple is _class_at(manifest.simple_class_path), "made once"


def test_module_has_nothing_else() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Llava'"):
        _ = integration.Llava


@pytest.mark.parametrize("name", ["SimpleLlavaHf", "ChatLlavaHf"])
def test_generate_until_prunes_and_leaves_the_model_as_it_was(stand_in: list[dict[str, Any]], name: str) -> None:
    options = {"k": 64, "rule": "mmr", "importance": "cls"}
    lm = getattr(integration, name)(pretrained="there", batch_size=1, device="cpu", **options)
    assert (lm.pretrained, lm.device) == ("there", "cpu")
    assert stand_in == [options], "checked when the model is there"
    assert lm.generate_until(REQUESTS) == [[1], [1]]
    assert stand_in == [options, options]
    assert "generate" not in vars(lm.model)
    assert lm.model.generate(REQUESTS[0])[0].tolist() == [5, 6, 7, 0]


def test_wrong_options_are_errors_when_the_model_is_made(stand_in: list[dict[str, Any]]) -> None:
    with pytest.raises(TypeError, match="either k or keep_ratio must be given"):
        integration.SimpleLlavaHf(device="cpu", rule="id")
    with pytest.raises(AssertionError, match=r"Unexpected kwargs: \{'tokens': 64\}"):
        integration.SimpleLlavaHf(device="cpu", tokens=64)


def test_an_error_stops_the_run(stand_in: list[dict[str, Any]]) -> None:
    lm = integration.SimpleLlavaHf(device="cpu", keep_ratio=0.25)
    lm.model.error = ValueError("no such image")
    assert LlavaHf.generate_until(lm, REQUESTS) == [[], []], "lmms-eval alone goes on"
    with pytest.raises(RuntimeError, match="pruning or generating failed: no such image") as raised:
        lm.generate_until(REQUESTS)
    assert raised.value.__cause__ is lm.model.error
    assert "generate" not in vars(lm.model)
    lm.model.error = None
    assert lm.generate_until(REQUESTS) == [[1], [1]]


def test_likelihoods_are_refused(stand_in: list[dict[str, Any]]) -> None:
    with pytest.raises(NotImplementedError, match="likelihoods are not pruned"):
        integration.SimpleLlavaHf(device="cpu", k=8).loglikelihood(REQUESTS)


def test_entry_point_is_declared() -> None:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["entry-points"]["lmms_eval.models"]["idsel"].partition(":")
    assert getattr(importlib.import_module(module), function) is integration.manifests


def test_lmms_eval_itself_finds_the_model() -> None:
    models = pytest.importorskip("lmms_eval.models", reason="lmms-eval is not installed", exc_type=ImportError)
    pytest.importorskip("lmms_eval.models.chat.llava_hf", exc_type=ImportError)
    integration._made.cache_clear()
    models.MODEL_REGISTRY_V2.register_manifest(integration.manifests(), overwrite=True)
    for force_simple in (False, True):
        found = models.get_model(integration.MODEL, force_simple=force_simple)
        assert issubclass(found, models.get_model("llava_hf", force_simple=force_simple))
        assert found.is_simple is force_simple


def test_errors_get_out_of_a_compiled_model() -> None:
    model = torch.compile(build("llava").model, backend="eager")
    with integration._errors_get_out(model), pytest.raises(integration._Failed):
        model.generate("no tensor")
    assert "generate" not in vars(model._orig_mod)


def test_commands_of_the_page_name_options_that_exist() -> None:
    page = (ROOT / "docs" / "lmms_eval.md").read_text()
    commands = re.findall(rf"--model {integration.MODEL} --model_args (\S+)", page)
    assert len(commands) >= 2
    for words in commands:
        words = words.replace("$MODEL", "pretrained=llava").replace("$k", "64").rstrip(";")
        arguments = dict(word.split("=", 1) for word in words.split(","))
        assert arguments.pop("pretrained")
        options = {name: int(value) if name == "k" else value for name, value in arguments.items()}
        with pruned(build("llava").model, **options):
            pass
