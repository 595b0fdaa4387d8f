"""Synthetic cars whose make is a shape and whose paint is a color, for the demo and the examples.

No image here is a photograph. A car is a polygon in meters under a random view, light, background and camera, so that
neither the mean pixel nor one fixed template gives the answer. Every image is a pure function of its arguments, on any
machine with the same Pillow and NumPy. The makes are named after what they look like; none is a brand.
"""

from __future__ import annotations

import colorsys
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from taskgraft.results.files import write_json
from taskgraft.seeding import derive, generator

Points = tuple[tuple[float, float], ...]
Color = tuple[int, int, int]
Camera = Literal["street", "factory"]
Label = Literal["make", "paint"]

DRAWING_VERSION = 2  # raise it when images change, so that folders of an earlier version are not reused
SUPERSAMPLING = 2  # polygons have no smooth edges of their own
TIRE, TRIM, CHROME = (24, 24, 26), (40, 41, 45), (196, 198, 202)


class Shape(NamedTuple):
    """A make in meters, rear at x = 0 and ground at y = 0; `soft` is the radius of corners, `radius` that of wheels."""

    body: Points
    glass: Points
    pillars: tuple[float, ...]
    wheels: tuple[float, ...]
    radius: float
    soft: float
    trim: tuple[Points, ...] = ()
    painted: tuple[Points, ...] = ()

    @property
    def length(self) -> float:
        """The car's length."""
        return max(x for x, _ in self.body)


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    """The corners of an upright rectangle."""
    return ((x0, y0), (x0, y1), (x1, y1), (x1, y0))


