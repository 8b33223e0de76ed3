"""Gallery networks by name: the published place-recognition networks, and the offline EfficientNet-Lite.

Sources: SALAD (Izquierdo & Civera, CVPR 2024), BoQ (Ali-bey et al., CVPR 2024), MegaLoc (Berton &
Masone, CVPR 2025 workshops), CosPlace (Berton et al., CVPR 2022), EigenPlaces (Berton et al., ICCV
2023), MixVPR (Ali-bey et al., WACV 2023). Modules have the names of the released files, so that
these load without a mapping; the exceptions are the converters below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from asymvpr_core.networks.aggregators import SALAD, BoQ, CosPlace, MegaLocAggregator, MixVPR
from asymvpr_core.networks.backbones import ResNetTrunk
from asymvpr_core.networks.descriptor_network import DescriptorNetwork
from asymvpr_core.networks.dinov2 import DinoV2
from asymvpr_core.networks.query_networks import lite_gem
from asymvpr_core.networks.spec import IMAGENET_MEAN, IMAGENET_STD, Conversion, NetworkSpec, WeightsSource, renamed
from asymvpr_core.preprocess import Preprocess

_SALAD = "https://github.com/serizba/salad/releases/download/v1.0.0"
_BOQ = "https://github.com/amaralibey/Bag-of-Queries/releases/download/v1.0"
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
_COSPLACE = "https://github.com/gmberton/CosPlace/releases/download/v1.0"
_EIGENPLACES = "https://github.com/gmberton/EigenPlaces/releases/download/v1.0"

COSPLACE_DIMENSIONS = {
    "ResNet18": (32, 64, 128, 256, 512), "ResNet50": (32, 64, 128, 256, 512, 1024, 2048),
    "ResNet101": (32, 64, 128, 256, 512, 1024, 2048), "ResNet152": (32, 64, 128, 256, 512, 1024, 2048),
}  # fmt: skip
EIGENPLACES_DIMENSIONS = {
    "ResNet18": (256, 512), "ResNet50": (128, 256, 512, 1024, 2048), "ResNet101": (128, 256, 512, 1024, 2048),
}  # fmt: skip
# dimension: (rows, Google Drive id of the release)
MIXVPR_RELEASES = {
    128: (2, "1DQnefjk1hVICOEYPwE4-CZAZOvi1NSJz"),
    512: (2, "1khiTUNzZhfV2UUupZoIsPIbsMRBYVDqj"),
    4096: (4, "1vuz3PvnR7vxnDDLQrdHJaOA04SQrtk5L"),
}


class WrappedDinoV2(nn.Module):
    """DINOv2 below the attribute name that a release gives it: "model" (SALAD) or "dino" (BoQ)."""

    def __init__(self, attribute: str, final_norm: bool):
        super().__init__()
        self.add_module(attribute, DinoV2("base", final_norm=final_norm))
        self._attribute = attribute

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self._inside(images)

    @property
    def stages(self) -> list[nn.Module]:
        """DINOv2's."""
        return self._inside.stages

    @property
    def stem(self) -> list[nn.Module]:
        """DINOv2's."""
        return self._inside.stem

    @property
    def _inside(self) -> DinoV2:
        return getattr(self, self._attribute)


def gallery_networks() -> list[NetworkSpec]:
    """All gallery networks, the offline one first."""
    specs = [lite_gem("efficientnet_lite2_gem", "gallery", "efficientnet_lite2", 260)]
    specs += [
        _salad("dinov2_salad", 64, 128, 256, f"{_SALAD}/dino_salad.ckpt", "dino_salad.ckpt"),
        _salad("dinov2_salad_2112", 32, 64, 64, f"{_DRIVE}1g0T5kCHfV6T-V1GWA1BlVGZb2KWzGIty", "dino_salad_2048_64.ckpt"),
        _salad("dinov2_salad_544", 16, 32, 32, f"{_DRIVE}18SljgYj0mErBvuMoVYSJpI9BIQ7aDWDB", "dino_salad_512_32.ckpt"),
        NetworkSpec(
            "dinov2_boq", "gallery", "DINOv2 ViT-B/14 without its final norm; BoQ",
            lambda: DescriptorNetwork(WrappedDinoV2("dino", final_norm=False), BoQ(768)),
            12288, _published(322, "bicubic", "float32"), WeightsSource("MIT", address=f"{_BOQ}/dinov2_12288.pth"),
        ),
        NetworkSpec(
            "resnet50_boq", "gallery", "ResNet-50 to its third stage; BoQ",
            lambda: DescriptorNetwork(ResNetTrunk("resnet50", "net", last=3), BoQ(1024, 512, 64, 2, 32)),
            16384, _published(384, "bicubic", "float32"), WeightsSource("MIT", address=f"{_BOQ}/resnet50_16384.pth"), boq_resnet_names,
        ),
        NetworkSpec(
            "megaloc", "gallery", "DINOv2 ViT-B/14; SALAD with 256-D clusters and a linear layer",
            lambda: DescriptorNetwork(DinoV2("base", mask_token=False), MegaLocAggregator(768)),
            8448, _published(322, "bilinear", "float32"),
            WeightsSource(
                "MIT", address="https://huggingface.co/gberton/MegaLoc/resolve/main/model.safetensors", file_name="megaloc.safetensors"
            ),
            megaloc_names,
        ),
    ]  # fmt: skip
    specs += [_mixvpr(dimension, *release) for dimension, release in MIXVPR_RELEASES.items()]
    specs += [_cosplace("cosplace", _COSPLACE, name, d) for name, dimensions in COSPLACE_DIMENSIONS.items() for d in dimensions]
    specs += [_cosplace("eigenplaces", _EIGENPLACES, name, d) for name, dimensions in EIGENPLACES_DIMENSIONS.items() for d in dimensions]
    return specs


