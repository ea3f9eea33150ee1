# SPDX-License-Identifier: Apache-2.0
"""The authors' checkpoint layout: their configuration keys and tensor names in terms of ours."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from transformers import AutoConfig

from ..config import RELEASE_BEHAVIOUR, TDCConfig
from ..encoder.geometry import window_side
from ..errors import InputError

TEXT_MODEL_TYPES = {"cambrian_qwen": "qwen2", "cambrian_llama": "llama"}
CONNECTOR_HEADS = 16  # fixed in the released code
BERT_HEAD_WIDTH = 64  # BERT's sizes all have heads of 64

# Released names that carry no weight of ours, with the reason that the report gives.
IGNORED = (
    (r"model\.Qformer\.cls\.", "language head of the Q-Former, never used"),
    (r"model\.Qformer\.bert\.embeddings\.position_ids", "a table of 0, 1, 2, ..."),
    (r"model\.vision_sampler_layers\.", "connector layers inside the LLM, never executed"),
    (r"model\.audio_encoder\.", "BEATs is taken from its own checkpoint (--beats)"),
    (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "recomputed from the configuration"),
)

_CONNECTOR_TOWER = {
    "k_proj_{i}.0.weight": "key_norm.weight",
    "k_proj_{i}.0.bias": "key_norm.bias",
    "k_proj_{i}.1.weight": "key.weight",
    "v_proj_{i}.0.weight": "value_norm.weight",
    "v_proj_{i}.0.bias": "value_norm.bias",
    "v_proj_{i}.1.weight": "value.weight",
}
_CONNECTOR_LAYER = {
    "proj_context.weight": "context.weight",
    "proj_in.weight": "mix.weight",
    "cross_attn.q_proj.0.weight": "query_norm.weight",
    "cross_attn.q_proj.0.bias": "query_norm.bias",
    "cross_attn.q_proj.1.weight": "query.weight",
    "cross_attn.o_proj.weight": "out.weight",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
    "proj_out.linear_1.weight": "fc1.weight",
    "proj_out.linear_2.weight": "fc2.weight",
}
_QFORMER_LAYER = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "attention.norm",
    "crossattention.self.query": "cross_attention.query",
    "crossattention.self.key": "cross_attention.key",
    "crossattention.self.value": "cross_attention.value",
    "crossattention.output.dense": "cross_attention.out",
    "crossattention.output.LayerNorm": "cross_attention.norm",
    "intermediate.dense": "ffn_text.up",
    "output.dense": "ffn_text.down",
    "output.LayerNorm": "ffn_text.norm",
    "intermediate_query.dense": "ffn_query.up",
    "output_query.dense": "ffn_query.down",
    "output_query.LayerNorm": "ffn_query.norm",
}
_QFORMER_EMBEDDINGS = {
    "word_embeddings": "word_embeddings",
    "position_embeddings": "position_embeddings",
    "LayerNorm": "embeddings_norm",
}
_COMPRESSOR = {
    "model.frame_seg": "compressor.separator",
    "model.query_tokens": "compressor.query_tokens",
    "model.query_proj.weight": "compressor.query_proj.weight",
    "model.query_proj.bias": "compressor.query_proj.bias",
    "model.vision_proj.weight": "compressor.output_proj.weight",
    "model.vision_proj.bias": "compressor.output_proj.bias",
    "model.audio_proj.weight": "compressor.audio_proj.weight",
    "model.audio_proj.bias": "compressor.audio_proj.bias",
}


def release_config(
    release: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    bert: Mapping[str, Any] | None = None,
    **parts: Any,
) -> TDCConfig:
    """Our configuration for a released one; every departure from the paper is set.

    Args:
        release: the release's ``config.json``.
        shapes: shape of every tensor of its checkpoint.
        bert: ``config.json`` of the Q-Former's BERT; None: sizes from ``shapes``, heads of 64.
        parts: ``siglip_config``, ``dinov2_config``, ``audio_config`` of the parts that live in
            files of their own.

    Raises:
        InputError: a kind of model that the release never was, or a missing key.
    """
    model_type = release.get("model_type")
    if model_type not in TEXT_MODEL_TYPES:
        raise InputError(
            f"config.json has model_type {model_type!r}; expected "
            + " or ".join(repr(name) for name in TEXT_MODEL_TYPES)
        )
    if release.get("mm_projector_type", "sva") != "sva":
        raise InputError(
            f"config.json has mm_projector_type {release['mm_projector_type']!r}; expected 'sva'"
        )
    required = ("vision_hidden_size", "connector_depth", "image_token_len", "query_num_list")
    missing = [key for key in required if key not in release]
    if missing:
        raise InputError(f"config.json lacks {', '.join(missing)}; expected a TDC release's keys")
    _check_kinds(release)
    lacking = [key for key in WIDTHS if len(shapes.get(key, ())) != 2]
    if lacking:
        raise InputError(f"the checkpoint lacks {', '.join(lacking)}; expected a TDC release's")
    tower_tokens = release.get("mm_vision_tower_aux_token_len_list", [576, 576])
    if len(set(tower_tokens)) != 1:
        raise InputError(f"towers have {tower_tokens} tokens; expected the same number for both")
    return TDCConfig(
        text_config=_text_config(release, TEXT_MODEL_TYPES[model_type]),
        qformer_config=_qformer_config(shapes, bert),
        siglip_hidden_size=shapes[WIDTHS[0]][1],
        dinov2_hidden_size=shapes[WIDTHS[1]][1],
        tower_grid=math.isqrt(tower_tokens[0]),
        connector_hidden_size=release["vision_hidden_size"],
        connector_depth=release["connector_depth"],
        connector_heads=CONNECTOR_HEADS,
        connector_query_groups=release.get("num_query_group", 1),
        connector_grid=math.isqrt(release["query_num_list"][0]),
        frame_grid=math.isqrt(release["image_token_len"]),
        frame_positions="release" if release.get("frame_pos", False) else None,
        num_scenes=release.get("max_num_segments", 24) + 1,  # theirs counts boundaries
        num_context_tokens=release.get("context_token_num", 16),
        query_type="learned" if release.get("query_type") == "learned" else "pooled",
        static_frames=release.get("add_static", True),
        question_in_compressor=release.get("text_input", True),
        max_context_length=release.get("tokenizer_model_max_length") or 8192,
        answer_reserve=release.get("inference_max_length", 16),
        padding_side=release.get("tokenizer_padding_side", "right"),
        **RELEASE_BEHAVIOUR,
        **parts,
    )


WIDTHS = ("model.mm_projector_aux_0.0.weight", "model.mm_projector_aux_1.0.weight")
NUMBERS = (
    *("vision_hidden_size", "connector_depth", "image_token_len", "num_query_group"),
    *("max_num_segments", "context_token_num", "tokenizer_model_max_length"),
    *("inference_max_length", "hidden_size", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "vocab_size", "max_position_embeddings"),
)
LISTS = ("query_num_list", "mm_vision_tower_aux_token_len_list")
CHOICES = ("frame_pos", "add_static", "text_input", "audio_input", "tie_word_embeddings")


def _check_kinds(release: Mapping[str, Any]) -> None:
    def number(value: Any) -> bool:
        return type(value) is int and 0 < value < 2**31

    def wrong(expected: str, names: Sequence[str], fits: Callable[[Any], bool]) -> None:
        for name in names:
            value = release.get(name)
            if value is not None and not fits(value):
                raise InputError(f"config.json has {name} {value!r}; expected {expected}")

    wrong("a whole number above 0", NUMBERS, number)
    wrong("true or false", CHOICES, lambda x: isinstance(x, bool))
    wrong(
        "a list of numbers",
        LISTS,
        lambda x: isinstance(x, list) and x != [] and all(map(number, x)),
    )


def _text_config(release: Mapping[str, Any], model_type: str) -> Any:
    """The decoder's fields, without the release's own keys."""
    known = AutoConfig.for_model(model_type).to_dict()
    fields = {
        key: value
        for key, value in release.items()
        if key in known or key in ("rope_theta", "rope_scaling", "head_dim")
    }
    fields.pop("model_type", None)
    fields.pop("transformers_version", None)
    if model_type == "qwen2":
        fields["rope_scaling"] = None  # the release forces it
    return AutoConfig.for_model(model_type, **fields)


def _qformer_config(
    shapes: Mapping[str, tuple[int, ...]], bert: Mapping[str, Any] | None
) -> dict[str, Any]:
    """BERT sizes from the tensors, heads from BERT's own configuration."""
    prefix = "model.Qformer.bert."
    sizes = [
        shapes.get(prefix + name, ())
        for name in (
            "embeddings.word_embeddings.weight",
            "embeddings.position_embeddings.weight",
            "encoder.layer.0.intermediate.dense.weight",
        )
    ]
    if len(sizes[0]) != 2 or not all(sizes):
        raise InputError("the checkpoint holds no Q-Former (model.Qformer.bert.*); expected one")
    layers = {
        int(found[1]) for key in shapes if (found := re.match(r".*Qformer.*\.layer\.(\d+)\.", key))
    }
    vocabulary, width = sizes[0]
    heads = bert.get("num_attention_heads") if bert else width // BERT_HEAD_WIDTH
    if type(heads) is not int or heads < 0:
        raise InputError(f"BERT's config.json has num_attention_heads {heads!r}; expected a number")
    if not heads or width % heads or (not bert and width % BERT_HEAD_WIDTH):
        raise InputError(
            f"a Q-Former of width {width} has no heads of {BERT_HEAD_WIDTH}; "
            "give the folder of its BERT with --bert"
        )
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "intermediate_size": sizes[2][0],
        "max_position_embeddings": sizes[1][0],
        "layer_norm_eps": bert.get("layer_norm_eps", 1e-12) if bert else 1e-12,
    }


