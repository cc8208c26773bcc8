"""The fused kernels against the formulas, run by Triton's interpreter: no GPU takes part."""

from __future__ import annotations

import importlib
import logging
import types
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from embedded.train.networks import EqualPacking
from engine.model import adapter, layers, passes
from engine.model.flux import Flux
from engine.model.image_prompt import ImagePrompt
from engine.model.packing import Packing
from engine.model.passes import Passes
from engine.runtime import choice, fused_check
from engine.runtime.fused_check import largest_difference
from engine.weights.load import build_adapter
from tests.tiny import randomised, tiny_profile

pytest.importorskip("triton")

PROFILE = tiny_profile()
NUM_TXT = 5
NUM_ADAPTER_TOKENS = 4


@pytest.fixture(scope="module")
def fused() -> Passes:
    """The kernels as the interpreter runs them, on tensors of the CPU (see conftest.py)."""
    return cast(Passes, importlib.import_module("engine.runtime.fused"))


@pytest.mark.parametrize(
    ("num_heads", "head_dim"),
    [(3, 16), (9, 8), (2, 24)],
    ids=["less heads than a program has", "more of them", "heads that are no power of two"],
)
def test_every_kernel_computes_its_formula(fused: Passes, num_heads: int, head_dim: int) -> None:
    sizes = {"device": "cpu", "num_heads": num_heads, "head_dim": head_dim}
    assert largest_difference(fused, dtype=torch.float32, **sizes) < 1e-6  # type: ignore[arg-type]
    # The formulas round to bfloat16 between their passes.
    assert largest_difference(fused, dtype=torch.bfloat16, **sizes) < 0.01  # type: ignore[arg-type]


class Spoilt:
    """The formulas, but one of them is off: its last result (of several) by 5 %."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        formula = getattr(passes, name)
        if name != self._name:
            return formula

        def spoilt(*arguments: object) -> Tensor | tuple[Tensor, ...]:
            found = formula(*arguments)
            return 1.05 * found if isinstance(found, Tensor) else (*found[:-1], 1.05 * found[-1])

        return spoilt


@pytest.mark.parametrize("name", ["modulate", "add_gated", "heads", "joint_heads", "gelu_beside"])
def test_the_check_sees_a_kernel_that_is_off(name: str) -> None:
    spoilt = cast(Passes, Spoilt(name))
    difference = largest_difference(spoilt, device="cpu", dtype=torch.bfloat16, num_heads=2, head_dim=16)
    assert difference > choice.MAX_DIFFERENCE


def random_networks() -> Flux:
    """A transformer with an adapter; every parameter random."""
    flux, residuals = Flux(PROFILE.transformer).eval(), build_adapter(PROFILE, NUM_ADAPTER_TOKENS).eval()
    randomised(flux, 1)
    randomised(residuals, 2)
    residuals.inject(flux)
    return flux


def random_prompt(num: int) -> ImagePrompt:
    """So many samples' faces, each at a strength of its own."""
    params = PROFILE.transformer
    shape = (num, params.depth, NUM_ADAPTER_TOKENS, params.num_heads, params.hidden_size // params.num_heads)
    return ImagePrompt(keys=torch.randn(shape), values=torch.randn(shape), scale=torch.linspace(0.2, 1.0, num))


@pytest.mark.parametrize("num_img", [(6, 6), (6, 2, 4)], ids=["one size", "several sizes"])
def test_a_whole_pass_is_the_same_fused(
    fused: Passes, num_img: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    flux = random_networks()
    params, num = PROFILE.transformer, len(num_img)
    packing = Packing(num_txt=NUM_TXT, num_img=num_img)
    prompt = random_prompt(num)
    img = packing.pack([torch.randn(count, params.in_channels) for count in num_img])
    ids = packing.pack([torch.randint(0, 9, (count, 3)).float() for count in num_img])
    given = (torch.randn(num, NUM_TXT, params.context_in_dim), torch.rand(num), torch.randn(num, params.vec_in_dim))

    @torch.inference_mode()
    def velocity() -> Tensor:
        out: Tensor = flux(img, ids, *given, torch.full((num,), 3.5), packing=packing, image_prompt=prompt)
        return out

    expected = velocity()
    for module in (layers, adapter):
        monkeypatch.setattr(module, "passes_for", lambda x: fused)
    found = velocity()
    assert flux.double_blocks[0].img_residual is not None  # the adapter took part
    assert not torch.equal(found, expected)  # it did go another way
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_the_formulas_of_a_block_are_one_graph_to_a_compiler() -> None:
    """As training compiles blocks; what a compiler can't follow would break a block's graph, and slow training down."""
    flux = random_networks()
    params, num, num_img = PROFILE.transformer, 2, 4
    for block in (*flux.double_blocks, *flux.single_blocks):
        block.compile(backend="aot_eager", fullgraph=True)
    prompt = random_prompt(num)
    torch._dynamo.utils.counters.clear()
    for _ in range(2):
        out = flux(
            torch.randn(num, num_img, params.in_channels),
            torch.zeros(num, num_img, 3),
            torch.randn(num, NUM_TXT, params.context_in_dim),
            torch.rand(num),
            torch.randn(num, params.vec_in_dim),
            torch.ones(num),
            packing=EqualPacking(num_txt=NUM_TXT, num_img=(num_img,)),
            image_prompt=prompt,
        )
        out.sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # a double block's and a single one's


def on_gpu() -> Tensor:
    """What a tensor on a GPU looks like to the choice."""
    return cast(Tensor, types.SimpleNamespace(is_cuda=True))


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    choice.fused_passes.cache_clear()
    yield
    choice.fused_passes.cache_clear()


@pytest.mark.usefixtures("fresh_choice")
def test_kernels_are_for_inference_on_a_gpu(fused: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_check, "largest_difference", lambda *args, **kwargs: 0.001)
    with torch.inference_mode():
        assert choice.passes_for(on_gpu()) is fused
        assert choice.passes_for(torch.zeros(1)) is passes
        with choice.formulas_only():
            assert choice.passes_for(on_gpu()) is passes
        assert choice.passes_for(on_gpu()) is fused
    assert choice.passes_for(on_gpu()) is passes  # kernels have no gradients
    with torch.no_grad():
        assert choice.passes_for(on_gpu()) is passes  # training records and compiles such passes


@pytest.mark.usefixtures("fused", "fresh_choice")
def test_kernels_that_cannot_be_built_or_differ_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unbuildable(*args: object, **kwargs: object) -> float:
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(fused_check, "largest_difference", unbuildable)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        assert choice.passes_for(on_gpu()) is passes
        assert choice.passes_for(on_gpu()) is passes
    assert [record.getMessage() for record in caplog.records] == [
        "no fused kernels, steps take longer: RuntimeError: Failed to find C compiler."
    ]
    caplog.clear()
    choice.fused_passes.cache_clear()
    for difference in (0.5, float("nan")):
        monkeypatch.setattr(fused_check, "largest_difference", lambda *args, _d=difference, **kwargs: _d)
        choice.fused_passes.cache_clear()
        with torch.inference_mode(), caplog.at_level(logging.WARNING):
            assert choice.passes_for(on_gpu()) is passes
    assert "differ from the formulas by 0.5" in caplog.text
