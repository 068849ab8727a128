"""What drifts off the fitted mesh comes back; what is within the slack stays."""

from __future__ import annotations

import torch
from conftest import tiny_face

from gsavatar.gaussians import neighbours
from gsavatar.seeding import FACE_PARTS, sample_mesh
from gsavatar.tether import HAIR_SLACK_M, LEVEL_SLACK_M, SKIN_SLACK_M, Tether, level
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


def test_what_stands_before_a_sheet_comes_back_to_it_along_the_view() -> None:
    generator = torch.Generator().manual_seed(0)
    sheet = torch.rand(400, 3, generator=generator) * torch.tensor([0.3, 0.2, 0.0])
    sheet[:, 2] = 0.2 * sheet[:, 0]  # a slope is no fault
    view = torch.nn.functional.normalize(torch.tensor([0.1, 0.2, -1.0]), dim=0)
    means, lost = sheet.clone(), torch.tensor([7, 150, 311])
    means[lost] += 0.02 * view
    around = neighbours(means, 4)[1]
    moved = means.clone()
    for _ in range(60):
        level(moved, around, view)
    off = (moved - sheet)[lost] @ view
    assert (off.abs() < LEVEL_SLACK_M + 0.002).all()  # of 20 mm; the slope is worth the two
    across = (moved - means) - ((moved - means) @ view)[:, None] * view
    assert across.abs().max() < 1e-6
    still = torch.ones(400, dtype=torch.bool)
    still[lost] = False
    assert (moved - sheet)[still].norm(dim=-1).max() < LEVEL_SLACK_M + 0.002


def test_a_single_mean_has_no_neighbours_to_be_level_with() -> None:
    alone = torch.tensor([[0.1, 0.2, 0.3]])
    moved = alone.clone()
    level(moved, neighbours(alone, 4)[1], torch.tensor([0.0, 0.0, -1.0]))
    assert torch.equal(moved, alone)
