"""Convolutional and timm backbones: images to `(features (B, C, h, w), token (B, C))`.

Every backbone says its `channels`, and in `stages` its parts from the first to the last, so that
training can leave the early ones as they are. The token is the global average of the features,
which feeds SALAD's token branch where there is no CLS token.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from asymvpr_core.errors import NetworkError
from asymvpr_core.networks.shapes_only import shapes_only
from asymvpr_core.networks.spec import Conversion, renamed

_CLASSIFIERS = ("classifier", "classifier_dist", "fc", "head", "head_dist")
_WHOLE = ("model", "body")
_STEM = ("stem", "conv_stem", "bn1", "act1", "patch_embed", "conv1", "maxpool")


def with_average_token(features: Tensor) -> tuple[Tensor, Tensor]:
    """The features and their global average."""
    return features, features.mean(dim=(-2, -1))


class TimmBackbone(nn.Module):
    """The feature map of one stage of a timm model.

    Args:
        model: a timm model name that supports `features_only`.
        height, width: input size [px]; transformers are built for it.
        stride: stride of the wanted stage, for example 16; None: the last stage.

    Raises:
        NetworkError: timm does not know the model, it has no feature maps, or no stage of that stride.
    """

    def __init__(self, model: str, height: int, width: int, stride: int | None = None):
        super().__init__()
        stage = find_stage(model, height, width, stride)
        self.net = timm.create_model(model, pretrained=False, features_only=True, out_indices=(stage.index,), **stage.options)
        self.model, self.channels = model, stage.channels

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.net(images)[0]
        if features.shape[1] != self.channels:  # Swin and its kin put the channels last
            features = features.permute(0, 3, 1, 2)
        return with_average_token(features)

    @property
    def stages(self) -> list[nn.Module]:
        """The parts after the stem, in order."""
        return _parts(self.net)[1]

    @property
    def stem(self) -> list[nn.Module]:
        """What comes before the first stage."""
        return _parts(self.net)[0]

    def names_of(self, name: str) -> str | None:
        """The name in this module of a tensor `name` of timm's whole model; None where the stage does not need it.

        timm's feature extractors join a container and its element by an underscore ("stages.0" becomes
        "stages_0"), or put the whole model below "model" or "body".
        """
        own = {child for child, _ in self.net.named_children()}
        if len(own) == 1 and own <= set(_WHOLE):
            return f"net.{own.pop()}.{name}"
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            if "_".join(parts[:length]) in own:
                return ".".join(["net", "_".join(parts[:length]), *parts[length:]])
        return f"net.{name}" if len(parts) == 1 else None  # a parameter of the model itself


@dataclass(frozen=True)
class Stage:
    """One stage of a timm model at one input size: its index for timm's `out_indices`, its feature map, and timm's options to build it."""

    index: int
    stride: int
    channels: int
    height: int
    width: int
    options: dict[str, Any]


@functools.cache
def find_stage(model: str, height: int, width: int, stride: int | None = None) -> Stage:
    """The last stage of a timm model, or the last one of the given stride, at an input of height x width px.

    Raises:
        NetworkError: timm does not know the model, it has no feature maps, or no stage of that stride.
    """
    if not timm.is_model(model):
        raise NetworkError(f"timm {timm.__version__} has no model '{model}'", remedy="see timm.list_models(), or update timm")
    stages = _stages(model, height, width)
    if stride is None:
        return stages[-1]
    if stride not in (stage.stride for stage in stages):
        known = ", ".join(str(known) for known in sorted({stage.stride for stage in stages}))
        raise NetworkError(f"{model} has no stage of stride {stride}", expected=f"one of {known}")
    return [stage for stage in stages if stage.stride == stride][-1]


@functools.cache
def _stages(model: str, height: int, width: int) -> list[Stage]:
    """All stages of a timm model; it runs once on torch's meta device, which computes shapes only."""
    options: dict[str, Any] = {}
    try:
        with shapes_only():
            image = torch.zeros(1, 3, height, width)
            net = timm.create_model(model, pretrained=False, features_only=True).eval()
            try:
                maps = net(image)
            except AssertionError:  # a transformer whose position embeddings belong to one input size
                options = {"img_size": (height, width)}
                net = timm.create_model(model, pretrained=False, features_only=True, **options).eval()
                maps = net(image)
    except (RuntimeError, AttributeError, TypeError, KeyError, IndexError, ValueError, AssertionError) as error:
        raise NetworkError(
            f"timm's {model} gives no feature maps at {width} x {height} px: {str(error) or type(error).__name__}",
            remedy="choose another backbone, or an input size that it takes",
        ) from error
    info = net.feature_info
    stages = []
    # A plain vision transformer offers its last three blocks only: the place in the list is not the index.
    for index, stride, channels, features in zip(info.out_indices, info.reduction(), info.channels(), maps, strict=True):
        h, w = features.shape[2:] if features.shape[1] == channels else features.shape[1:3]  # the latter: channels last
        stages.append(Stage(int(index), int(stride), int(channels), h, w, options))
    return stages


