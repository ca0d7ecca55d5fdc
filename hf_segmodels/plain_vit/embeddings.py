# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Input of the plain vision transformer: patch embeddings, class and distillation tokens, position embeddings."""

import torch
from torch import nn
from transformers.models.bit.configuration_bit import BitConfig
from transformers.models.bit.modeling_bit import BitBottleneckLayer, BitEmbeddings, BitEncoder

from ..utils.export import is_exporting
from .configuration_plain_vit import PlainViTConfig


def check_channels(pixel_values: torch.Tensor, num_channels: int) -> None:
    """Raise `ValueError` unless `pixel_values` has the shape `(batch_size, num_channels, height, width)`."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != num_channels:
        raise ValueError(
            f"Expected `pixel_values` of shape (batch_size, {num_channels}, height, width), got {tuple(pixel_values.shape)}. "
            f"Convert the images to {num_channels} channels, or set `num_channels` in the configuration of the backbone."
        )


def pad_to_multiple(pixel_values: torch.Tensor, divisor: int) -> torch.Tensor:
    """Pad `(batch_size, num_channels, height, width)` with zeros at the bottom and right to multiples of `divisor`."""
    # `-size % divisor` would be shorter, but the remainder of a negative symbolic size does not compile
    pad_height, pad_width = ((size + divisor - 1) // divisor * divisor - size for size in pixel_values.shape[-2:])
    return nn.functional.pad(pixel_values, (0, pad_width, 0, pad_height))


def resize_position_embeddings(
    position_embeddings: torch.Tensor,
    num_prefix_tokens: int,
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    mode: str,
) -> torch.Tensor:
    """
    Resize the embeddings of a grid with half-pixel centers and no antialiasing, in float32. Embeddings of prefix tokens are
    kept. Equal grids return the input itself, except during export: an exported graph must hold for every size.

    Args:
        position_embeddings (`torch.Tensor` of shape `(1, num_prefix_tokens + height * width, hidden_size)`): Embeddings of
            the prefix tokens, followed by the embeddings of the grid, row by row.
        grid, new_grid (`tuple[int, int]`): Stored and target `(height, width)`.
        mode (`str`): `"bilinear"` or `"bicubic"`.
    """
    if not is_exporting() and tuple(new_grid) == tuple(grid):
        return position_embeddings
    prefix, patches = split_position_embeddings(position_embeddings, num_prefix_tokens, grid)
    patches = nn.functional.interpolate(patches.float(), size=new_grid, mode=mode, align_corners=False).to(prefix.dtype)
    # (1, D, new_height, new_width) -> (1, new_height * new_width, D)
    return torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1)


def split_position_embeddings(
    position_embeddings: torch.Tensor, num_prefix_tokens: int, grid: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Split position embeddings `(1, num_prefix_tokens + height * width, hidden_size)` into those of the prefix tokens
    `(1, num_prefix_tokens, hidden_size)` and those of the grid `(1, hidden_size, height, width)`.
    """
    prefix, patches = position_embeddings.split([num_prefix_tokens, grid[0] * grid[1]], dim=1)
    # (1, height * width, D) -> (1, D, height, width)
    return prefix, patches.transpose(1, 2).unflatten(2, grid)


class PlainViTHybridStem(nn.Module):
    """ResNetV2 stem of the hybrids R26 and R50 (ViT paper, section 3.1): bottlenecks of BiT without pre-activation."""

    def __init__(self, config: PlainViTConfig):
        super().__init__()
        bit_config = BitConfig(
            num_channels=config.num_channels,
            embedding_size=config.stem_embedding_size,
            hidden_sizes=list(config.stem_hidden_sizes),
            depths=list(config.stem_depths),
            layer_type="bottleneck",
            global_padding="same",
            embedding_dynamic_padding=True,
        )
        self.embedder = BitEmbeddings(bit_config)
        self.encoder = BitEncoder(bit_config)
        for module in self.encoder.modules():
            if isinstance(module, BitBottleneckLayer):
                # mark for `_init_weights`, which transformers does not call for outside modules without parameters
                module.norm3.ends_residual_branch = True

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        # (batch_size, num_channels, height, width)
        # -> (batch_size, stem_hidden_sizes[-1], ceil(height / patch_size), ceil(width / patch_size))
        return self.encoder(self.embedder(pixel_values)).last_hidden_state


class PlainViTPatchEmbeddings(nn.Module):
    """
    Projection of `pixel_values` `(batch_size, num_channels, height, width)` to a feature map `(batch_size, hidden_size,
    ceil(height / patch_size), ceil(width / patch_size))`.
    """

    def __init__(self, config: PlainViTConfig):
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size = config.patch_size
        self.stem = PlainViTHybridStem(config) if config.stem_type == "resnetv2" else None
        if self.stem is None:
            self.projection = nn.Conv2d(
                config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
            )
        else:
            self.projection = nn.Conv2d(config.stem_hidden_sizes[-1], config.hidden_size, kernel_size=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        check_channels(pixel_values, self.num_channels)
        pixel_values = pixel_values.to(self.projection.weight.dtype)
        if self.stem is not None:
            return self.projection(self.stem(pixel_values))
        return self.projection(pad_to_multiple(pixel_values, self.patch_size))


class PlainViTEmbeddings(nn.Module):
    """Patch embeddings, class and distillation tokens, and position embeddings."""

    def __init__(self, config: PlainViTConfig):
        super().__init__()
        self.config = config
        grid_height, grid_width = config.position_grid
        self.patch_embeddings = PlainViTPatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_cls_token else None
        self.distillation_token = (
            nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_distillation_token else None
        )
        self.position_embeddings = nn.Parameter(
            torch.zeros(1, config.num_prefix_tokens + grid_height * grid_width, config.hidden_size)
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def interpolate_position_embeddings(self, height: int, width: int) -> torch.Tensor:
        """
        Return position embeddings `(1, num_prefix_tokens + height * width, hidden_size)` for a patch grid `(height, width)`.
        """
        config = self.config
        has_equal_count = height * width == config.position_grid[0] * config.position_grid[1]
        if config.position_embedding_resize_rule == "token_count" and has_equal_count and not is_exporting():
            return self.position_embeddings
        return resize_position_embeddings(
            self.position_embeddings,
            config.num_prefix_tokens,
            config.position_grid,
            (height, width),
            config.position_embedding_interpolation,
        )

    def assemble(self, patch_tokens: torch.Tensor, position_embeddings: torch.Tensor) -> torch.Tensor:
        """
        Prepend the prefix tokens to patch tokens `(batch_size, num_patches, hidden_size)`, and add position embeddings
        `(1 or batch_size, num_prefix_tokens + num_patches, hidden_size)`.
        """
        batch_size = patch_tokens.shape[0]
        prefix = [
            token.expand(batch_size, -1, -1) for token in (self.cls_token, self.distillation_token) if token is not None
        ]
        return self.dropout(torch.cat([*prefix, patch_tokens], dim=1) + position_embeddings)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        embeddings = self.patch_embeddings(pixel_values)
        height, width = embeddings.shape[-2:]
        # (batch_size, D, height, width) -> (batch_size, height * width, D)
        embeddings = embeddings.flatten(2).transpose(1, 2)
        return self.assemble(embeddings, self.interpolate_position_embeddings(height, width)), (height, width)
