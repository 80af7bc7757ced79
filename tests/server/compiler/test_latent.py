"""Latents: where a model is cut, and that both halves are the whole."""

from dataclasses import replace

import pytest
import torch

from rootlet_server.compiler.interpret import run
from rootlet_server.compiler.latent import cut

# Models whose first adapter is not at the batch, and what their frozen prefix gives.
CUT = {
    "residual_cnn": (8, 4, 4),
    "conv1d": (8, 8),
    "vit": (4, 16),
    "vit_timm_class_token": (5, 16),
    "encoder": (6, 16),
    "encoder_sequence_first": (6, 16),
    "uint8_cnn": (8, 6, 6),
}
WHOLE = {
    "mlp": "an adapter reads the batch",
    "shared": "the first adapter reads what no frozen weight touched",
    "tokens": "the padding mask is another way from the batch to the output",
    "folded": "an adapter reads the batch",
}


# The first layer of these could carry an adapter, and then nothing lies before it.
FIRST_LEFT_OUT = {"residual_cnn", "conv1d", "vit", "vit_timm_class_token", "uint8_cnn"}


def halves(lab, name: str, **options):
    built = lab.built(name, **options)
    if name in FIRST_LEFT_OUT:
        _, *later = dict.fromkeys(site.module for site in built.step.learner.sites)
        built = lab.built(name, target_modules=tuple(later), **options)
    learner = built.step.learner
    return built, cut(learner.program, learner.sites, learner.head)


@pytest.mark.parametrize("base_dtype", ["float32", "int8"])
@pytest.mark.parametrize("name", CUT)
def test_the_halves_are_the_whole(lab, name: str, base_dtype: str) -> None:
    built, found = halves(lab, name, base_dtype=base_dtype)
    assert found is not None
    x = lab.case(name).x[:7]
    with torch.no_grad():
        latent, _ = run(found.prefix, built.frozen, x)
        assert latent.dtype == torch.float32
        assert len(latent) == len(x)
        learner = lab.stirred(built).step.learner
        adapter = lab.stirred(built).adapter
        whole = learner.forward(built.frozen, adapter, x).output
        tail = replace(learner, program=found.tail)
        output = tail.forward(built.frozen, adapter, latent).output
    torch.testing.assert_close(output, whole, rtol=0, atol=0)


def test_the_prefix_is_the_longest(lab) -> None:
    for name, shape in CUT.items():
        built, found = halves(lab, name)
        x = lab.case(name).x[:3]
        with torch.no_grad():
            latent, _ = run(found.prefix, built.frozen, x)
        assert latent.numel() // 3 == torch.Size(shape).numel(), name


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_without_a_frozen_prefix_is_not_cut(lab, name: str) -> None:
    assert halves(lab, name)[1] is None, WHOLE[name]
