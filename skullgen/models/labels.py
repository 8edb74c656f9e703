"""Labels that a model is conditioned on: kind, side and area of the defect.

A label is `data.measures.labels`'s row. `config.condition` says whether a model sees them; one that
does takes them as the last `LABELS` numbers of its latents. It keeps those that it learnt from, as
what samples are drawn with unless other ones are asked for.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from skullgen.core.types import Batch, Net, State
from skullgen.data.measures import AREA_CM2, KINDS, LABELS
from skullgen.models import steps
from skullgen.networks import modules

BANK = 512  # labels that are kept: the last ones seen
UNKNOWN = 0.1  # share of a batch's labels that training hides: pairs without any are encoded, too

Labels = Float[Array, "B labels"]


class Asked(NamedTuple):
    """Which labels samples have: weights of the kinds (none: as learnt), side, area (NaN: any)."""

    kinds: Float[np.ndarray | Array, " kinds"]
    side: float | Float[Array, ""] = np.nan  # -1 left, 0 both, 1 right
    area: float | Float[Array, ""] = np.nan  # as in a label


ANY = Asked(np.zeros(KINDS, np.float32))


def begin(config: ConfigDict) -> dict[str, Net]:
    """The bank of labels, as a net of no weights; none where a model is not conditional."""
    if not config.get("condition", False):
        return {}
    return {"labels": Net({}, {"bank": jnp.zeros((BANK, LABELS)), "seen": jnp.zeros(())}, {})}


def width(config: ConfigDict) -> int:
    """Numbers of a label that a model sees: 0 where it is not conditional."""
    return LABELS if config.get("condition", False) else 0


def remember(state: State, batch: Batch) -> State:
    """The state after it has seen the labels of a batch."""
    if "labels" not in state.nets:
        return state
    new = jax.lax.all_gather(batch.labels, modules.AXIS, axis=1, tiled=True)
    new = new.reshape(-1, LABELS)[-BANK:]
    stats = state.nets["labels"].stats
    place = (stats["seen"].astype(jnp.int32) + jnp.arange(len(new))) % BANK
    stats = {"bank": stats["bank"].at[place].set(new), "seen": stats["seen"] + len(new)}
    return state.replace(nets={**state.nets, "labels": Net({}, stats, {})})


def of(config: ConfigDict, state: State, batch: Batch, update: steps.Update = 0) -> Labels:
    """What a step of a model sees of a batch's labels: hidden now and then, or of width 0."""
    labels = batch.labels[update]
    if not width(config):
        return labels[:, :0]
    keys = steps.keys(state, steps.LABEL, len(labels), update)
    return labels * (steps.uniform(keys) >= UNKNOWN)[:, None]


def wanted(config: ConfigDict, state: State, keys: Key[Array, " B"], asked: Asked) -> Labels:
    """The labels that samples get (`draw`), of width 0 where a model sees none."""
    return draw(state, keys, asked) if width(config) else jnp.zeros((len(keys), 0))


def areas(state: State) -> tuple[float, float]:
    """The least and the largest area, in cm^2, of the labels that a model has seen."""
    stats = state.nets["labels"].stats
    own = AREA_CM2 * np.exp(np.asarray(stats["bank"])[: int(stats["seen"]), KINDS + 1])
    return float(own.min(initial=np.inf)), float(own.max(initial=0.0))


def draw(state: State, keys: Key[Array, " B"], asked: Asked) -> Labels:
    """Labels that were seen, of those that come nearest to what is asked; and that put in."""
    stats = state.nets["labels"].stats
    bank, there = stats["bank"], jnp.arange(BANK) < stats["seen"]
    own = jnp.asarray(asked.kinds)

    def one(key):
        choice, order = jax.random.split(jax.random.fold_in(key, steps.LABEL))
        kind = jax.nn.one_hot(jax.random.categorical(choice, jnp.log(own)), KINDS)
        kind = jnp.where(own.sum() > 0, kind, 0)
        away = jnp.where(own.sum() > 0, jnp.abs(bank[:, :KINDS] - kind).sum(1), 0)
        away += 0.5 * jnp.nan_to_num(jnp.abs(bank[:, KINDS] - asked.side))
        away += 0.1 * jnp.nan_to_num(jnp.abs(bank[:, KINDS + 1] - asked.area))
        away += jnp.where(there, 0.05 * jax.random.uniform(order, (BANK,)), jnp.inf)
        label = bank[away.argmin()]
        side, area = asked.side, asked.area
        rest = [jnp.where(jnp.isnan(x), label[KINDS + k], x) for k, x in enumerate((side, area))]
        return jnp.concatenate([jnp.where(own.sum() > 0, kind, label[:KINDS]), jnp.stack(rest)])

    return jax.vmap(one)(keys)
