"""Parts of Stable Diffusion 1.5 from diffusers (Apache-2.0), configured by hand as published; nothing is downloaded."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel


class _Denoiser(torch.nn.Module):
    """The U-Net as a function of tensors."""

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timestep, encoder_hidden_states=states, return_dict=False)[0]


class _Decoder(torch.nn.Module):
    """The decoding half of the autoencoder."""

    def __init__(self, autoencoder: torch.nn.Module) -> None:
        super().__init__()
        self.post_quant_conv = autoencoder.post_quant_conv
        self.decoder = autoencoder.decoder

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.post_quant_conv(latent))


def unet() -> torch.nn.Module:
    """The U-Net: latent (n, 4, h, w), time step (n,), text states (n, 77, 768) -> noise (n, 4, h, w)."""
    return _Denoiser(
        UNet2DConditionModel(
            sample_size=64,
            in_channels=4,
            out_channels=4,
            flip_sin_to_cos=True,
            freq_shift=0,
            down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            block_out_channels=(320, 640, 1280, 1280),
            layers_per_block=2,
            attention_head_dim=8,  # the number of heads, by the published configuration's name for it
            cross_attention_dim=768,
            norm_num_groups=32,
            act_fn="silu",
        )
    )


def vae_decoder() -> torch.nn.Module:
    """The decoder: latent (n, 4, h, w) -> image (n, 3, 8h, 8w)."""
    return _Decoder(
        AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=32,
            sample_size=512,
            act_fn="silu",
        )
    )
