"""Draw the embedded synthetic data: cars whose make is a shape and whose paint is a colour.

No image here is a photograph. A car is a polygon in metres under a random view, light, background and
camera, so that neither the mean pixel nor one fixed template gives the answer. Every image is a pure
function of its arguments, on any machine with the same Pillow and NumPy.
"""

import colorsys
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from taskgraft.seeding import derive, generator
from taskgraft.synthetic.shapes import COLORS, SHAPES, Color, Points, Shape, box

Camera = Literal["street", "factory"]
Label = Literal["make", "paint"]
Span = tuple[float, float]

DRAWING = 2  # raise it when images change, so that folders written before are not taken for new ones
SUPERSAMPLING = 2  # polygons have no smooth edges of their own
TYRE, TRIM, CHROME = (24, 24, 26), (40, 41, 45), (196, 198, 202)


MAKES: tuple[str, ...] = tuple(SHAPES)
PAINTS: tuple[str, ...] = tuple(COLORS)


@cache
def _rounded(corners: Points, soft: float) -> np.ndarray:
    """Replace each corner by a quadratic Bézier arc of about `soft` metres; `[5 N, 2]`."""
    at = np.array(corners)
    t = np.linspace(0, 1, 5)[:, None]
    arcs = []
    for corner, before, after in zip(at, np.roll(at, 1, 0), np.roll(at, -1, 0), strict=True):
        ends = []
        for other in (before, after):
            reach = np.linalg.norm(other - corner)
            ends.append(corner + (other - corner) * min(soft / reach, 0.5))
        arcs.append((1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * corner + t**2 * ends[1])
    return np.concatenate(arcs)


class _Pen(NamedTuple):
    """Draw metres on pixels: `linear [2, 2]` and `origin [2]` are the view of this synthetic car."""

    draw: ImageDraw.ImageDraw
    linear: np.ndarray
    origin: np.ndarray
    roof: float  # how much higher than drawn this car is above its belt line, as a share

    def at(self, points: Points | np.ndarray) -> list[tuple[float, ...]]:
        """Place metres `[N, 2]` on the image, in supersampled pixels."""
        xy = np.array(points, dtype=float)
        xy[:, 1] += self.roof * np.maximum(xy[:, 1] - 1, 0)
        return [tuple(p) for p in (xy @ self.linear.T + self.origin).tolist()]

    def fill(self, points: Points | np.ndarray, color: Color) -> None:
        """Fill a polygon given in metres."""
        self.draw.polygon(self.at(points), fill=color)

    def disc(self, x: float, y: float, radius: float, color: Color) -> None:
        """Fill a circle, an ellipse where the view shortens it."""
        ((cx, cy),) = self.at(((x, y),))
        rx = radius * float(np.hypot(self.linear[0, 0], self.linear[1, 0]))
        ry = radius * float(np.hypot(self.linear[0, 1], self.linear[1, 1]))
        self.draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=color)


def _tone(color: Color, factor: float) -> Color:
    r, g, b = (min(255, int(c * factor)) for c in color)
    return r, g, b


def _any_color(rng: np.random.Generator, saturation: Span, value: Span) -> Color:
    hue, s, v = rng.random(), rng.uniform(*saturation), rng.uniform(*value)
    r, g, b = (int(255 * c) for c in colorsys.hsv_to_rgb(hue, s, v))
    return r, g, b


def _lacquer(paint: str, rng: np.random.Generator) -> Color:
    """Vary a paint as makers do: a little hue, saturation and value, not enough to become another."""
    hue, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in COLORS[paint]))
    hue, s, v = hue + rng.normal(0, 0.008), s * rng.uniform(0.88, 1.05), v * rng.uniform(0.88, 1.08)
    r, g, b = (int(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, min(s, 1), min(v, 1)))
    return r, g, b


def _street(draw: ImageDraw.ImageDraw, side: int, ground: float, rng: np.random.Generator) -> None:
    """Paint sky, houses, trees and a road, in muted colors that tell nothing about the car."""
    horizon = int(ground - side * rng.uniform(0.1, 0.25))
    top, low = _any_color(rng, (0, 0.35), (0.6, 1)), _any_color(rng, (0, 0.15), (0.7, 1))
    for y in range(0, horizon, 4):
        sky = tuple(int(a + (b - a) * y / horizon) for a, b in zip(top, low, strict=True))
        draw.rectangle((0, y, side, y + 4), sky)
    for _ in range(rng.integers(1, 5)):
        x, width, height = rng.uniform((-0.1, 0.08, 0.1), (1, 0.35, 0.5)) * side
        wall = _any_color(rng, (0, 0.3), (0.4, 0.9))
        if rng.random() < 0.3:
            draw.ellipse((x, horizon - height, x + width, horizon + 2), wall)
        else:
            draw.rectangle((x, horizon - height, x + width, horizon + 2), wall)
    draw.rectangle((0, horizon, side, side), _any_color(rng, (0, 0.15), (0.35, 0.7)))
    stripe = ground + rng.uniform(0.06, 0.2) * side
    draw.rectangle((0, stripe, side, stripe + 2), _any_color(rng, (0, 0.3), (0.8, 1)))