def our_names(config: TDCConfig, released: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Names of released tensors in :class:`tdc.TDCForConditionalGeneration`.

    Returns:
        ``{theirs: ours}`` for the tensors that are taken, and ``{theirs: reason}`` for those that
        are ignored. A name in neither is unknown.
    """
    table = {
        theirs: "video_encoder.connector." + ours
        for theirs, ours in connector_key_map(
            config.connector_grid,
            (config.tower_grid, config.tower_grid),
            config.connector_depth,
            config.connector_query_groups,
        ).items()
    } | _COMPRESSOR
    unused = _unused(config)
    taken: dict[str, str] = {}
    ignored: dict[str, str] = {}
    for name in released:
        reason = unused.get(name) or next(
            (why for pattern, why in IGNORED if re.match(pattern, name)), None
        )
        ours = table.get(name) or _qformer_name(name) or _language_model_name(name)
        if reason is not None:
            ignored[name] = reason
        elif ours is not None:
            taken[name] = ours
    return taken, ignored


def connector_key_map(
    query_grid: int = 12,
    token_grids: Sequence[int] = (24, 24),
    depth: int = 3,
    num_query_group: int = 1,
) -> dict[str, str]:
    """Released names -> names in :class:`SVAConnector`, one for every tensor."""
    keys = {"model.vision_query": "query", "model.image_newline": "image_newline"}
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        keys[f"model.mm_projector.{name}"] = f"projector.{name}"
    for i in range(len(token_grids)):
        for theirs, ours in (("0", "fc1"), ("2", "fc2"), ("3", "norm")):
            for kind in ("weight", "bias"):
                name = f"model.mm_projector_aux_{i}.{theirs}.{kind}"
                keys[name] = f"aux_projectors.{i}.{ours}.{kind}"
    for group in range(num_query_group):
        for layer in range(depth):
            theirs = f"model.vision_sampler_{group}.layers.{layer}."
            ours = f"samplers.{group}.{layer}."
            keys |= {theirs + a: ours + b for a, b in _CONNECTOR_LAYER.items()}
            for i, grid in enumerate(token_grids):
                for a, b in _CONNECTOR_TOWER.items():
                    keys[f"{theirs}cross_attn.{a.format(i=i)}"] = f"{ours}towers.{i}.{b}"
                if window_side(grid, query_grid) > 1:
                    keys[f"{theirs}pos_embed_{i}"] = f"{ours}towers.{i}.position"
    return keys


def _unused(config: TDCConfig) -> dict[str, str]:
    """Tensors that the release always saves and this configuration does not use."""
    unused = {}
    if config.query_type == "pooled":
        unused["model.query_tokens"] = "queries are pooled, not learned"
    else:
        for kind in ("weight", "bias"):
            unused[f"model.query_proj.{kind}"] = "queries are learned, not pooled"
    if not config.audio_config:
        for kind in ("weight", "bias"):
            unused[f"model.audio_proj.{kind}"] = "the model is converted without audio"
    if config.tower_grid == config.connector_grid:
        for layer in range(config.connector_depth):
            for tower in (0, 1):
                name = f"model.vision_sampler_0.layers.{layer}.pos_embed_{tower}"
                unused[name] = "windows of one token have no positions"
    if config.text_config.tie_word_embeddings:
        unused["lm_head.weight"] = "tied to the embeddings"
    return unused


def _qformer_name(name: str) -> str | None:
    found = re.fullmatch(r"model\.Qformer\.bert\.embeddings\.(\w+)\.(weight|bias)", name)
    if found and found[1] in _QFORMER_EMBEDDINGS:
        return f"compressor.qformer.{_QFORMER_EMBEDDINGS[found[1]]}.{found[2]}"
    found = re.fullmatch(
        r"model\.Qformer\.bert\.encoder\.layer\.(\d+)\.([\w.]+)\.(weight|bias)", name
    )
    if found and found[2] in _QFORMER_LAYER:
        return f"compressor.qformer.layers.{found[1]}.{_QFORMER_LAYER[found[2]]}.{found[3]}"
    return None


def _language_model_name(name: str) -> str | None:
    if re.match(r"(lm_head|model\.(embed_tokens|norm|layers\.\d+))\.", name):
        return "language_model." + name
    return None
