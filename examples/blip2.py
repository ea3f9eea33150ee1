# SPDX-License-Identifier: Apache-2.0
"""A whole BLIP-2 of transformers, small and untrained: the same tokens before and after."""

import torch
from transformers import Blip2Config, Blip2ForConditionalGeneration

import tdc_kernels

torch.manual_seed(0)
config = Blip2Config(
    vision_config={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                   "num_attention_heads": 4, "image_size": 56},
    qformer_config={"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4,
                    "num_attention_heads": 4, "encoder_hidden_size": 64, "vocab_size": 100},
    text_config={"model_type": "opt", "hidden_size": 48, "ffn_dim": 96, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "vocab_size": 100, "word_embed_proj_dim": 48},
    num_query_tokens=8,
    image_token_index=99,
)  # fmt: skip
model = Blip2ForConditionalGeneration(config).eval()
inputs = {
    "pixel_values": torch.randn(2, 3, 56, 56),
    "input_ids": torch.cat([torch.full((2, 8), 99), torch.randint(3, 90, (2, 4))], dim=1),
}


def generate() -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=8, do_sample=False)


before = generate()
with tdc_kernels.accelerate(model) as acceleration:
    after = generate()
    print(acceleration)
print(f"same tokens: {torch.equal(before, after)}")
print(f"undone: {all(type(model.get_submodule(x.name)) is x.cls for x in acceleration.replaced)}")