def _factory(draw: ImageDraw.ImageDraw, side: int, ground: float, rng: np.random.Generator) -> None:
    """Paint a spray booth: a pale panelled wall and a floor."""
    floor = int(ground - side * rng.uniform(0.02, 0.12))
    wall = _any_color(rng, (0, 0.15), (0.6, 0.95))
    draw.rectangle((0, 0, side, floor), wall)
    pitch = rng.uniform(0.06, 0.16) * side
    for x in np.arange(rng.uniform(0, pitch), side, pitch):
        draw.line((x, 0, x, floor), _tone(wall, 0.85), 2)
    draw.rectangle((0, floor, side, side), _any_color(rng, (0, 0.15), (0.3, 0.8)))


def _view(shape: Shape, side: int, camera: Camera, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Choose where the camera stands: `linear [2, 2]` from meters to pixels, and `depth [2]` in pixels."""
    # The factory camera stands close and on its side: paint fills the frame, and its images are no street's.
    near = rng.uniform(0.78, 0.9) if camera == "street" else rng.uniform(2.0, 2.6)
    # Long cars fill more of the frame, but not in proportion: they would not fit, and length would tell all.
    scale = side * near * (shape.length / 4.5) ** 0.35 / shape.length
    turn = np.deg2rad(rng.normal(0, 1.5))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    # An image's y points down; cars are drawn a little taller than they are, as toys are.
    stretch = np.array([[rng.uniform(0.92, 1.04), rng.normal(0, 0.03)], [0, -1.15]])
    flip = np.diag([rng.choice((-1.0, 1.0)), 1.0])
    depth = np.array([rng.uniform(-0.2, 0.2), -rng.uniform(0.02, 0.15)]) * scale
    return flip @ rotation @ stretch * scale, depth


def _paint_car(pen: _Pen, shape: Shape, paint: Color, depth: np.ndarray, rng: np.random.Generator) -> None:
    """Draw shadow, far side, body, glass, trim, lamps and wheels, from behind to the front."""
    body, end = _rounded(shape.body, shape.soft), shape.length
    glass: Color = _tone(_any_color(rng, (0.05, 0.4), (0.3, 0.9)), rng.uniform(0.25, 0.8))
    shadow = pen._replace(origin=pen.origin + depth / 2)
    shadow.fill(_rounded(((-0.2, -0.12), (0, 0.12), (end, 0.12), (end + 0.2, -0.12)), 0.1), (34, 34, 36))
    for share, factor in ((1.0, 0.55), (0.5, 0.6)):
        pen._replace(origin=pen.origin + depth * share).fill(body, _tone(paint, factor))
    pen.fill(body, paint)
    sill = body.copy()
    sill[:, 1] = np.minimum(sill[:, 1], 0.62)
    pen.fill(sill, _tone(paint, 0.8))
    for part in shape.painted:
        pen.fill(part, paint)
    pen.fill(shape.glass, glass)
    belt, top = min(y for _, y in shape.glass), max(y for _, y in shape.glass)
    for x in shape.pillars:
        pen.fill(box(x - 0.05, belt, x + 0.05, top + 0.02), _tone(paint, 0.9))
        pen.fill(box(x - 0.015, 0.5, x + 0.015, belt), _tone(paint, 0.65))
    for part in shape.trim:
        pen.fill(part, TRIM)
    pen.fill(box(end - 0.22, 0.68, end - 0.04, 0.82), (250, 244, 210))
    pen.fill(box(0.03, 0.72, 0.17, 0.88), (150, 20, 24))
    hub = CHROME if rng.random() < 0.7 else _tone(CHROME, 0.45)
    for x in shape.wheels:
        pen.disc(x, shape.radius, shape.radius * 1.18, _tone(paint, 0.35))
        pen.disc(x, shape.radius, shape.radius, TYRE)
        pen.disc(x, shape.radius, shape.radius * 0.55, hub)


def _expose(picture: Image.Image, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Take the photograph: blur, light from one side, cast, exposure, sensor noise; uint8 `[S, S, 3]`."""
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.7) * picture.width / 64))
    pixels = np.asarray(picture, dtype=np.float32)
    if camera == "street":
        cast, spread, exposure = (1, 1, 1), 0.05, (0.7, 1.15)
    else:  # yellowish lamps that are always on
        cast, spread, exposure = (1.06, 1.03, 0.86), 0.02, (0.8, 1.0)
    gain = np.array(cast) * (1 + rng.normal(0, spread, 3)) * rng.uniform(*exposure)
    ramp = np.linspace(-1, 1, picture.width, dtype=np.float32)
    light = 1 + rng.uniform(-0.2, 0.2) * ramp[None, :] + rng.uniform(-0.15, 0.15) * ramp[:, None]
    pixels = pixels * light[..., None] * gain.astype(np.float32) + np.float32(rng.uniform(0, 14))
    pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(1, 6))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def draw_car(make: str, paint: str, seed: int, size: int = 64, *, camera: Camera = "street") -> np.ndarray:
    """Draw one synthetic car, uint8 `[size, size, 3]`; the same arguments always give the same image.

    With one seed, another make or paint stands in the same scene and light.

    Raises:
        ValueError: `make`, `paint` or `camera` is not one of the known names.
    """
    for what, given, known in (
        ("make", make, MAKES),
        ("paint", paint, PAINTS),
        ("camera", camera, ("street", "factory")),
    ):
        if given not in known:
            raise ValueError(f"no {what} is called {given!r}; choose one of: {', '.join(known)}")
    shape, side = SHAPES[make], size * SUPERSAMPLING
    scene, view, finish, lens = (generator(seed, camera, of) for of in ("scene", "view", "finish", "lens"))
    picture = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(picture)
    ground = side * scene.uniform(0.66, 0.8)
    (_street if camera == "street" else _factory)(draw, side, ground, scene)
    linear, depth = _view(shape, side, camera, view)
    middle = np.array([side * view.uniform(0.45, 0.55), ground]) - linear @ (shape.length / 2, 0)
    pen = _Pen(draw, linear, middle, view.uniform(-0.1, 0.12))
    _paint_car(pen, shape, _lacquer(paint, finish), depth, finish)
    if scene.random() < 0.1:  # a lamp post or a pillar stands in front
        x = scene.uniform(0.1, 0.9) * side
        post = (x, 0, x + scene.uniform(0.02, 0.05) * side, side)
        draw.rectangle(post, _any_color(scene, (0, 0.6), (0.2, 0.8)))
    pixels = _expose(picture.reduce(SUPERSAMPLING), camera, lens)
    return pixels if camera == "street" else np.ascontiguousarray(np.rot90(pixels))


