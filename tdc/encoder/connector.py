# SPDX-License-Identifier: Apache-2.0
"""The spatial vision aggregator: two towers' tokens -> one frame's tokens in the LLM's width.

Each of ``query_grid x query_grid`` positions owns one query. Through ``depth`` layers it attends
the small window of SigLIP tokens and the window of DINOv2 tokens that lie under it, both in one
softmax. What comes out is projected to the LLM's width, cropped to the picture, and every row of
the grid is closed with a learned newline token (TDC paper section 3.1; the aggregator is
Cambrian-1's, arXiv 2406.16860).

Towers are always in the order SigLIP, DINOv2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tdc_kernels.plain import is_plain, is_plain_linear

from ..tensor_cache import TensorCache
from .geometry import kept_box, to_windows, window_mask, window_side
from .visual_tokens import VisualTokens
from .window_attention import absorbed_attention, absorbing_pays, window_attention


class AuxProjector(nn.Module):
    """Linear, GELU, linear, LayerNorm: a tower's width -> the connector's width."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(input_size, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[..., C] -> [..., V]``."""
        return self.norm(self.fc2(F.gelu(self.fc1(tokens.contiguous()))))


class WindowKeysValues(nn.Module):
    """Keys and values of one tower's windows, with a position inside the window if it has one."""

    def __init__(self, hidden_size: int, window: int) -> None:
        super().__init__()
        if window > 1:
            self.position = nn.Parameter(torch.empty(window**2, hidden_size))
        else:  # a window of one token has no positions to tell apart
            self.register_parameter("position", None)
        self.key_norm = nn.LayerNorm(hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)
        self.value_norm = nn.LayerNorm(hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise what is no submodule's own."""
        if self.position is not None:
            nn.init.normal_(self.position, std=self.position.shape[-1] ** -0.5)

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """``[F, P, k*k, V]`` -> keys and values of the same shape."""
        for_key, for_value = self.normed(windows)
        return self.key(for_key), self.value(for_value)

    def normed(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """What the two projections take: ``[F, P, k*k, V]`` each."""
        if self.position is not None:
            windows = windows + self.position
        return self.key_norm(windows), self.value_norm(windows)

    def readable(self) -> bool:
        """Whether the projections' weights may be used without a call of the module."""
        return is_plain(self, WindowKeysValues) and is_plain_linear(self.key, self.value)


class SVALayer(nn.Module):
    """One aggregation layer: mix in the frame's context, attend the windows, two-layer MLP."""

    def __init__(self, hidden_size: int, windows: Sequence[int], num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.context = nn.Linear(hidden_size, hidden_size, bias=False)
        self.mix = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.query_norm = nn.LayerNorm(hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.towers = nn.ModuleList(WindowKeysValues(hidden_size, k) for k in windows)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm = nn.LayerNorm(hidden_size)
        self.fc1 = nn.Linear(hidden_size, hidden_size, bias=False)
        self.fc2 = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self, x: Tensor, context: Tensor, windows: Sequence[Tensor], mask: Tensor | None
    ) -> Tensor:
        """Update the queries.

        Args:
            x: queries ``[F, P, V]``.
            context: mean SigLIP token of each frame ``[F, V]``.
            windows: per tower ``[F, P, k_i**2, V]``.
            mask: bool ``[1 or F, P, sum(k_i**2)]``, True where attended, or None.

        Returns:
            ``[F, P, V]``.
        """
        context = self.context(context)[:, None].expand_as(x)
        mixed = self.mix(torch.cat([x, context], dim=-1))  # [F, P, V], query first
        query = self.query(self.query_norm(mixed))
        if absorbing_pays(query) and all(tower.readable() for tower in self.towers):  # type: ignore
            attended = absorbed_attention(query, self.towers, windows, self.num_heads, mask)
        else:
            pairs = [tower(window) for tower, window in zip(self.towers, windows, strict=True)]
            keys = torch.cat([key for key, _ in pairs], dim=2)  # [F, P, sum(k_i**2), V]
            values = torch.cat([value for _, value in pairs], dim=2)
            attended = window_attention(query, keys, values, self.num_heads, mask)
        # The residual goes around the whole layer, from before the mix.
        return x + self.fc2(F.gelu(self.fc1(self.norm(mixed + self.out(attended)))))


class SVAConnector(nn.Module):
    """Spatial vision aggregator with its projections (TDC paper section 3.1).

    Args:
        siglip_width, dinov2_width: channels of the two towers.
        hidden_size: width V inside the aggregator.
        output_size: width D of the LLM.
        query_grid: queries per side (12 for 144 tokens, 24 for 576); divides every token grid.
        token_grids: tokens per side of each tower.
        depth: aggregation layers.
        num_heads: attention heads; divides ``hidden_size``.
        num_query_group: independent aggregators whose outputs are concatenated.
        output_grid: cells per side of the output; another than ``query_grid`` resizes bilinearly.

    Raises:
        ValueError: a grid does not divide, or the heads do not divide the width.
    """

    def __init__(
        self,
        siglip_width: int,
        dinov2_width: int,
        hidden_size: int,
        output_size: int,
        query_grid: int = 12,
        token_grids: Sequence[int] = (24, 24),
        depth: int = 3,
        num_heads: int = 16,
        num_query_group: int = 1,
        output_grid: int | None = None,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads:
            raise ValueError(f"num_heads must divide hidden_size {hidden_size}, got {num_heads}")
        if len(token_grids) != 2:
            raise ValueError(f"token_grids must hold two grids, got {tuple(token_grids)}")
        self.query_grid = query_grid
        self.token_grids = tuple(token_grids)
        self.output_grid = query_grid if output_grid is None else output_grid
        windows = [window_side(grid, query_grid) for grid in token_grids]
        self.aux_projectors = nn.ModuleList(
            AuxProjector(width, hidden_size) for width in (siglip_width, dinov2_width)
        )
        self.query = nn.Parameter(torch.empty(num_query_group, hidden_size))
        self.samplers = nn.ModuleList(
            nn.ModuleList(SVALayer(hidden_size, windows, num_heads) for _ in range(depth))
            for _ in range(num_query_group)
        )
        self.projector = nn.Sequential(
            nn.Linear(hidden_size * num_query_group, output_size),
            nn.GELU(),
            nn.Linear(output_size, output_size),
        )
        self.image_newline = nn.Parameter(torch.empty(output_size))
        self.cache = TensorCache()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise what is no submodule's own."""
        nn.init.normal_(self.query, std=self.query.shape[-1] ** -0.5)
        nn.init.normal_(self.image_newline, std=self.image_newline.shape[-1] ** -0.5)

    def window_mask(self, width: int, height: int) -> Tensor | None:
        """Attention mask for frames of one size, for :meth:`grid_tokens`.

        Returns:
            bool ``[query_grid**2, sum(k_i**2)]`` on the CPU, or None where nothing is masked.
        """
        masks = [window_mask(width, height, grid, self.query_grid) for grid in self.token_grids]
        mask = torch.cat(masks, dim=-1)
        return None if bool(mask.all()) else mask

    def forward(
        self,
        siglip: Tensor,
        dinov2: Tensor,
        size: tuple[int, int],
        chunk_size: int | None = 16,
    ) -> VisualTokens:
        """Frame tokens: the grid, cropped to the picture, with a newline token behind each row.

        Args:
            siglip, dinov2, chunk_size: as for :meth:`grid_tokens`.
            size: (width, height) of all frames.

        Returns:
            ``[F, rows * (cols + 1), W]`` row-major, with :meth:`token_map` still to be applied. W
            is D + 2 rounded up to a multiple of 8: column D is 1 in cells, for the bias, and column
            D + 1 is 1 in a row's last token, the newline. Where the projector's last layer is more
            than a plain ``nn.Linear`` (LoRA, hooks, ...) it is called: W is D, nothing to apply.
        """
        mapped = not self._projector_readable()
        mask = self.window_mask(*size)
        hidden = self._hidden_grid(siglip, dinov2, mask, chunk_size, projected=mapped)
        frames, _, width = hidden.shape
        box = kept_box(*size, self.output_grid)
        cells = hidden.unflatten(1, (self.output_grid, self.output_grid))
        cells = cells[:, box.row0 : box.row1, box.col0 : box.col1]
        if mapped:
            newline = self.image_newline.to(cells).expand(frames, box.rows, 1, -1)
            return VisualTokens(torch.cat([cells, newline], dim=2).flatten(1, 2))
        tokens = hidden.new_zeros(frames, box.rows, box.cols + 1, _map_width(width))
        tokens[:, :, :-1, :width] = cells
        tokens[:, :, :-1, width] = 1
        tokens[:, :, -1, width + 1] = 1
        return VisualTokens(tokens.flatten(1, 2), self.token_map())

    def _projector_readable(self) -> bool:
        """Whether the projector's last layer may be used by its weights, not by a call."""
        return is_plain(self.projector, nn.Sequential) and is_plain_linear(self.projector[-1])

    def token_map(self) -> Tensor:
        """``[D, W]``: the projector's last layer, its bias and the newline token, as one matrix."""
        weight, bias = (self.projector.get_parameter(f"2.{n}") for n in ("weight", "bias"))

        def compute() -> Tensor:
            joined = torch.cat([weight, bias[:, None], self.image_newline[:, None].to(bias)], dim=1)
            return F.pad(joined, (0, _map_width(weight.shape[1]) - joined.shape[1]))

        # The same tensor for every video: what is folded from it is kept as long as it is the same.
        return self.cache.get("token_map", [weight, bias, self.image_newline], compute)

    def grid_tokens(
        self,
        siglip: Tensor,
        dinov2: Tensor,
        window_mask: Tensor | None = None,
        chunk_size: int | None = 16,
    ) -> Tensor:
        """Every cell's final token, padding included.

        Args:
            siglip: ``[F, token_grids[0]**2, C0]``.
            dinov2: ``[F, token_grids[1]**2, C1]``.
            window_mask: bool ``[P, K]`` for all frames or ``[F, P, K]``, see :meth:`window_mask`.
            chunk_size: frames worked on at a time. At the paper's widths a frame's intermediates
                take about 50 MB in fp32. None: all at once.

        Returns:
            ``[F, output_grid**2, D]``.

        Raises:
            ValueError: the two towers' frame counts differ, or a token count is not its grid's.
        """
        return self._hidden_grid(siglip, dinov2, window_mask, chunk_size, projected=True)

    def _hidden_grid(
        self,
        siglip: Tensor,
        dinov2: Tensor,
        window_mask: Tensor | None,
        chunk_size: int | None,
        projected: bool,
    ) -> Tensor:
        """The grid behind the projector, or before its last layer."""
        frames = siglip.shape[0]
        if dinov2.shape[0] != frames:
            raise ValueError(f"dinov2 must have siglip's {frames} frames, got {dinov2.shape[0]}")
        if window_mask is not None:
            window_mask = window_mask.to(siglip.device)
            if window_mask.dim() == 2:
                window_mask = window_mask[None]
        step = max(frames if chunk_size is None else chunk_size, 1)
        chunks = []
        for start in range(0, max(frames, 1), step):
            part = slice(start, start + step)
            mask = window_mask
            if mask is not None and mask.shape[0] > 1:
                mask = mask[part]
            hidden = self._hidden_chunk(siglip[part], dinov2[part], mask)
            chunks.append((self.projector if projected else self.projector[:-1])(hidden))
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks)

    def _hidden_chunk(self, siglip: Tensor, dinov2: Tensor, mask: Tensor | None) -> Tensor:
        projected = [
            projector(tokens)  # [F, T_i, V]
            for projector, tokens in zip(self.aux_projectors, (siglip, dinov2), strict=True)
        ]
        context = projected[0].mean(dim=1)  # [F, V]
        windows = [
            to_windows(tokens, grid, self.query_grid)  # [F, P, k_i**2, V]
            for tokens, grid in zip(projected, self.token_grids, strict=True)
        ]
        groups = []
        for query, layers in zip(self.query, self.samplers, strict=True):
            x = query.expand(siglip.shape[0], self.query_grid**2, -1)  # [F, P, V]
            for layer in layers:  # type: ignore[attr-defined]
                x = layer(x, context, windows, mask)
            groups.append(self._resize(x))
        return torch.cat(groups, dim=-1)

    def _resize(self, x: Tensor) -> Tensor:
        if self.output_grid == self.query_grid:
            return x
        maps = x.transpose(1, 2).unflatten(-1, (self.query_grid, self.query_grid)).float()
        size = (self.output_grid, self.output_grid)
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        return maps.flatten(2).transpose(1, 2).to(x.dtype)


def _map_width(width: int) -> int:
    return -(-(width + 2) // 8) * 8


def frame_position_table(positions: Tensor, width: int, mode: str = "sinusoidal") -> Tensor:
    """Sine and cosine vectors that tell frames apart (optional, paper section 3.1).

    Args:
        positions: frame numbers ``[F]``.
        width: channels D.
        mode: ``"sinusoidal"``: channels 2i and 2i + 1 hold sin and cos of ``t / 10000**(2i/D)``.
            ``"release"``: the odd channels hold the cosine *of the sine*, as in the released code.

    Returns:
        fp32 ``[F, D]`` on the device of ``positions``.

    Raises:
        ValueError: unknown mode.
    """
    if mode not in ("sinusoidal", "release"):
        raise ValueError(f'mode must be "sinusoidal" or "release", got {mode!r}')
    channels = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device)
    rates = 1.0 / 10000.0 ** (channels / width)
    angles = positions.float()[:, None] * rates  # [F, ceil(D/2)]
    even = angles.sin()
    odd = even.cos() if mode == "release" else angles.cos()
    return torch.stack([even, odd], dim=-1).flatten(1)[:, :width]