# fmt: off
SHAPES: dict[str, Shape] = {
    "beetle": Shape(
        ((.1, .35), (0, .6), (.25, 1), (.9, 1.4), (1.7, 1.58), (2.4, 1.52), (2.95, 1.08), (3.5, .98),
         (3.95, .75), (4.1, .35)),
        ((.95, 1), (1.2, 1.29), (1.75, 1.45), (2.35, 1.42), (2.75, 1)), (1.75,), (.85, 3.25), .36, .5,
        (box(1.2, .33, 2.9, .42),)),
    "bus": Shape(
        ((0, .4), (0, 2.65), (7.3, 2.65), (7.5, 2.3), (7.5, .4)),
        ((.3, 1.5), (.3, 2.35), (7.3, 2.35), (7.45, 1.5)), (1.4, 2.5, 3.6, 4.7, 5.8), (1.6, 5.8), .45, .2,
        (box(6.35, .55, 6.95, 2.3),)),
    "cabrio": Shape(
        ((.05, .35), (0, .8), (.15, .98), (1.2, 1.03), (1.35, .85), (2.45, .85), (2.65, 1), (3.9, .88),
         (4.2, .68), (4.2, .35)),
        ((2.2, 1.46), (2.1, 1.42), (2.38, .98), (2.66, .98)), (), (.85, 3.4), .34, .15,
        (((.7, 1), (.85, 1.2), (1.25, 1.17), (1.38, 1)), box(1.55, .8, 1.72, 1.25))),
    "coupe": Shape(
        ((.05, .3), (0, .72), (.15, .9), (.5, .94), (1.35, 1.22), (2, 1.22), (2.7, .86), (4.1, .62),
         (4.45, .45), (4.45, .28)),
        ((.95, .92), (1.45, 1.14), (1.95, 1.14), (2.4, .88)), (), (.85, 3.6), .37, .12,
        (box(.12, .9, .26, 1.2),), (((-.2, 1.18), (-.16, 1.32), (.55, 1.26), (.55, 1.15)),)),
    "estate": Shape(
        ((.05, .35), (0, .8), (.05, 1.05), (.2, 1.5), (.4, 1.56), (2.75, 1.54), (3.35, 1.05), (4.4, .92),
         (4.68, .7), (4.7, .35)),
        ((.3, 1.07), (.4, 1.44), (2.68, 1.44), (3.15, 1.05)), (1.15, 2.05), (.95, 3.8), .33, .1,
        (box(.7, 1.6, 2.4, 1.68), box(.8, 1.54, .9, 1.62), box(2.2, 1.54, 2.3, 1.62))),
    "hatchback": Shape(
        ((.05, .35), (0, .75), (.1, 1.05), (.55, 1.5), (.8, 1.56), (2, 1.54), (2.7, 1.05), (3.3, .95),
         (3.5, .7), (3.5, .35)),
        ((.45, 1.05), (.75, 1.44), (1.95, 1.44), (2.45, 1.05)), (1.25,), (.6, 2.85), .34, .15),
    "limousine": Shape(
        ((.05, .35), (0, .75), (.1, 1), (.85, 1.05), (1.45, 1.43), (4.6, 1.45), (5.25, 1.05), (6.3, .92),
         (6.58, .7), (6.6, .35)),
        ((1.05, 1.05), (1.5, 1.36), (4.55, 1.37), (5.05, 1.05)), (1.9, 2.8, 3.7), (.95, 5.65), .34, .12),
    "microcar": Shape(
        ((.1, .32), (0, .7), (.1, 1.1), (.4, 1.5), (1.3, 1.58), (1.75, 1.45), (2.15, 1), (2.5, .85),
         (2.6, .6), (2.55, .32)),
        ((.35, 1), (.5, 1.38), (1.3, 1.45), (1.68, 1.35), (1.95, .98)), (.8,), (.45, 2.1), .28, .3),
    "offroad": Shape(
        ((.1, .55), (.1, 1.1), (.15, 1.85), (2.75, 1.85), (3, 1.3), (4.15, 1.22), (4.25, 1.1), (4.25, .55)),
        ((.3, 1.28), (.33, 1.7), (2.65, 1.7), (2.85, 1.28)), (1, 1.85), (.9, 3.4), .46, .07,
        (box(-.15, .9, .1, 1.5),)),
    "pickup": Shape(
        ((.05, .5), (0, .85), (0, 1.15), (2.1, 1.15), (2.2, 1.78), (3.1, 1.8), (3.6, 1.2), (4.9, 1.1),
         (5.15, .85), (5.2, .45)),
        ((2.35, 1.2), (2.4, 1.64), (3.05, 1.66), (3.45, 1.2)), (), (1, 4.2), .43, .07,
        (box(.1, 1.02, 2, 1.15),)),
    "saloon": Shape(
        ((.05, .35), (0, .8), (.05, 1.08), (1, 1.1), (1.5, 1.52), (2.75, 1.54), (3.3, 1.08), (4.5, 1),
         (4.6, .75), (4.6, .35)),
        ((1.12, 1.08), (1.57, 1.44), (2.7, 1.46), (3.12, 1.08)), (2.1,), (.9, 3.7), .33, .07),
    "van": Shape(
        ((.05, .4), (0, 1), (.05, 2.1), (3.2, 2.1), (3.6, 2), (4.3, 1.25), (4.75, 1.05), (4.9, .8),
         (4.9, .4)),
        ((3.1, 1.3), (3.1, 1.85), (3.55, 1.85), (4.05, 1.3)), (), (1, 4), .37, .12,
        (box(1.5, .9, 1.53, 1.9),)),
}
# fmt: on

COLORS: dict[str, Color] = {
    "black": (30, 30, 34),
    "white": (236, 236, 232),
    "silver": (160, 165, 172),
    "red": (188, 28, 34),
    "blue": (34, 72, 172),
    "green": (30, 118, 62),
    "yellow": (236, 200, 40),
    "brown": (106, 66, 40),
    "orange": (230, 112, 28),
    "purple": (108, 50, 142),
}

MAKES: tuple[str, ...] = tuple(SHAPES)
PAINTS: tuple[str, ...] = tuple(COLORS)