def write_cars(
    folder: Path,
    *,
    label: Label,
    train: int,
    val: int,
    seed: int,
    size: int = 64,
    camera: Camera = "street",
    classes: Sequence[str] = (),
) -> Path:
    """Write synthetic cars as `folder/{train,val}/CLASS/N.png`, and return `folder`.

    `train` and `val` count images per class, of all makes or paints unless `classes` names some; the attribute that
    is not the label is drawn independently. A second call with the same arguments draws only what is missing.
    `folder/.drawn.json` keeps the arguments.

    Raises:
        ValueError: `label` is neither "make" nor "paint", there is no such class, or there would be no image.
        FileExistsError: the folder holds anything but cars drawn with these very arguments.
    """
    if label not in ("make", "paint"):
        raise ValueError(f"label is {label!r}; choose make or paint")
    if train < 1 or val < 0 or size < 16:
        raise ValueError(f"got train={train}, val={val}, size={size}; needed: at least 1, 0 and 16")
    known, others = (MAKES, PAINTS) if label == "make" else (PAINTS, MAKES)
    classes = tuple(classes) or known
    if set(classes) - set(known):
        raise ValueError(f"no {label} is called {sorted(set(classes) - set(known))[0]!r}; choose of {', '.join(known)}")
    folder = Path(folder)
    told = {"synthetic": True, "drawing": DRAWING, "label": label, "train": train, "val": val}
    told["classes"] = list(classes)
    _claim(folder, told | {"seed": seed, "size": size, "camera": camera})
    for split, count in (("train", train), ("val", val)):
        for name in classes if count else ():
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = folder / split / name / f"{number:05d}.png"
                if path.exists():
                    continue
                place = derive(seed, "car", label, split, name, number)
                other = others[derive(place, "other") % len(others)]
                make, paint = (name, other) if label == "make" else (other, name)
                picture = Image.fromarray(draw_car(make, paint, place, size, camera=camera))
                aside = folder / f".{os.getpid()}.png"  # never a half-written image under its own name
                picture.save(aside, compress_level=1)
                aside.replace(path)
    return folder


def _claim(folder: Path, told: dict[str, Any]) -> None:
    """Make the folder ours, or make sure that it is already ours and drawn with the same arguments."""
    marker = folder / ".drawn.json"
    if marker.exists():
        found = json.loads(marker.read_text(encoding="utf-8"))
        differing = sorted(key for key in told if found.get(key) != told[key])
        if differing:
            was = ", ".join(f"{key}={found.get(key)!r} (asked: {told[key]!r})" for key in differing)
            raise FileExistsError(f"{folder} holds cars drawn with {was}; remove it or choose another folder")
        return
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty and was not drawn by taskgraft; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{os.getpid()}.json"
    aside.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    aside.replace(marker)
