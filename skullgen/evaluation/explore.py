"""Maps of real and generated pairs (figure 3), ways between two in latent space (figure 4)."""

import collections
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int
from ml_collections import ConfigDict
from skimage.measure import block_reduce

from skullgen.core import jobs
from skullgen.core.errors import UserError, in_range
from skullgen.data import store
from skullgen.generation import generate
from skullgen.generation.postprocess import Rules
from skullgen.models import steps
from skullgen.training.methods import Trained

COMPONENTS = 50  # of the features, at most, are what t-SNE and UMAP begin from
Latent, Steps = Float[np.ndarray, " Z"], Float[np.ndarray, " T"]
Way, Ends = Float64[np.ndarray, "T Z"], Float32[np.ndarray, "2 Z"]
Ways = Bool[np.ndarray, "2 T D D D 2"]  # linear, spherical
Features = Float32[np.ndarray, "n F"]


def check(settings: ConfigDict) -> None:
    """UserError for what the stage `explore` would find wrong with `config.explore`."""
    for field in ("pairs", "steps"):
        in_range(f"explore.{field}", settings[field], 2)
    in_range("explore.perplexity", settings.perplexity, 1)
    if settings.umap and importlib.util.find_spec("umap") is None:
        raise UserError("explore.umap is True: pip install 'skullgen[umap]' first")


class Group(NamedTuple):
    """Pairs of a map: their group's name, and a name for each, as of `pick`."""

    name: str
    bits: store.Packed
    cases: list[str]


def skulls_first(
    opened: store.Store, rows: store.Rows, count: int, seed: int
) -> Int[np.ndarray, " k"]:
    """At most `count` of some rows of a store, at random, one a skull first."""
    rows = np.random.default_rng(seed).permutation(rows)
    turns, counts = [], collections.Counter()
    for number in opened.column("skull")[rows].tolist():
        turns.append(counts[number])
        counts[number] += 1
    return rows[np.argsort(turns, kind="stable")][:count]


def pick(
    opened: store.Store, splits: tuple[str, ...], count: int, seed: int
) -> tuple[store.Packed, list[str]]:
    """At most `count` pairs of a store (splits: () for all), one a skull first, and their names."""
    opened.require_whole()
    skull, kind = opened.column("skull"), opened.column("kind")
    rows = np.concatenate([opened.rows(split) for split in splits or (None,)])
    rows, cases = skulls_first(opened, np.sort(rows), count, seed), []
    for row, name in zip(rows.tolist(), opened.names(skull[rows]), strict=True):
        words = [name] if name else []
        words += [opened.attrs["kinds"][kind[row]]] if kind[row] >= 0 else []
        cases.append(f"{', '.join(words)} (pair {row})" if words else f"pair {row}")
    return opened.load(rows), cases


