"""CI2P-ViT (arXiv 2502.10120) in plain PyTorch, as one would write it by hand: what the torch backend is compared with.

The names are those of the authors' code, so that `keras_ci2p.convert.to_mmpretrain(model)` gives its state dict.
"""

import torch
from torch import nn
from torch.nn import functional as F

# CompressAI's reparametrisation of GDN.
PEDESTAL = 2.0**-36


class GDN(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter((0.1 * torch.eye(channels) + PEDESTAL).sqrt())

    def forward(self, x):
        beta = self.beta.clamp(min=(1e-6 + PEDESTAL) ** 0.5).square() - PEDESTAL
        gamma = self.gamma.clamp(min=PEDESTAL**0.5).square() - PEDESTAL
        return x * F.conv2d(x.square(), gamma[:, :, None, None], beta).rsqrt()


def compressor(channels, latent_channels):
    """CompressAI's `g_a` of bmshj2018-factorized."""
    widths = (3, channels, channels, channels, latent_channels)
    layers = []
    for i in range(4):
        layers += [nn.Conv2d(widths[i], widths[i + 1], 5, stride=2, padding=2), GDN(channels)]
    return nn.Sequential(*layers[:-1])


class Convolution(nn.Module):
    def __init__(self, inputs, outputs, kernel=1, stride=1, groups=1, bias=False, norm=True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)
        if norm:
            self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        x = self.conv(x)
        return self.bn(x) if hasattr(self, "bn") else x


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        # Where `channels` is a multiple of 32; others are rounded.
        self.conv1 = Convolution(channels, channels // 4, bias=True, norm=False)
        self.conv2 = Convolution(channels // 4, channels, bias=True, norm=False)

    def forward(self, x):
        return x * F.hardsigmoid(self.conv2(self.conv1(x.mean((2, 3), keepdim=True)).relu()))


class InvertedResidual(nn.Module):
    def __init__(self, inputs, middle, outputs, kernel, stride):
        super().__init__()
        self.expand_conv = Convolution(inputs, middle)
        self.depthwise_conv = Convolution(middle, middle, kernel, stride, groups=middle)
        self.se = SqueezeExcite(middle)
        self.linear_conv = Convolution(middle, outputs)
        self.has_residual = stride == 1 and inputs == outputs

    def forward(self, x):
        y = F.hardswish(self.expand_conv(x))
        y = self.linear_conv(self.se(F.hardswish(self.depthwise_conv(y))))
        return x + y if self.has_residual else y


class PatchEmbedding(nn.Module):
    """Images to tokens. The compressor is frozen."""

    def __init__(self, width, channels, latent_channels):
        super().__init__()
        self.compressai = compressor(channels, latent_channels).requires_grad_(False)
        self.patchReshape = nn.Sequential(
            InvertedResidual(latent_channels, 4 * latent_channels, latent_channels, 3, 1),
            InvertedResidual(latent_channels, 6 * latent_channels, width, 5, 2),
        )

    def forward(self, images):
        with torch.no_grad():
            latents = self.compressai(images / 255)
        return self.patchReshape(latents).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        query, key, value = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(query, key, value)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class FeedForward(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        first = nn.Sequential(nn.Linear(width, hidden), nn.GELU())
        self.layers = nn.Sequential(first, nn.Linear(hidden, width))

    def forward(self, x):
        return self.layers(x)


def drop_path(x, rate, training):
    if not training or rate == 0:
        return x
    kept = torch.rand(len(x), 1, 1, device=x.device) >= rate
    return x * (kept / (1 - rate)).to(x.dtype)


class Block(nn.Module):
    def __init__(self, width, heads, hidden, drop_path_rate):
        super().__init__()
        self.ln1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ln2 = nn.LayerNorm(width, eps=1e-6)
        self.ffn = FeedForward(width, hidden)
        self.drop_path_rate = drop_path_rate

    def forward(self, x):
        x = x + drop_path(self.attn(self.ln1(x)), self.drop_path_rate, self.training)
        return x + drop_path(self.ffn(self.ln2(x)), self.drop_path_rate, self.training)


class Transformer(nn.Module):
    def __init__(self, width, layers, heads, hidden, drop_path_rate):
        super().__init__()
        rates = torch.linspace(0, drop_path_rate, layers).tolist()
        self.layers = nn.Sequential(*(Block(width, heads, hidden, rate) for rate in rates))
        self.ln1 = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        return self.ln1(self.layers(x))


class CI2PViT(nn.Module):
    """The classifier, its compressor frozen.

    Args: As in `keras_ci2p.CI2PViT`; `compressor_channels` are those between the convolutions and of the latent.

    Input shape: `(batch, 3, height, width)`, float, RGB in 0..255. Output shape: `(batch, num_classes)`, logits.
    """

    def __init__(
        self,
        num_classes=10,
        hidden_dim=768,
        num_layers=12,
        num_heads=12,
        mlp_dim=3072,
        drop_path_rate=0.1,
        compressor_channels=(128, 192),
    ):
        super().__init__()
        self.backbone = nn.ModuleDict(
            {
                "to_patch_embedding": PatchEmbedding(hidden_dim, *compressor_channels),
                "transformer": Transformer(hidden_dim, num_layers, num_heads, mlp_dim, drop_path_rate),
            }
        )
        self.head = nn.ModuleDict({"fc": nn.Linear(hidden_dim, num_classes)})

    def forward(self, images):
        tokens = self.backbone["to_patch_embedding"](images)
        return self.head["fc"](self.backbone["transformer"](tokens).mean(1))
