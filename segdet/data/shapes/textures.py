"""Random textures and colours of backgrounds and shapes, in integer arithmetic."""

import numpy as np

from segdet.data.shapes.forms import COS, ONE, SIN, TURN


def _noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Return value noise, int32 ``[H, W]`` 0..255: random values every ``cell`` pixels, interpolated bilinearly."""
    knots = rng.integers(0, 256, (height // cell + 2, width // cell + 2), dtype=np.uint8).astype(np.int32)
    y, x = np.arange(height), np.arange(width)
    fy, fx = (y % cell)[:, None], x % cell
    lines = (knots[y // cell] * (cell - fy) + knots[y // cell + 1] * fy) // cell
    return (lines[:, x // cell] * (cell - fx) + lines[:, x // cell + 1] * fx) // cell


def texture_field(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return a texture without colours: uint8 ``[H, W]``, of random kind, direction and grain size."""
    kind = int(rng.integers(0, 13))  # kinds 6 to 12, more than half, are plain
    angle = int(rng.integers(0, TURN))
    cell = int(rng.choice([4, 6, 8, 12, 16, 24]))
    rough = _noise(rng, height, width, cell)
    if kind == 0:
        return ((rough * 3 + _noise(rng, height, width, 3)) >> 2).astype(np.uint8)
    if kind == 1:
        octaves = [_noise(rng, height, width, size) for size in (32, 16, 8, 4)]
        total = octaves[0] * 8 + octaves[1] * 4 + octaves[2] * 2 + octaves[3]
        return np.clip((total // 15 - 128) * 3 // 2 + 128, 0, 255).astype(np.uint8)
    y, x = np.arange(height)[:, None] * 16, np.arange(width) * 16
    u, v = (x * COS[angle] + y * SIN[angle]) // ONE, (y * COS[angle] - x * SIN[angle]) // ONE
    if kind == 2:
        low, high = int(u.min()), int(u.max())
        ramp = (u - low) * 255 // max(1, high - low)
        return ((ramp * 7 + rough) >> 3).astype(np.uint8)
    period = 16 * int(rng.integers(4, 15))
    if kind == 3:
        phase = (u + rough * period // 512) % period
        return np.clip(np.abs(phase * 2 - period) * 510 // period - 128, 0, 255).astype(np.uint8)
    if kind == 4:
        tiles = (((u // period) + (v // period)) & 1) * 200
        return (tiles + (rough * 55 >> 8)).astype(np.uint8)
    if kind == 5:
        du, dv = u % period - period // 2, v % period - period // 2
        dots = np.where(du * du + dv * dv < (period * 3 // 10) ** 2, 200, 0)
        return (dots + (rough * 55 >> 8)).astype(np.uint8)
    return (96 + (rough >> 2)).astype(np.uint8)


def random_palette(rng: np.random.Generator) -> np.ndarray:
    """Return a colour for each texture value, int32 ``[256, 3]``: a ramp between two similar random colours."""
    light, *chroma = rng.integers([40, -80, -80, -80], [216, 81, 81, 81]).tolist()
    grey = sum(chroma) // 3
    reach = int(rng.choice([10, 20, 45]))
    first = np.array([light + part - grey for part in chroma])
    other = first + rng.integers(-reach, reach + 1, 3) + int(rng.choice([-1, 1])) * reach // 2
    ends = np.clip([first, other], 8, 247)
    step = np.arange(256)[:, None]
    return ((ends[0] * (255 - step) + ends[1] * step) // 255).astype(np.int32)


def contrasting_palette(rng: np.random.Generator, counts: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Return a random palette with a mean colour that differs visibly from the background colour ``ground``.

    After six attempts, the lightness is shifted as far as necessary.

    Args:
        rng: Random number generator.
        counts: Int ``[256]``, frequencies of the texture values, which weight the mean.
        ground: Int ``[3]``, RGB of the background.
    """
    total = max(1, int(counts.sum()))
    for _ in range(6):
        palette = random_palette(rng)
        difference = counts @ palette // total - ground
        if abs(int(difference.sum())) >= 110 and int(np.abs(difference).sum()) >= 160:
            return palette
    up = int(ground.sum()) < 384
    shift = (160 - int(difference.sum())) // 3 if up else (-160 - int(difference.sum())) // 3
    return np.clip(palette + np.int32(shift), 8, 247)
