"""What drifts off the fitted mesh comes back; what is within the slack stays."""

from __future__ import annotations

import torch
from conftest import tiny_face

from gsavatar.seeding import FACE_PARTS, sample_mesh
from gsavatar.tether import HAIR_SLACK_M, SKIN_SLACK_M, Tether
from gsavatar.types import FacePart, FittedFace


def skin_of(face: FittedFace) -> torch.Tensor:
    on_skin = (face.part == int(FacePart.SKIN)) & (face.vertices[:, 1] < 0.02)
    return face.vertices[on_skin & (face.vertices[:, 1] > -0.03)]


def test_skin_comes_back_to_its_slack_and_hair_has_more_of_it() -> None:
    face = tiny_face()
    tether, start = Tether(face), skin_of(face)
    moved_by_a_shape, hair = torch.ones(1, len(start), 3), torch.zeros(1, len(start), 3)
    forward = torch.tensor([0.0, 0.0, 1.0])
    surface = sample_mesh(face, FACE_PARTS, 20_000, torch.Generator().manual_seed(3)).means
    for shapes, slack in ((moved_by_a_shape, SKIN_SLACK_M), (hair, HAIR_SLACK_M)):
        near = start + 0.5 * slack * forward
        kept = near.clone()
        tether.pull(kept, shapes)
        assert torch.equal(kept, near)
        far = start + (slack + 0.02) * forward
        before = torch.cdist(far, surface).amin(1)
        assert (before > slack + 0.01).any()
        for _ in range(60):
            tether.pull(far, shapes)
        assert (torch.cdist(far, surface).amin(1) < slack + 0.001).all()


def test_nothing_jumps_where_a_mean_lies_on_the_surface() -> None:
    face = tiny_face()
    means = skin_of(face)
    tether = Tether(face)
    on_it = means.clone()
    tether.pull(on_it, torch.ones(1, len(means), 3))
    assert torch.equal(on_it, means)
