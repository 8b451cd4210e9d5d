"""Real models, unmodified: parts compose to the whole bit for bit, and nothing is left behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from part_oracle import assert_composes, untouched
from torch import nn

from modulewise import Partition
from modulewise.partition.tree import rebatch

Case = tuple[Callable[[], nn.Module], Any]


def image(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size)


def tokens() -> dict[str, torch.Tensor]:
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 9:] = 0
    return {"input_ids": torch.randint(0, 99, (2, 12)), "attention_mask": mask}


TORCHVISION = {
    "resnet18": (32, {}),
    "resnet50": (32, {}),
    "resnet152": (32, {}),
    "vgg16_bn": (32, {}),
    "densenet121": (32, {}),
    "mobilenet_v3_small": (32, {}),
    "efficientnet_b0": (32, {}),
    "convnext_tiny": (32, {}),
    "vit_b_16": (32, {"image_size": 32}),
    "swin_t": (32, {}),
    "googlenet": (32, {"aux_logits": False, "init_weights": False}),
    "inception_v3": (75, {"aux_logits": False, "init_weights": False}),
}
TIMM = {
    "resnet50": (32, {}),
    "vit_small_patch16_224": (32, {"img_size": 32}),
    "deit3_small_patch16_224": (32, {"img_size": 32}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "convnextv2_atto": (32, {}),
    "swin_tiny_patch4_window7_224": (56, {"img_size": 56}),
    "efficientnetv2_s": (32, {}),
}


def torchvision_case(name: str) -> Case:
    models = pytest.importorskip("torchvision.models")
    size, options = TORCHVISION[name]
    return lambda: models.get_model(name, **options), image(size)


def timm_case(name: str) -> Case:
    timm = pytest.importorskip("timm")
    size, options = TIMM[name]
    return lambda: timm.create_model(name, **options), image(size)


def transformers_case(name: str) -> Case:
    hf = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"vocab_size": 100, "max_position_embeddings": 32}
    if name == "bert":
        return lambda: hf.BertForSequenceClassification(hf.BertConfig(**small, **text)), tokens()
    if name == "gpt2":
        config = {"vocab_size": 100, "n_positions": 32, "n_embd": 16, "n_layer": 3, "n_head": 2, "use_cache": False}
        ends = {"bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}
        return lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**config, **ends)), tokens()
    if name == "llama":
        config = {**small, **text, "num_key_value_heads": 1, "tie_word_embeddings": False}
        return lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**config)), tokens()
    config = {**small, "image_size": 16, "patch_size": 8}
    return lambda: hf.ViTForImageClassification(hf.ViTConfig(**config)), {"pixel_values": image(16)}


CASES = {
    **{f"torchvision:{name}": (torchvision_case, name) for name in TORCHVISION},
    **{f"timm:{name}": (timm_case, name) for name in TIMM},
    **{f"transformers:{name}": (transformers_case, name) for name in ("bert", "gpt2", "llama", "vit")},
}


@pytest.mark.parametrize("case", CASES)
def test_parts_of_a_real_model_equal_the_whole_bit_for_bit(case: str) -> None:
    """In eval and train mode, at the example's batch size and another; nothing left on the model."""
    torch.manual_seed(0)
    make, name = CASES[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the model zoos' own deprecations
        build, x = make(name)
        model = build()
        keys, identities = list(model.state_dict()), [id(p) for p in model.parameters()]
        with untouched(model):
            partition = Partition(model, parts=3, example=x)
        assert len(partition) == 3
        owned = [name for part in partition.parts for name in part.parameter_names]
        assert sorted(owned) == sorted(name for name, _ in model.named_parameters())
        assert_composes(partition, x)
        assert_composes(partition, rebatch(x, 5))
    assert list(model.state_dict()) == keys
    assert [id(p) for p in model.parameters()] == identities
