"""What is normalized: activations of real models, in the sizes at which they are trained on a CPU."""

from typing import NamedTuple


class Case(NamedTuple):
    """One norm on one activation, features last."""

    norm: str
    model: str
    shape: tuple[int, ...]
    groups: int = 0

    @property
    def small(self) -> bool:
        """Where a call costs more than the work."""
        return self.shape == (64, 128)

    @property
    def stacked(self) -> bool:
        """Of which 24 are traced: numbers matter little there."""
        return self.small and self.norm == "layer_norm"

    @property
    def in_models(self) -> bool:
        return self.model in (
            "ViT-B, 8 images",
            "Llama 8B, 128 tokens",
            "ResNet-50 stage 3, 32 images",
            "U-Net, 32 x 32",
        )

    @property
    def scanned(self) -> bool:
        return self.model in ("ViT-B, 8 images", "Llama 8B, 1024 tokens")

    @property
    def features(self) -> int:
        return self.shape[-1]


CASES = (
    Case("layer_norm", "one small layer", (64, 128)),
    Case("rms_norm", "one small layer", (64, 128)),
    Case("batch_norm", "one small layer", (64, 128)),
    Case("layer_norm", "small MLP, batch 256", (256, 512)),
    Case("layer_norm", "ViT-B, 8 images", (1576, 768)),
    Case("layer_norm", "GPT-2, 4 x 1024 tokens", (4096, 768)),
    Case("layer_norm", "GPT-2 XL, 1024 tokens", (1024, 1600)),
    Case("rms_norm", "Llama 8B, 128 tokens", (128, 4096)),
    Case("rms_norm", "Llama 8B, 1024 tokens", (1024, 4096)),
    Case("rms_norm", "Llama 8B heads, 1024 tokens", (32768, 128)),
    Case("batch_norm", "small MLP, batch 256", (256, 1024)),
    Case("batch_norm", "ResNet-50 stage 1, 4 images", (4, 56, 56, 256)),
    Case("batch_norm", "ResNet-50 stage 2, 8 images", (8, 28, 28, 128)),
    Case("batch_norm", "ResNet-50 stage 3, 32 images", (32, 14, 14, 256)),
    Case("batch_norm", "ResNet-50 stage 4, 32 images", (32, 7, 7, 512)),
    Case("group_norm", "U-Net, 64 x 64", (2, 64, 64, 128), 32),
    Case("group_norm", "U-Net, 32 x 32", (4, 32, 32, 256), 32),
    Case("group_norm", "U-Net, 16 x 16", (4, 16, 16, 512), 32),
    Case("instance_norm", "style transfer, 128 x 128", (2, 128, 128, 32)),
    Case("instance_norm", "style transfer, 64 x 64", (4, 64, 64, 64)),
)
NORMS = tuple(dict.fromkeys(case.norm for case in CASES))
DTYPES = ("float32", "bfloat16")