def _published(size: int, resample: str, resize_dtype: str) -> Preprocess:
    """The published transform of a network that squeezes every image to a square."""
    return Preprocess.model_validate(
        {"height": size, "width": size, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "resample": resample, "resize_dtype": resize_dtype}
    )


def _salad(name: str, clusters: int, cluster_dim: int, token_dim: int, address: str, file_name: str) -> NetworkSpec:
    return NetworkSpec(
        name, "gallery", f"DINOv2 ViT-B/14; SALAD with {clusters} clusters of {cluster_dim} and a token of {token_dim}",
        lambda: DescriptorNetwork(WrappedDinoV2("model", final_norm=True), SALAD(768, clusters, cluster_dim, token_dim)),
        clusters * cluster_dim + token_dim, _published(322, "bilinear", "uint8"),
        WeightsSource("GPL-3.0", address=address, file_name=file_name),
    )  # fmt: skip


def _mixvpr(dimension: int, rows: int, drive_id: str) -> NetworkSpec:
    channels = dimension // rows
    return NetworkSpec(
        f"mixvpr_{dimension}", "gallery", f"ResNet-50 to its third stage; MixVPR with {channels} channels and {rows} rows",
        lambda: DescriptorNetwork(ResNetTrunk("resnet50", "model", last=3), MixVPR(1024, 20, 20, channels, 4, 1, rows)),
        dimension, _published(320, "bilinear", "uint8"),
        WeightsSource(
            "not stated", address=f"{_DRIVE}{drive_id}", file_name=f"resnet50_MixVPR_{dimension}_channels({channels})_rows({rows}).ckpt"
        ),
    )  # fmt: skip


def _cosplace(method: str, address: str, resnet: str, dimension: int) -> NetworkSpec:
    def build() -> nn.Module:
        trunk = ResNetTrunk(resnet.lower(), "")
        network = CosPlaceNetwork(trunk, CosPlace(trunk.channels, dimension))
        return network

    return NetworkSpec(
        f"{method}_{resnet.lower()}_{dimension}", "gallery", f"{resnet}; GeM and a linear layer",
        build, dimension,
        # Evaluated by its authors on images as they are; 512 x 512 is the size of the pictures that it was trained on.
        Preprocess(height=512, width=512, mean=IMAGENET_MEAN, std=IMAGENET_STD, fit="native"),
        WeightsSource("MIT", address=f"{address}/{resnet}_{dimension}_{method}.pth"),
    )  # fmt: skip


class CosPlaceNetwork(nn.Module):
    """A network of the CosPlace and EigenPlaces releases, which call the aggregator `aggregation`."""

    def __init__(self, backbone: ResNetTrunk, aggregation: CosPlace):
        super().__init__()
        self.backbone = backbone
        self.aggregation = aggregation

    def forward(self, images: Tensor) -> Tensor:
        """Describe `(B, 3, H, W)` images: `(B, D)`, L2-normalised."""
        features, _ = self.backbone(images)
        return self.aggregation(features)


def boq_resnet_names(state: Mapping[str, Tensor], module: nn.Module) -> Conversion:
    """The names `backbone.net.*` for a file that has `backbone.frozen_layers.*` and `backbone.unfrozen_layers.*`.

    The two lists are the trunk's seven parts cut in two; the last one, number 6, is always among the trained ones.
    """
    trained = [int(m[1]) for name in state if (m := re.match(r"backbone\.unfrozen_layers\.(\d+)\.", name))]
    frozen_parts = 6 - max(trained, default=6)

    def new_name(name: str) -> str:
        match = re.match(r"backbone\.(frozen|unfrozen)_layers\.(\d+)\.(.+)", name)
        if match is None:
            return name
        return f"backbone.net.{int(match[2]) + (frozen_parts if match[1] == 'unfrozen' else 0)}.{match[3]}"

    return renamed(state, new_name), {}


def megaloc_names(state: Mapping[str, Tensor], module: nn.Module) -> Conversion:
    """The names of the safetensors release for the older one, which has DINOv2 below `backbone.model` and its mask token."""
    ignored = {name: "used in DINOv2's own training only" for name in state if re.fullmatch(r"backbone\.(model\.)?mask_token", name)}
    used = {name: tensor for name, tensor in state.items() if name not in ignored}
    return renamed(used, lambda name: re.sub(r"^backbone\.model\.", "backbone.", name)), ignored