@functools.cache
def _names_of_whole(model: str) -> frozenset[str]:
    """All tensor names of timm's model with its classifier."""
    with shapes_only():
        return frozenset(timm.create_model(model, pretrained=False).state_dict())


def _parts(net: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """(stem, stages): the children in order, with the elements of a container of blocks one by one."""
    stem: list[nn.Module] = []
    stages: list[nn.Module] = []
    for name, child in net.named_children():
        if name in _WHOLE:
            return _parts(child)
        if name.startswith(_STEM):
            stem.append(child)
        elif name in ("blocks", "stages", "layers"):
            stages += list(child.children())
        elif any(True for _ in child.parameters()):
            stages.append(child)
    return stem, stages


class EfficientNetLite(nn.Module):
    """timm's EfficientNet-Lite up to its final 1280-channel convolution, which has seen the most of ImageNet."""

    def __init__(self, model: str):
        super().__init__()
        self.model = model
        self.net = timm.create_model(model, pretrained=False, num_classes=0)
        self.channels = int(self.net.num_features)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return with_average_token(self.net.forward_features(images))

    @property
    def stages(self) -> list[nn.Module]:
        """The block stages; the convolution after them counts as one more."""
        return [*self.net.blocks.children(), nn.ModuleList([self.net.conv_head, self.net.bn2])]

    @property
    def stem(self) -> list[nn.Module]:
        """What comes before the first stage."""
        return [self.net.conv_stem, self.net.bn1]

    def names_of(self, name: str) -> str | None:
        """The name in this module of a tensor `name` of timm's whole model; None for the classifier."""
        return None if name.startswith("classifier.") else f"net.{name}"


class ResNetTrunk(nn.Module):
    """torchvision's ResNet without pooling and classifier, as the place-recognition releases cut it.

    Args:
        name: "resnet18", "resnet50", "resnet101" or "resnet152".
        attribute: how the release calls what is inside: "" numbers torchvision's children from 0
            (CosPlace, EigenPlaces), "net" does so below `net` (BoQ), "model" keeps torchvision's names (MixVPR).
        last: number of the last residual stage, 3 or 4; the releases of BoQ and MixVPR drop the fourth.
    """

    def __init__(self, name: str, attribute: str, last: int = 4):
        super().__init__()
        whole = torchvision.models.get_model(name, weights=None)
        children = list(whole.named_children())[: 4 + last]  # convolution, normalisation, activation, pooling, stages
        self.channels = 64 * 2 ** (last - 1) * children[-1][1][-1].expansion
        self._attribute = attribute
        if attribute == "model":
            self.model = nn.Sequential()
            for child, module in children:
                self.model.add_module(child, module)
        elif attribute == "net":
            self.net = nn.Sequential(*(module for _, module in children))
        else:
            for number, (_, module) in enumerate(children):
                self.add_module(str(number), module)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = images
        for part in self._sequence():
            features = part(features)
        return with_average_token(features)

    def _sequence(self) -> list[nn.Module]:
        return list((getattr(self, self._attribute) if self._attribute else self).children())

    @property
    def stages(self) -> list[nn.Module]:
        """The residual stages."""
        return self._sequence()[4:]

    @property
    def stem(self) -> list[nn.Module]:
        """The convolution and normalisation before the stages."""
        return self._sequence()[:4]


def timm_checkpoint(state: Mapping[str, Tensor], network: nn.Module) -> Conversion:
    """Fit timm's ImageNet file to the backbone of a `DescriptorNetwork`; a file of the whole network passes as it is.

    What the chosen stage does not need, the classifier above all, is named as ignored. A name that
    timm's model does not have at all passes as "backbone.<name>", and strict loading then reports it.
    """
    if any(name.startswith("aggregator.") for name in state):
        return dict(state), {}
    backbone = network.get_submodule("backbone")
    own = backbone.state_dict().keys()
    known = _names_of_whole(backbone.model)  # type: ignore[arg-type]
    ignored: dict[str, str] = {}

    def new_name(name: str) -> str:
        inner = backbone.names_of(name)  # type: ignore[operator]
        return f"backbone.{inner if inner in own else name}"

    for name in state:
        if backbone.names_of(name) in own:  # type: ignore[operator]
            continue
        if name.split(".")[0] in _CLASSIFIERS:
            ignored[name] = "the ImageNet classifier"
        elif name in known:
            ignored[name] = "not needed for the features of the chosen stage"
    return renamed({name: tensor for name, tensor in state.items() if name not in ignored}, new_name), ignored
