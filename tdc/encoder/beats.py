# SPDX-License-Identifier: Apache-2.0
"""BEATs, the audio encoder (Chen et al. 2022, arXiv 2212.09058), in plain PyTorch.

A log-mel spectrogram is cut into patches of 16 frames x 16 mel bins: 8 tokens per time step of
160 ms, time-major. A post-norm transformer with a convolutional position embedding and a gated
relative position bias follows. Parameter names are those of Microsoft's published checkpoints.
"""

from __future__ import annotations

import dataclasses
import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from ..errors import InputError
from .fbank import FRAME_LENGTH, FRAME_SHIFT, NUM_MEL_BINS, SAMPLE_RATE, kaldi_fbank

FBANK_MEAN = 15.41663  # of AudioSet
FBANK_STD = 6.55582


@dataclass(frozen=True)
class BEATsConfig:
    """The fields of Microsoft's ``cfg`` that shape the encoder; defaults are BEATs iter3+."""

    input_patch_size: int = 16  # mel frames and mel bins per patch
    embed_dim: int = 512  # width of a patch embedding
    conv_bias: bool = False  # bias of the patch embedding
    encoder_layers: int = 12
    encoder_embed_dim: int = 768
    encoder_ffn_embed_dim: int = 3072
    encoder_attention_heads: int = 12
    deep_norm: bool = True  # residuals are scaled by (2 * layers) ** 0.25
    conv_pos: int = 128  # kernel of the convolutional position embedding
    conv_pos_groups: int = 16
    num_buckets: int = 320  # of the relative position bias
    max_distance: int = 800  # tokens; farther pairs share the last bucket

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BEATsConfig:
        """Take what matters of Microsoft's ``cfg`` and ignore the rest (dropouts, head).

        Raises:
            InputError: a variant of the architecture that no published checkpoint uses.
        """
        fixed = {
            "layer_norm_first": False,
            "activation_fn": "gelu",
            "relative_position_embedding": True,
            "gru_rel_pos": True,
        }
        for name, expected in fixed.items():
            if values.get(name, expected) != expected:
                raise InputError(
                    f"BEATs config has {name}={values[name]!r}; only {expected!r} is supported"
                )
        sizes: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            value: Any = values.get(field.name, field.default)
            kind: Any = type(field.default)
            size = value if kind is int and type(value) is int else 1
            if type(value) is not kind or not 0 < size < 2**20:
                expected = "true or false" if kind is bool else "a whole number above 0"
                raise InputError(f"BEATs config has {field.name}={value!r}; expected {expected}")
            sizes[field.name] = value
        return cls(**sizes)

    @property
    def tokens_per_step(self) -> int:
        """Patches per time step."""
        return NUM_MEL_BINS // self.input_patch_size

    @property
    def seconds_per_step(self) -> float:
        """Duration of a time step."""
        return self.input_patch_size * FRAME_SHIFT / SAMPLE_RATE

    @property
    def min_samples(self) -> int:
        """Shortest waveform that gives a token."""
        return FRAME_LENGTH + (self.input_patch_size - 1) * FRAME_SHIFT


