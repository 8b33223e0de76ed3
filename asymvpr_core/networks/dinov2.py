"""DINOv2 (Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024) on timm's transformer blocks.

timm's own `vit_*_patch14_dinov2` resizes the position embedding by another rule than the official
code; at any size but 518 x 518 its features differ, and published recalls assume the official ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from PIL import Image
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from asymvpr_core.errors import NetworkError

PATCH_SIZE = 14
_TRAINED_GRID = 37  # patches a side at 518 x 518, the last size in training
_OFFSET = 0.1


@dataclass(frozen=True)
class VitShape:
    """Width, number of blocks and of attention heads of a vision transformer."""

    embed_dim: int
    depth: int
    num_heads: int


SHAPES = {"small": VitShape(384, 12, 6), "base": VitShape(768, 12, 12), "large": VitShape(1024, 24, 16)}


class DinoV2(nn.Module):
    """`(B, 3, H, W)` normalised images to features `(B, C, H/14, W/14)` and class token `(B, C)`.

    The parameters have the official names. `registers` is 0 or the 4 of the variants with registers
    (Darcet et al., "Vision Transformers Need Registers", ICLR 2024). `final_norm=False` leaves the
    last normalisation out while its parameters stay, as BoQ has it. `mask_token` is part of the
    official file and of no use here.

    Raises:
        NetworkError: unknown size.
    """

    patch_size = PATCH_SIZE

    def __init__(
        self,
        size: Literal["small", "base", "large"] | VitShape = "base",
        registers: int = 0,
        final_norm: bool = True,
        mask_token: bool = True,
    ):
        super().__init__()
        if not isinstance(size, VitShape) and size not in SHAPES:
            raise NetworkError(f"there is no DINOv2 of size '{size}'", expected=", ".join(SHAPES))
        shape = size if isinstance(size, VitShape) else SHAPES[size]
        self.channels = shape.embed_dim
        self.registers = registers
        self.final_norm = final_norm
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.channels))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + _TRAINED_GRID**2, self.channels))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, self.channels))
        if mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, self.channels))
        self.patch_embed = PatchEmbed(None, PATCH_SIZE, 3, self.channels)
        norm = partial(nn.LayerNorm, eps=1e-6)
        # LayerScale is there for its names; 1 keeps random blocks from being the identity.
        block = partial(Block, self.channels, shape.num_heads, qkv_bias=True, init_values=1.0, norm_layer=norm)
        self.blocks = nn.ModuleList(block() for _ in range(shape.depth))
        self.norm = norm(self.channels)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    @property
    def stages(self) -> list[nn.Module]:
        """The transformer blocks, in order."""
        return list(self.blocks)

    @property
    def stem(self) -> list[nn.Module]:
        """What comes before the first block."""
        return [self.patch_embed]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(B, C, H/14, W/14)` of the patches, and the class token `(B, C)`.

        Args:
            images: `(B, 3, H, W)`, H and W multiples of 14.

        Raises:
            NetworkError: images of another shape.
        """
        tokens = self.encode(self.embed(images))
        if self.final_norm:
            tokens = self.norm(tokens)
        grid = (images.shape[-2] // PATCH_SIZE, images.shape[-1] // PATCH_SIZE)
        features = tokens[:, 1 + self.registers :].transpose(1, 2).unflatten(2, grid)
        return features, tokens[:, 0]

    def embed(self, images: Tensor) -> Tensor:
        """The tokens before the first block, `(B, 1 + registers + h·w, C)`: class token, registers, patches row by row.

        Raises:
            NetworkError: not three channels, or sides that are no multiples of 14.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise NetworkError(f"DINOv2 was given images of shape {tuple(images.shape)}", expected="(B, 3, H, W)")
        height, width = images.shape[-2:]
        if height % PATCH_SIZE or width % PATCH_SIZE or not (height and width):
            nearest = " x ".join(str(max(PATCH_SIZE, round(side / PATCH_SIZE) * PATCH_SIZE)) for side in (height, width))
            raise NetworkError(
                f"DINOv2 was given images of {height} x {width} pixels",
                expected=f"multiples of {PATCH_SIZE} (height x width)",
                remedy=f"resize to {nearest}",
            )
        batch = images.shape[0]  # len() would fix the batch size of an exported graph
        tokens = torch.cat((self.cls_token.expand(batch, -1, -1), self.patch_embed(images)), dim=1)
        tokens = tokens + self.position_embedding(height // PATCH_SIZE, width // PATCH_SIZE)
        if self.registers:  # a register has no position
            registers = self.register_tokens.expand(batch, -1, -1)
            tokens = torch.cat((tokens[:, :1], registers, tokens[:, 1:]), dim=1)
        return tokens

    def encode(self, tokens: Tensor) -> Tensor:
        """The tokens after the last block, before the final norm: same shape."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def position_embedding(self, rows: int, columns: int) -> Tensor:
        """The embedding resized from 37 x 37 to `rows` x `columns`: `(1, 1 + rows·columns, C)`.

        The official rule is bicubic without antialiasing, by factors of (rows + 0.1) / 37 and
        (columns + 0.1) / 37, which shift the sampling points a little; with registers, antialiased
        and to the exact size.
        """
        if rows == columns == _TRAINED_GRID:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].float().transpose(1, 2).unflatten(2, (_TRAINED_GRID, _TRAINED_GRID))
        if not self.registers:
            factors = ((rows + _OFFSET) / _TRAINED_GRID, (columns + _OFFSET) / _TRAINED_GRID)
            grid = functional.interpolate(grid, scale_factor=factors, mode="bicubic")
        elif torch.compiler.is_exporting():
            # OpenVINO 2026.4 leaves the antialiasing of an exported Resize out, and nothing says so.
            grid = grid.new_tensor(_bicubic(rows)) @ grid @ grid.new_tensor(_bicubic(columns)).T
        else:
            grid = functional.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True)
        resized = grid.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)
        return torch.cat((self.pos_embed[:, :1], resized), dim=1)


def _bicubic(length: int) -> list[list[float]]:
    """The `(length, 37)` matrix that antialiased bicubic resizing multiplies a column with: the resized unit vectors."""
    units = Image.fromarray(np.eye(_TRAINED_GRID, dtype=np.float32))
    return np.asarray(units.resize((_TRAINED_GRID, length), Image.Resampling.BICUBIC)).tolist()
