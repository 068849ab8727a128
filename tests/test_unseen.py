"""What no frame shows takes the colour of what is seen beside it; what is seen keeps its own."""

from __future__ import annotations

import torch

from gsavatar.avatar import Avatar, AvatarBranch
from gsavatar.clip import Clip
from gsavatar.gaussians import from_points
from gsavatar.motion import seeded
from gsavatar.ops.evaluate_sh import SH_0
from gsavatar.surround import Look
from gsavatar.types import Branch, FacePart
from gsavatar.unseen import Unseen, seen_share

HAIR, SKIN, WRONG = (torch.tensor(c) for c in ((0.2, 0.15, 0.1), (0.8, 0.6, 0.5), (0.1, 0.2, 0.9)))
SHEET_Z, BACK_Z = 0.05, -0.08


def sheet(half_m: float, z: float, count: int) -> torch.Tensor:
    """A square grid of points facing the camera, [count^2, 3]."""
    line = torch.linspace(-half_m, half_m, count)
    x, y = torch.meshgrid(line, line, indexing="xy")
    return torch.stack((x, y, torch.full_like(x, z)), dim=-1).reshape(-1, 3)


def avatar_of(points: torch.Tensor, colors: torch.Tensor, names: tuple[str, ...]) -> Avatar:
    """Opaque balls of 6 mm that nothing moves, as the only branch."""
    raw = from_points(points, colors, torch.full((len(points),), 0.006), sh_degree=0)
    raw.raw_opacities.fill_(5.0)
    still = seeded(torch.zeros(len(names), len(points), 3))
    return Avatar(names, (AvatarBranch(Branch.FACE, raw, still, torch.ones(len(points))),))


def colors_of(avatar: Avatar) -> torch.Tensor:
    """[N, 3]."""
    return 0.5 + SH_0 * avatar.branches[0].raw.sh[:, 0]


def head(names: tuple[str, ...]) -> tuple[Avatar, Look, dict[str, slice]]:
    """A front that hides the back of a head; both reach as far as a rim that sticks out."""
    front, back = sheet(0.06, SHEET_Z, 25), sheet(0.03, BACK_Z, 7)
    rim = back[:7] + torch.tensor([0.0, 0.15, 0.0])
    points = torch.cat((front, back, rim))
    colors = torch.where(front[:, 1:2] > 0, HAIR, SKIN)
    avatar = avatar_of(points, torch.cat((colors, WRONG.expand(len(back) + len(rim), 3))), names)
    scalp = points[:, 1] > 0
    seen = torch.arange(len(points)) < len(front)
    part = torch.where(scalp, int(FacePart.SCALP), int(FacePart.SKIN)).to(torch.uint8)
    shown = torch.where(seen[:, None], torch.where(scalp[:, None], HAIR, SKIN), float("nan"))
    look = Look(points, part, shown, seen, seen)
    a, b = len(front), len(front) + len(back)
    return avatar, look, {"front": slice(0, a), "back": slice(a, b), "rim": slice(b, None)}


def test_shares_are_of_what_reaches_the_picture(tiny_clip: Clip) -> None:
    avatar, _, parts = head(tiny_clip.track.face.names)
    share = seen_share(avatar, tiny_clip)
    assert (share[parts["back"]] < 0.02).all()
    alone = avatar_of(torch.tensor([[0.0, 0.0, 0.05]]), SKIN[None], tiny_clip.track.face.names)
    assert 0.9 < float(seen_share(alone, tiny_clip)) < 1.05
    assert (share[parts["rim"]] > 0.3).all()  # neighbours overlap, nothing is in front


def test_the_hidden_back_is_hair_above_and_skin_below(tiny_clip: Clip) -> None:
    avatar, look, parts = head(tiny_clip.track.face.names)
    before = colors_of(avatar).clone()
    count = Unseen(tiny_clip, look).paint(avatar)
    after, back = colors_of(avatar), parts["back"]
    above = look.points[back][:, 1] > 0
    torch.testing.assert_close(after[back][above], HAIR.expand(int(above.sum()), 3))
    torch.testing.assert_close(after[back][~above], SKIN.expand(int((~above).sum()), 3))
    assert count == back.stop - back.start
    assert torch.equal(after[parts["front"]], before[parts["front"]])


def test_what_shows_beside_the_head_keeps_its_colour(tiny_clip: Clip) -> None:
    avatar, look, parts = head(tiny_clip.track.face.names)
    Unseen(tiny_clip, look).paint(avatar)
    rim = colors_of(avatar)[parts["rim"]]
    torch.testing.assert_close(rim, WRONG.expand(len(rim), 3))


def test_without_a_known_colour_nothing_changes(tiny_clip: Clip) -> None:
    avatar, look, _ = head(tiny_clip.track.face.names)
    before = colors_of(avatar).clone()
    blind = Look(look.points, look.part, look.colors, torch.zeros_like(look.known), look.faced)
    Unseen(tiny_clip, blind).paint(avatar)
    assert torch.equal(colors_of(avatar), before)