@cache
def _round_corners(corners: Points, radius: float) -> np.ndarray:
    """Replace each corner by a quadratic Bézier arc of about `radius` meters; `[5 N, 2]`."""
    points = np.array(corners)
    t = np.linspace(0, 1, 5)[:, None]
    arcs = []
    for corner, before, after in zip(points, np.roll(points, 1, 0), np.roll(points, -1, 0), strict=True):
        ends = []
        for other in (before, after):
            distance = np.linalg.norm(other - corner)
            ends.append(corner + (other - corner) * min(radius / distance, 0.5))
        arcs.append((1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * corner + t**2 * ends[1])
    return np.concatenate(arcs)


class _Pen(NamedTuple):
    """Draws in meters: `linear [2, 2]` and `origin [2]` map them to pixels."""

    draw: ImageDraw.ImageDraw
    linear: np.ndarray
    origin: np.ndarray
    roof: float  # by which fraction this car is higher above its belt line than its make

    def to_pixels(self, points: Points | np.ndarray) -> list[tuple[float, ...]]:
        """Map meters `[N, 2]` to supersampled pixels."""
        xy = np.array(points, dtype=float)
        xy[:, 1] += self.roof * np.maximum(xy[:, 1] - 1, 0)
        return [tuple(p) for p in (xy @ self.linear.T + self.origin).tolist()]

    def fill(self, points: Points | np.ndarray, color: Color) -> None:
        """Fill a polygon given in meters."""
        self.draw.polygon(self.to_pixels(points), fill=color)

    def disc(self, x: float, y: float, radius: float, color: Color) -> None:
        """Fill a circle, which is an ellipse in most views."""
        ((cx, cy),) = self.to_pixels(((x, y),))
        rx = radius * float(np.hypot(self.linear[0, 0], self.linear[1, 0]))
        ry = radius * float(np.hypot(self.linear[0, 1], self.linear[1, 1]))
        self.draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=color)


def _scale_color(color: Color, factor: float) -> Color:
    r, g, b = (min(255, int(c * factor)) for c in color)
    return r, g, b


def _random_color(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Color:
    hue, s, v = rng.random(), rng.uniform(*saturation), rng.uniform(*value)
    r, g, b = (int(255 * c) for c in colorsys.hsv_to_rgb(hue, s, v))
    return r, g, b


def _vary_paint(paint: str, rng: np.random.Generator) -> Color:
    """Vary a paint as makers do: a little hue, saturation and value, not enough to become another."""
    hue, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in COLORS[paint]))
    hue, s, v = hue + rng.normal(0, 0.008), s * rng.uniform(0.88, 1.05), v * rng.uniform(0.88, 1.08)
    r, g, b = (int(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, min(s, 1), min(v, 1)))
    return r, g, b


def _draw_street(draw: ImageDraw.ImageDraw, side: int, ground: float, rng: np.random.Generator) -> None:
    """Paint sky, houses, trees and a road, in muted colors that are independent of the car."""
    horizon = int(ground - side * rng.uniform(0.1, 0.25))
    top, low = _random_color(rng, (0, 0.35), (0.6, 1)), _random_color(rng, (0, 0.15), (0.7, 1))
    for y in range(0, horizon, 4):
        sky = tuple(int(a + (b - a) * y / horizon) for a, b in zip(top, low, strict=True))
        draw.rectangle((0, y, side, y + 4), sky)
    for _ in range(rng.integers(1, 5)):
        x, width, height = rng.uniform((-0.1, 0.08, 0.1), (1, 0.35, 0.5)) * side
        wall = _random_color(rng, (0, 0.3), (0.4, 0.9))
        if rng.random() < 0.3:
            draw.ellipse((x, horizon - height, x + width, horizon + 2), wall)
        else:
            draw.rectangle((x, horizon - height, x + width, horizon + 2), wall)
    draw.rectangle((0, horizon, side, side), _random_color(rng, (0, 0.15), (0.35, 0.7)))
    stripe = ground + rng.uniform(0.06, 0.2) * side
    draw.rectangle((0, stripe, side, stripe + 2), _random_color(rng, (0, 0.3), (0.8, 1)))


