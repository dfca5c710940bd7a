"""GOS-VAE and its baselines: VQ-VAE, an autoencoder, VQ-GAN. Chao et al. 2025; see :mod:`semcast.systems.gosvae.system`."""

from __future__ import annotations

from dataclasses import replace

from semcast.errors import UnknownNameError
from semcast.systems.base import System, SystemSpec
from semcast.systems.gosvae.networks import PaperConfig, SmallConfig
from semcast.systems.gosvae.system import GosVae

Config = SmallConfig | PaperConfig

_WIDE = PaperConfig(codewords=12_000, hidden=256, residual=256, plain=True)
_RATES = {"r2": SmallConfig(r=2, depth=12), "r8": SmallConfig(r=8), "r16": SmallConfig(r=16), "r32": SmallConfig(r=32)}
_VAE: dict[str, Config] = {"small": SmallConfig(), **_RATES, "paper": PaperConfig(), "dagger": _WIDE}
# Eight 8-bit numbers for 8x8 pixels: about the bytes, once range-coded, of one codeword for 4x4.
_PLAIN = SmallConfig(r=8, codewords=256, depth=1, planes=8, learned=False)
CONFIGS: dict[str, dict[str, Config]] = {
    "gos-vae": {"small": _VAE["small"], "star": SmallConfig(), **_VAE},
    "vq-vae": _VAE,
    "autoencoder": {"small": _PLAIN, "paper": PaperConfig(r=8, codewords=256, depth=1, planes=8, learned=False, hidden=40)},
    "vq-gan": {"small": replace(SmallConfig(), patch_gan=32)},
}
TERMS: dict[str, dict[str, float]] = {"vq-gan": {"mse": 1.0, "gan": 0.1}}
CITATION = "Chao et al. 2025"


def _spec(name: str, summary: str, paper: str) -> SystemSpec:
    configs = CONFIGS[name]

    def make(preset: str, condition: str) -> System:
        """Build a preset with fresh weights."""
        if preset not in configs:
            raise UnknownNameError(f"preset of {name}", preset, configs)
        return GosVae(configs[preset], name, preset, TERMS.get(name, {"mse": 1.0}))

    return SystemSpec(name, summary, "digital", make, paper, presets=tuple(configs), trained=True, picture=True)


GOS_VAE = _spec("gos-vae", "indices of codewords that were learned by imitating the receiver's segmenter", CITATION)
VQ_VAE = _spec("vq-vae", "indices of codewords that were learned for pixels", "van den Oord et al. 2017")
AUTOENCODER = _spec("autoencoder", "a few rounded numbers per block, no codebook", CITATION)
VQ_GAN = _spec("vq-gan", "codewords that were learned beside a discriminator", "Esser et al. 2021")