def volumes(bits: store.Packed, size: int, side: int = 32) -> Features:
    """Means of blocks of voxels, at most `side` a side; beyond the grid a block counts as empty."""
    block = -(-size // side)
    pairs = (store.unpack(one, size) for one in bits)
    sums = [block_reduce(pair, (block, block, block, 1), np.sum).ravel() for pair in pairs]
    return (np.stack(sums) / block**3).astype(np.float32)


def network_features(net: Trained, bits: store.Packed, size: int, batch: int) -> Features:
    """`Model.features` of packed pairs, in batches of one size."""

    @jax.jit
    def run(state, part):
        return net.model.features(state, steps.unpack(part, size).astype(jnp.float32))

    return generate.whole_batches(lambda part: run(net.state, part), bits, batch)


def maps(
    groups: list[Group],
    size: int,
    features: Callable[[store.Packed], Float[np.ndarray, "n F"]] | None = None,
    *,
    seed: int,
    perplexity: float,
    umap: bool = False,
) -> dict[str, Any]:
    """All groups' pairs in one map for each kind of features and each method (figure 3).

    Features: the bottleneck of a V-Net that never saw generated pairs, and `volumes`, by at most 50
    principal components fitted on all groups; the volumes' first two are a map, too, of true
    distances. Returns `{"maps": [{"title", "points": [{"x", "y", "group", "case"}]}]}`.
    """
    for name, part, _ in groups:
        if part.shape[1] != size**3 // 4:
            raise UserError(f"explore.stores: the pairs of {name} are not of {size}^3 voxels")
    bits = np.concatenate([group.bits for group in groups])
    if len(bits) < 4:
        raise UserError(f"a map needs 4 pairs or more, not {len(bits)}: take more of them")
    kinds = {"the V-Net's bottleneck": features(bits)} if features else {}
    kinds["PCA of the volumes"] = volumes(bits, size)
    methods, places = {"t-SNE": _tsne} | ({"UMAP": _umap} if umap else {}), {}
    for kind, x in kinds.items():
        if not np.ptp(x, axis=0).any():
            print(f"{kind}: alike for all {len(bits)} pairs: no map of it")
            continue
        points, share = _components(x, seed)
        for method, place in methods.items():
            jobs.check()
            places[f"{method} of {kind}"] = place(points, seed, perplexity)
        if kind.startswith("PCA"):
            title = f"{kind}, components 1 and 2 ({share:.0%} of the variance)"
            places[title] = points[:, :2]
    labels = [{"group": group.name, "case": case} for group in groups for case in group.cases]
    panels = []
    for title, points in places.items():
        rounded = [{"x": float(f"{x:.5g}"), "y": float(f"{y:.5g}")} for x, y in points]
        whole = [{**point, **label} for point, label in zip(rounded, labels, strict=True)]
        panels.append({"title": title, "points": whole})
    return {"maps": panels}


def _components(x, seed):
    """Principal components [n, 2 to 50] of x [n, F], and the first two's share of the variance."""
    from sklearn.decomposition import PCA

    pca = PCA(min(COMPONENTS, *x.shape), random_state=seed)
    return pca.fit_transform(x), pca.explained_variance_ratio_[:2].sum()


def _tsne(points, seed, perplexity):
    from sklearn.manifold import TSNE

    perplexity = min(perplexity, (len(points) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(points)


def _umap(points, seed, _):
    from umap import UMAP

    near = min(15, len(points) - 1)  # its own spectral start fails for a handful of points
    return UMAP(n_neighbors=near, init="pca", random_state=seed, n_jobs=1).fit_transform(points)


def linear(a: Latent, b: Latent, t: Steps) -> Way:
    """The straight way from `a` to `b` at `t`, exact at 0 and 1."""
    t = np.asarray(t, np.float64)[:, None]
    return (1 - t) * a + t * b


def spherical(a: Latent, b: Latent, t: Steps) -> Way:
    """The great circle from `a` to `b` (slerp, Shoemake 1985); straight where there is none."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    length = np.linalg.norm(a) * np.linalg.norm(b)
    angle = np.arccos(np.clip(a @ b / length, -1, 1)) if length else 0.0
    if np.sin(angle) < 1e-6:
        return linear(a, b, t)
    t = np.asarray(t, np.float64)[:, None]
    # In this order the weights at the ends are 0 and 1.
    return np.sin((1 - t) * angle) / np.sin(angle) * a + np.sin(t * angle) / np.sin(angle) * b


def ends(generator: Trained, pairs: Bool[np.ndarray, "2 D D D 2"] | None, seed: int) -> Ends:
    """Two latents to go between: the encoder's of two real pairs, else of samples 0 and 1."""
    model, state = generator.model, generator.state
    if model.encode is not None:
        return np.asarray(jax.jit(model.encode)(state, jnp.asarray(pairs, jnp.float32)))
    draw = jax.jit(lambda state: generate.latents(model, state, seed, jnp.arange(2)))
    return np.asarray(draw(state))


def interpolation(generator: Trained, ends: Ends, count: int, rules: Rules) -> Ways:
    """Both ways between two latents, linear and spherical, in `count` equal steps, decoded."""
    t, decode = np.linspace(0, 1, count), jax.jit(generator.model.decode)
    latents = (np.float32(z)[None] for way in (linear, spherical) for z in way(*ends, t))
    pairs = [generate.pairs(decode(generator.state, z), rules)[0] for z in latents]
    return np.stack(pairs).reshape(2, count, *pairs[0].shape)