def _draw_factory(draw: ImageDraw.ImageDraw, side: int, ground: float, rng: np.random.Generator) -> None:
    """Paint a spray booth: a pale panelled wall and a floor."""
    floor = int(ground - side * rng.uniform(0.02, 0.12))
    wall = _random_color(rng, (0, 0.15), (0.6, 0.95))
    draw.rectangle((0, 0, side, floor), wall)
    pitch = rng.uniform(0.06, 0.16) * side
    for x in np.arange(rng.uniform(0, pitch), side, pitch):
        draw.line((x, 0, x, floor), _scale_color(wall, 0.85), 2)
    draw.rectangle((0, floor, side, side), _random_color(rng, (0, 0.15), (0.3, 0.8)))


def _sample_view(shape: Shape, side: int, camera: Camera, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
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


def _draw_car(pen: _Pen, shape: Shape, paint: Color, depth: np.ndarray, rng: np.random.Generator) -> None:
    """Draw shadow, far side, body, glass, trim, lamps and wheels, from behind to the front."""
    body, end = _round_corners(shape.body, shape.soft), shape.length
    glass: Color = _scale_color(_random_color(rng, (0.05, 0.4), (0.3, 0.9)), rng.uniform(0.25, 0.8))
    shadow = pen._replace(origin=pen.origin + depth / 2)
    shadow.fill(_round_corners(((-0.2, -0.12), (0, 0.12), (end, 0.12), (end + 0.2, -0.12)), 0.1), (34, 34, 36))
    for fraction, factor in ((1.0, 0.55), (0.5, 0.6)):
        pen._replace(origin=pen.origin + depth * fraction).fill(body, _scale_color(paint, factor))
    pen.fill(body, paint)
    sill = body.copy()
    sill[:, 1] = np.minimum(sill[:, 1], 0.62)
    pen.fill(sill, _scale_color(paint, 0.8))
    for polygon in shape.painted:
        pen.fill(polygon, paint)
    pen.fill(shape.glass, glass)
    belt, top = min(y for _, y in shape.glass), max(y for _, y in shape.glass)
    for x in shape.pillars:
        pen.fill(box(x - 0.05, belt, x + 0.05, top + 0.02), _scale_color(paint, 0.9))
        pen.fill(box(x - 0.015, 0.5, x + 0.015, belt), _scale_color(paint, 0.65))
    for polygon in shape.trim:
        pen.fill(polygon, TRIM)
    pen.fill(box(end - 0.22, 0.68, end - 0.04, 0.82), (250, 244, 210))
    pen.fill(box(0.03, 0.72, 0.17, 0.88), (150, 20, 24))
    hub = CHROME if rng.random() < 0.7 else _scale_color(CHROME, 0.45)
    for x in shape.wheels:
        pen.disc(x, shape.radius, shape.radius * 1.18, _scale_color(paint, 0.35))
        pen.disc(x, shape.radius, shape.radius, TIRE)
        pen.disc(x, shape.radius, shape.radius * 0.55, hub)


def _expose(image: Image.Image, camera: Camera, rng: np.random.Generator) -> np.ndarray:
    """Simulate a camera: blur, light from one side, color cast, exposure, sensor noise; uint8 `[S, S, 3]`."""
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.7) * image.width / 64))
    pixels = np.asarray(image, dtype=np.float32)
    if camera == "street":
        cast, spread, exposure = (1, 1, 1), 0.05, (0.7, 1.15)
    else:  # yellowish lamps that are always on
        cast, spread, exposure = (1.06, 1.03, 0.86), 0.02, (0.8, 1.0)
    gain = np.array(cast) * (1 + rng.normal(0, spread, 3)) * rng.uniform(*exposure)
    ramp = np.linspace(-1, 1, image.width, dtype=np.float32)
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
    choices = (("make", make, MAKES), ("paint", paint, PAINTS), ("camera", camera, ("street", "factory")))
    for argument, value, names in choices:
        if value not in names:
            raise ValueError(f"no {argument} is called {value!r}; choose one of: {', '.join(names)}")
    shape, side = SHAPES[make], size * SUPERSAMPLING
    scene, view, finish, lens = (generator(seed, camera, name) for name in ("scene", "view", "finish", "lens"))
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    ground = side * scene.uniform(0.66, 0.8)
    draw_background = _draw_street if camera == "street" else _draw_factory
    draw_background(draw, side, ground, scene)
    linear, depth = _sample_view(shape, side, camera, view)
    origin = np.array([side * view.uniform(0.45, 0.55), ground]) - linear @ (shape.length / 2, 0)
    pen = _Pen(draw, linear, origin, view.uniform(-0.1, 0.12))
    _draw_car(pen, shape, _vary_paint(paint, finish), depth, finish)
    if scene.random() < 0.1:  # a lamp post or a pillar stands in front
        x = scene.uniform(0.1, 0.9) * side
        post = (x, 0, x + scene.uniform(0.02, 0.05) * side, side)
        draw.rectangle(post, _random_color(scene, (0, 0.6), (0.2, 0.8)))
    pixels = _expose(image.reduce(SUPERSAMPLING), camera, lens)
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
    `folder/.drawn.json` holds the arguments.

    Raises:
        ValueError: `label` is neither "make" nor "paint", there is no such class, or there would be no image.
        FileExistsError: the folder holds anything but cars drawn with these very arguments.
    """
    if label not in ("make", "paint"):
        raise ValueError(f"label is {label!r}; choose make or paint")
    if train < 1 or val < 0 or size < 16:
        raise ValueError(f"got train={train}, val={val}, size={size}; needed: at least 1, 0 and 16")
    names, others = (MAKES, PAINTS) if label == "make" else (PAINTS, MAKES)
    classes = tuple(classes) or names
    unknown = sorted(set(classes) - set(names))
    if unknown:
        raise ValueError(f"no {label} is called {unknown[0]!r}; choose of {', '.join(names)}")
    folder = Path(folder)
    arguments = {"label": label, "train": train, "val": val, "classes": list(classes), "seed": seed, "size": size,
                 "camera": camera}  # fmt: skip
    _claim_folder(folder, {"synthetic": True, "drawing": DRAWING_VERSION, **arguments})
    for split, count in (("train", train), ("val", val)):
        for name in classes if count else ():
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = folder / split / name / f"{number:05d}.png"
                if path.exists():
                    continue
                car_seed = derive(seed, "car", label, split, name, number)
                other = others[derive(car_seed, "other") % len(others)]
                make, paint = (name, other) if label == "make" else (other, name)
                temporary = folder / f".{os.getpid()}.png"  # never a half-written image under its own name
                Image.fromarray(draw_car(make, paint, car_seed, size, camera=camera)).save(temporary, compress_level=1)
                temporary.replace(path)
    return folder


def _claim_folder(folder: Path, arguments: dict[str, Any]) -> None:
    """Mark a new or empty folder as drawn with these arguments, or check that it already is."""
    marker = folder / ".drawn.json"
    if marker.exists():
        existing = json.loads(marker.read_text(encoding="utf-8"))
        differing = sorted(key for key in arguments if existing.get(key) != arguments[key])
        if differing:
            text = ", ".join(f"{key}={existing.get(key)!r} (requested: {arguments[key]!r})" for key in differing)
            raise FileExistsError(f"{folder} holds cars drawn with {text}; remove it or choose another folder")
        return
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty and was not drawn by taskgraft; choose another folder")
    write_json(marker, arguments)