class BEATs(nn.Module):
    """Waveform -> audio tokens.

    Args:
        config: sizes.
    """

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__()
        self.config = config
        patch, width = config.input_patch_size, config.encoder_embed_dim
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, patch, patch, bias=config.conv_bias)
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        if config.embed_dim != width:
            self.post_extract_proj: nn.Module = nn.Linear(config.embed_dim, width)
        else:
            self.post_extract_proj = nn.Identity()
        self.encoder = Encoder(config)

    @property
    def hidden_size(self) -> int:
        """Width of a token."""
        return self.config.encoder_embed_dim

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str]) -> BEATs:
        """Load Microsoft's ``.pt`` file (``{"cfg": ..., "model": ...}``), in eval mode, fp32.

        The classifier of a fine-tuned checkpoint is left out.

        Raises:
            InputError: no such file, another kind of file, or missing or wrong-shaped tensors.
        """
        checkpoint = _load_checkpoint(path)
        config = BEATsConfig.from_dict(checkpoint["cfg"])
        state = beats_state_dict(checkpoint["model"])
        if config.encoder_layers > len(state):
            raise InputError(
                f"BEATs checkpoint {path} has {config.encoder_layers} layers in its cfg, but "
                f"{len(state)} tensors in all"
            )
        try:
            with torch.device("meta"):  # before memory is taken
                expected = cls(config).state_dict()
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            raise InputError(f"BEATs checkpoint {path} has an impossible cfg: {error}") from error
        problems = [f"{name} is missing" for name in sorted(expected.keys() - state.keys())]
        problems += [f"{name} is unknown" for name in sorted(state.keys() - expected.keys())]
        problems += [
            f"{name} is {list(state[name].shape)}, expected {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ]
        if problems:
            raise InputError(f"BEATs checkpoint {path} does not fit its cfg: {'; '.join(problems)}")
        model = cls(config)
        model.load_state_dict(state)
        return model.float().eval()

    def forward(
        self, waveform: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Encode a batch of equally long (or zero-padded) waveforms.

        Args:
            waveform: ``[B, n]`` mono at 16 kHz, in -1..1.
            lengths: valid samples of each row ``[B]``, or None for all.

        Returns:
            Tokens ``[B, steps * 8, width]``, time-major, in the model's dtype; and a bool mask
            ``[B, steps * 8]``, True for padding, or None without ``lengths``.

        Raises:
            InputError: another shape, or too short for a single token (2,800 samples, 175 ms).
        """
        if waveform.dim() != 2 or waveform.shape[1] < self.config.min_samples:
            raise InputError(
                f"waveform must be [B, n] with n >= {self.config.min_samples} samples, "
                f"got {list(waveform.shape)}"
            )
        dtype = self.patch_embedding.weight.dtype
        fbank = (kaldi_fbank(waveform) - FBANK_MEAN) / (2 * FBANK_STD)  # [B, frames, 128]
        patches = self.patch_embedding(fbank.unsqueeze(1).to(dtype))  # [B, E, steps, 8]
        x = self.post_extract_proj(self.layer_norm(patches.flatten(2).transpose(1, 2)))
        padding = None
        if lengths is not None:
            samples = torch.arange(waveform.shape[1], device=waveform.device)
            padding = samples >= lengths.to(waveform.device)[:, None]
            padding = _reduce_padding(padding, fbank.shape[1])
            padding = _reduce_padding(padding, x.shape[1])
        return self.encoder(x, padding), padding


class Encoder(nn.Module):
    """Convolutional positions, then post-norm layers that share one relative position bias."""

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        conv = nn.Conv1d(
            width,
            width,
            config.conv_pos,
            padding=config.conv_pos // 2,
            groups=config.conv_pos_groups,
        )
        self.pos_conv = nn.Sequential(weight_norm(conv, name="weight", dim=2))
        self.layer_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            EncoderLayer(config, has_bias_table=index == 0)
            for index in range(config.encoder_layers)
        )

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """``x [B, L, C]``, ``padding`` bool ``[B, L]`` or None -> ``[B, L, C]``."""
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0.0)
        # An even kernel gives one position too many.
        positions = self.pos_conv(x.transpose(1, 2))[..., : x.shape[1]]
        x = self.layer_norm(x + F.gelu(positions.transpose(1, 2)))
        bias = None  # the first layer computes it, as its table may be there in its call only
        for layer in self.layers:
            x, bias = layer(x, bias, padding)
        return x


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each followed by its LayerNorm (DeepNorm residuals)."""

    def __init__(self, config: BEATsConfig, has_bias_table: bool) -> None:
        super().__init__()
        width = config.encoder_embed_dim
        self.residual_scale = (2 * config.encoder_layers) ** 0.25 if config.deep_norm else 1.0
        self.self_attn = GatedAttention(config, has_bias_table)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_ffn_embed_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_embed_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, bias: Tensor | None, padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``[B, L, C] -> [B, L, C]``; ``bias`` ``[H, L, L]``, None in the layer with the table."""
        attended, bias = self.self_attn(x, bias, padding)
        x = self.self_attn_layer_norm(self.residual_scale * x + attended)
        x = self.final_layer_norm(self.residual_scale * x + self.fc2(F.gelu(self.fc1(x))))
        return x, bias


class GatedAttention(nn.Module):
    """Attention with a relative position bias that each query scales by a gate of its own."""

    def __init__(self, config: BEATsConfig, has_bias_table: bool) -> None:
        super().__init__()
        width, heads = config.encoder_embed_dim, config.encoder_attention_heads
        self.num_heads = heads
        self.num_buckets = config.num_buckets
        self.max_distance = config.max_distance
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.grep_linear = nn.Linear(width // heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, heads, 1, 1))
        if has_bias_table:  # all layers read layer 0's
            self.relative_attention_bias = nn.Embedding(config.num_buckets, heads)

    def reset_parameters(self) -> None:
        """Initialise what is no submodule's own."""
        nn.init.ones_(self.grep_a)

    def position_bias(self, length: int, device: torch.device) -> Tensor:
        """Bias of every pair ``[H, L, L]``, query first; equal along the diagonals."""
        distance = torch.arange(1 - length, length, device=device)  # key minus query, [2L - 1]
        bucket = relative_position_bucket(distance, self.num_buckets, self.max_distance)
        by_distance = self.relative_attention_bias(bucket).T  # [H, 2L - 1]
        position = torch.arange(length, device=device)
        return by_distance[:, position[None] - position[:, None] + length - 1]

    def forward(
        self, x: Tensor, bias: Tensor | None, padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``x [B, L, C]``, ``bias [H, L, L]``, ``padding`` bool ``[B, L]`` -> ``[B, L, C]`` and the
        bias."""
        if bias is None:
            bias = self.position_bias(x.shape[1], x.device)
        query, key, value = (
            proj(x).unflatten(2, (self.num_heads, -1))  # [B, L, H, d]
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        gates = self.grep_linear(query).transpose(1, 2)  # after it, as a slice is multiplied slowly
        query, key, value = (y.transpose(1, 2) for y in (query, key, value))  # [B, H, L, d]
        gates = gates.unflatten(-1, (2, 4)).sum(-1).sigmoid()
        update, reset = gates.chunk(2, dim=-1)  # [B, H, L, 1] each
        mask = (update * (reset * self.grep_a - 1.0) + 2.0) * bias  # [B, H, L, L]
        if padding is not None:
            mask = mask.masked_fill(padding[:, None, None], float("-inf"))
        attended = F.scaled_dot_product_attention(query, key, value, mask.to(query.dtype))
        return self.out_proj(attended.transpose(1, 2).flatten(2)), bias


def relative_position_bucket(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """T5's bidirectional buckets: one half per sign, near distances exact, far ones logarithmic.

    Args:
        distance: key position minus query position, int64 of any shape.
        num_buckets: of both signs together.
        max_distance: from here on one bucket for all.

    Returns:
        int64 bucket numbers of the same shape.
    """
    per_sign = num_buckets // 2
    exact = per_sign // 2
    magnitude = distance.abs()
    ratio = torch.log(magnitude.clamp_min(1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (per_sign - exact)).long()).clamp_max(per_sign - 1)
    return torch.where(magnitude < exact, magnitude, far) + (distance > 0) * per_sign


def beats_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under the names of :class:`BEATs`.

    Both spellings of the weight norm are taken, the later layers' copies of the bias table and the
    classifier of a fine-tuned model are left out.
    """
    renamed = {}
    for name, tensor in state.items():
        shared = name.endswith("relative_attention_bias.weight") and ".layers.0." not in name
        if shared or name.startswith("predictor."):
            continue
        name = name.replace("pos_conv.0.weight_g", "pos_conv.0.parametrizations.weight.original0")
        name = name.replace("pos_conv.0.weight_v", "pos_conv.0.parametrizations.weight.original1")
        renamed[name] = tensor
    return renamed


def _reduce_padding(padding: Tensor, length: int) -> Tensor:
    """Padding over fewer elements, ``[B, n] -> [B, length]``: padding where all of a share is.

    Microsoft's rule: equal shares, the surplus at the end dropped. Shares of samples are therefore
    not exactly the frames', and those of frames not the time steps'.
    """
    share = padding.shape[1] // length
    return padding[:, : share * length].unflatten(1, (length, share)).all(-1)


def _load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise InputError(f"no such BEATs checkpoint: {path}")
    try:
        if zipfile.is_zipfile(path):  # a compressed one, which PyTorch never writes, may be a bomb
            with zipfile.ZipFile(path) as archive:
                if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                    raise ValueError("compressed")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # the unpickler raises whatever a damaged file leads it to
        raise InputError(f"{path} is not a PyTorch checkpoint ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict) or not {"cfg", "model"} <= checkpoint.keys():
        raise InputError(f'{path} is not a BEATs checkpoint: expected entries "cfg" and "model"')
    cfg, state = checkpoint["cfg"], checkpoint["model"]
    tensors = isinstance(state, Mapping) and all(
        isinstance(name, str) and isinstance(x, Tensor) and x.is_floating_point()
        for name, x in state.items()
    )
    if not (isinstance(cfg, Mapping) and tensors):
        raise InputError(f'{path}: expected sizes in "cfg" and floating tensors in "model"')
    return checkpoint
