"""Query networks with aggregators that learn: trained against a gallery, exported, and run without torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from town_folder import make_folder

from asymvpr_core.config import ExportSettings, GallerySettings, TrainSettings
from asymvpr_core.datasets.source import open_source
from asymvpr_core.deploy.export import export_model
from asymvpr_core.deploy.runtime import QueryModel
from asymvpr_core.gallery.build import build_gallery
from asymvpr_core.gallery.store import Gallery
from asymvpr_core.manifest import read_manifest
from asymvpr_core.networks.query import QueryNetwork
from asymvpr_core.networks.registry import network_spec
from asymvpr_core.training.run import train

pytestmark = pytest.mark.slow

SALAD, BOQ = "efficientnet_lite0@16_salad_544_160px", "efficientnet_lite0@16_boq_128px"


@pytest.fixture(scope="module")
def galleries(tmp_path_factory):
    """Two galleries of the same pictures: 544-D, which is SALAD's own dimension here, and 8-D."""
    root = tmp_path_factory.mktemp("aggregators")
    source = open_source(make_folder(root / "images", places=6, looks=2))
    own = GallerySettings(projection="random", projection_dim=544, threads=1)
    return build_gallery(source, own, root / "own"), build_gallery(source, GallerySettings(projection_dim=8, threads=1), root / "small")


def settings(network: str, **changes: object) -> TrainSettings:
    options = {"query_network": network, "epochs": 1, "batch_size": 6, "workers": 0, "threads": 1, "gamma": 1.0, "alignment_copies": 0}
    return TrainSettings(**(options | changes))


def described_by_torch(run, image):
    """What the trained network itself says of one picture."""
    manifest = read_manifest(run, "run")
    network = QueryNetwork(
        network_spec(manifest.details["query_network"]), manifest.gallery_network.dimension, gated=manifest.details["gated"]
    )
    network.load(run / "weights.safetensors")
    with torch.inference_mode():
        return network.eval()(torch.from_numpy(network.spec.preprocess(image))[None]).numpy()[0]


def test_an_aggregator_of_the_gallerys_dimension_needs_no_linear_layer(galleries, tmp_path):
    gallery = galleries[0]
    run = train(gallery, settings(SALAD, init="random"), tmp_path / "run")
    model = QueryModel.open(export_model(run, tmp_path / "model", ExportSettings(parity_images=2)))
    image = Gallery.open(gallery).read_image(3)
    descriptor = model.encode(image)
    np.testing.assert_allclose(descriptor, described_by_torch(run, image), atol=2e-5)
    # SALAD's own shape: the token part and each cluster have norm 1/sqrt(1 + m).
    np.testing.assert_allclose(np.linalg.norm(descriptor[:32]), 17**-0.5, rtol=1e-4)


def test_an_aggregator_of_the_gallerys_dimension_starts_as_the_aligned_network_and_learns_beside_it(galleries, tmp_path):
    gallery = galleries[0]
    start = train(gallery, settings(SALAD, epochs=0), tmp_path / "start")
    gem = train(gallery, settings("efficientnet_lite0@16_gem_160px", epochs=0), tmp_path / "gem")
    opened = Gallery.open(gallery)
    image = opened.read_image(4)
    np.testing.assert_allclose(described_by_torch(start, image), described_by_torch(gem, image), atol=1e-5)
    assert described_by_torch(start, image) @ np.asarray(opened.descriptors[4]) > 0.5
    run = train(gallery, settings(SALAD, epochs=3, validation_share=0.0, learning_rate=1e-2), tmp_path / "run")
    weights, first = (load_file(path / "weights.safetensors") for path in (run, start))
    assert abs(float(weights["gate"])) > 1e-3 and float(first["gate"]) == 0
    learnt = [name for name in weights if name.startswith("encoder.aggregator") and not torch.equal(weights[name], first[name])]
    assert any("score" in name for name in learnt)
    model = QueryModel.open(export_model(run, tmp_path / "model", ExportSettings(parity_images=2)))
    np.testing.assert_allclose(model.encode(image), described_by_torch(run, image), atol=2e-5)


@pytest.mark.parametrize("network", [SALAD, BOQ])
def test_a_linear_layer_maps_to_another_dimension_and_starts_aligned(galleries, network, tmp_path):
    gallery = galleries[1]
    run = train(gallery, settings(network, epochs=0), tmp_path / "run")
    assert read_manifest(run, "run").details["alignment"]["held_out_cosine"] > -1
    model = QueryModel.open(export_model(run, tmp_path / "model", ExportSettings(parity_images=2)))
    opened = Gallery.open(gallery)
    images = [opened.read_image(i) for i in range(len(opened))]
    described = np.stack([model.encode(image) for image in images])
    assert described.shape == (12, 8)
    np.testing.assert_allclose(described[4], described_by_torch(run, images[4]), atol=2e-5)
    # The ridge saw these pictures: their own place is nearer than the average one.
    cosines = described @ np.asarray(opened.descriptors).T
    assert np.diag(cosines).mean() > cosines.mean() + 0.2
