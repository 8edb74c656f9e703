"""WGAN-GP steps against PyTorch: the same network, weights, noise and loss, in turn on one machine.

Ours are the project's own networks and penalty under its pmap on one device; PyTorch's are written
here as carefully: channels last, fused Adam, the input's gradient alone in the penalty.

    python benchmarks/train.py --sizes 16 32 --json train.json

Needs PyTorch (`pip install torch`). Prints and writes a row for each step: medians of interleaved
rounds in milliseconds, `ratio` above 1 where ours is faster.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch.nn.functional as F

from skullgen import losses, nets

LATENT, PENALTY, EPSILON = 200, 10.0, 1e-5
ADAM = {"lr": 1e-4, "b1": 0.5, "b2": 0.9}


def widths(base):
    return [base, 2 * base, 4 * base, 8 * base]


def weights(size, base, draw):
    """Draw both networks' parameters in our layout: kernels [4, 4, 4, fine, coarse]."""
    wide, cells = widths(base), (size // 16) ** 3

    def normal(*shape, fan):
        return (draw.normal(size=shape) / np.sqrt(fan)).astype(np.float32)

    def norm(channels):
        return {"scale": np.ones(channels, np.float32), "offset": np.zeros(channels, np.float32)}

    critic, c = {}, 2
    for i, o in enumerate(wide):
        critic[f"block{i}"] = {"w": normal(4, 4, 4, c, o, fan=64 * c), **norm(o)}
        c = o
    critic["dense"] = {
        "w": normal(cells * c, 1, fan=cells * c),
        "b": np.zeros(1, np.float32),
    }
    generator = {
        "dense": {
            "w": normal(LATENT, cells * c, fan=LATENT),
            "b": np.zeros(cells * c, np.float32),
        },
        "stem": {"w": normal(4, 4, 4, c, c, fan=64 * c), **norm(c)},
    }
    for i, o in enumerate(wide[-2::-1]):
        generator[f"block{i}"] = {"w": normal(4, 4, 4, o, c, fan=8 * c), **norm(o)}
        c = o
    generator["head"] = {"w": normal(4, 4, 4, 2, c, fan=8 * c), "b": np.zeros(2, np.float32)}
    return critic, generator


def linen(p):
    """The same parameters under the names that flax gives them in `skullgen.nets`."""
    dense = {"kernel": p["dense"]["w"], "bias": p["dense"]["b"]}
    blocks = [p[name] for name in p if name.startswith("block")]
    normed = [p["stem"], *blocks] if "stem" in p else blocks
    out = {"Dense_0": dense}
    for i, block in enumerate(normed):
        out[f"Norm_{i}"] = {"scale": block["scale"], "offset": block["offset"]}
    if "stem" in p:
        out["Same_0"], out["bias"] = {"kernel": p["stem"]["w"]}, p["head"]["b"]
        blocks = [*blocks, p["head"]]
    kind = "Up" if "stem" in p else "Down"
    return out | {f"{kind}_{i}": {"kernel": block["w"]} for i, block in enumerate(blocks)}


def ours(size, base, critic, generator):
    adam = optax.adam(ADAM["lr"], ADAM["b1"], ADAM["b2"])
    judge, maker = nets.Critic(tuple(widths(base))), nets.Generator(size, tuple(widths(base)))

    def generate(params, z):
        logits, _ = maker.apply({"params": params}, z, mutable=["stats"])
        return nets.probabilities(logits)

    def update(loss, params, opt):
        values, grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt = adam.update(grads, opt)
        return optax.apply_updates(params, updates), opt, values

    def critic_step(params, opt, other, z, real, mix):
        fake = generate(other, z)

        def loss(params):
            def score(x):
                return judge.apply({"params": params}, x)

            fakes, reals = jnp.split(score(jnp.concatenate([fake, real])), 2)
            penalty = losses.gradient_penalty(score, real, fake, mix)[0].mean()
            return fakes.mean() - reals.mean() + PENALTY * penalty, penalty

        return update(loss, params, opt)

    def generator_step(params, opt, other, z, real, mix):
        def loss(params):
            score = -judge.apply({"params": other}, generate(params, z)).mean()
            return score, jnp.zeros(())

        return update(loss, params, opt)

    def one_device(step):
        return jax.pmap(
            step,
            axis_name=nets.AXIS,
            in_axes=(None, None, None, 0, 0, 0),
            out_axes=None,
            donate_argnums=(0, 1),
            devices=jax.devices()[:1],
        )

    steps = {"critic": one_device(critic_step), "generator": one_device(generator_step)}
    state = {"critic": linen(critic), "generator": linen(generator)}
    state = jax.tree.map(jnp.asarray, state)
    opts = {name: adam.init(net) for name, net in state.items()}

    def run(name, batch):
        other = state["generator" if name == "critic" else "critic"]
        state[name], opts[name], out = steps[name](state[name], opts[name], other, *batch)
        return [float(value) for value in jax.block_until_ready(out)]

    def load(z, real, mix):
        return jax.device_put((z[None], real[None], mix[None]))

    return run, load


class Norm(torch.nn.Module):
    def __init__(self, p):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(p["scale"]))
        self.offset = torch.nn.Parameter(torch.tensor(p["offset"]))

    def batch(self, x):
        return F.batch_norm(x, None, None, self.scale, self.offset, True, 0.1, EPSILON)


def kernel(w):
    """[4, 4, 4, fine, coarse] to PyTorch's [coarse, fine, 4, 4, 4], for both directions."""
    w = torch.tensor(np.ascontiguousarray(w.transpose(4, 3, 0, 1, 2)))
    return torch.nn.Parameter(w.to(memory_format=torch.channels_last_3d))


class TorchCritic(torch.nn.Module):
    def __init__(self, p, side):
        super().__init__()
        self.kernels = torch.nn.ParameterList([kernel(p[f"block{i}"]["w"]) for i in range(4)])
        self.norms = torch.nn.ModuleList([Norm(p[f"block{i}"]) for i in range(4)])
        w = p["dense"]["w"].reshape(side**3, -1, 1).transpose(2, 1, 0).reshape(1, -1)
        self.w = torch.nn.Parameter(torch.tensor(np.ascontiguousarray(w)))
        self.b = torch.nn.Parameter(torch.tensor(p["dense"]["b"]))

    def forward(self, x):
        for w, norm in zip(self.kernels, self.norms, strict=True):
            x = F.conv3d(x, w, stride=2, padding=1)
            x = F.leaky_relu(F.group_norm(x, 1, norm.scale, norm.offset, EPSILON), 0.2)
        return F.linear(x.flatten(1), self.w, self.b)[:, 0]


class TorchGenerator(torch.nn.Module):
    def __init__(self, p, side):
        super().__init__()
        self.side = side
        self.w = torch.nn.Parameter(torch.tensor(np.ascontiguousarray(p["dense"]["w"].T)))
        self.b = torch.nn.Parameter(torch.tensor(p["dense"]["b"]))
        names = [f"block{i}" for i in range(3)]
        self.stem = kernel(p["stem"]["w"])
        self.kernels = torch.nn.ParameterList([kernel(p[n]["w"]) for n in names])
        self.norms = torch.nn.ModuleList([Norm(p[n]) for n in ["stem", *names]])
        self.head = kernel(p["head"]["w"])
        self.head_b = torch.nn.Parameter(torch.tensor(p["head"]["b"]))

    def forward(self, z):
        x = F.linear(z, self.w, self.b).view(len(z), self.side, self.side, self.side, -1)
        x = x.permute(0, 4, 1, 2, 3)
        x = F.relu(self.norms[0].batch(F.conv3d(x, self.stem, padding="same")))
        for w, norm in zip(self.kernels, self.norms[1:], strict=True):
            x = F.relu(norm.batch(F.conv_transpose3d(x, w, stride=2, padding=1)))
        x = F.conv_transpose3d(x, self.head, self.head_b, stride=2, padding=1)
        return torch.sigmoid(x)


def torch_peer(size, base, critic, generator):
    side = size // 16
    critic, generator = TorchCritic(critic, side), TorchGenerator(generator, side)
    adam = {"lr": ADAM["lr"], "betas": (ADAM["b1"], ADAM["b2"]), "fused": True}
    opts = {
        "critic": torch.optim.Adam(critic.parameters(), **adam),
        "generator": torch.optim.Adam(generator.parameters(), **adam),
    }

    def critic_step(z, real, mix):
        with torch.no_grad():
            fake = generator(z)
        fake_score, real_score = critic(torch.cat([fake, real])).chunk(2)
        mix = mix[:, None, None, None, None]
        x_hat = (real + mix * (fake - real)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(x_hat).sum(), x_hat, create_graph=True)
        norm = ((slope**2).sum((1, 2, 3, 4)) + 1e-12).sqrt()
        penalty = ((norm - 1) ** 2).mean()
        loss = fake_score.mean() - real_score.mean() + PENALTY * penalty
        opts["critic"].zero_grad()
        loss.backward()
        opts["critic"].step()
        return loss.item(), penalty.item()

    def generator_step(z):
        critic.requires_grad_(False)
        loss = -critic(generator(z)).mean()
        opts["generator"].zero_grad()
        loss.backward()
        opts["generator"].step()
        critic.requires_grad_(True)
        return loss.item(), 0.0

    def run(name, batch):
        return critic_step(*batch) if name == "critic" else generator_step(batch[0])

    def load(z, real, mix):
        real = torch.tensor(real).permute(0, 4, 1, 2, 3)
        return torch.tensor(z), real, torch.tensor(mix)

    return run, load


def timed(run, name, batch):
    start = time.perf_counter()
    out = run(name, batch)
    return 1e3 * (time.perf_counter() - start), out


def compare(size, base, batch, rounds, repeats):
    draw = np.random.default_rng(0)
    start = weights(size, base, draw)
    arrays = (
        draw.normal(size=(batch, LATENT)).astype(np.float32),
        (draw.random((batch, size, size, size, 2)) < 0.1).astype(np.float32),
        draw.random(batch).astype(np.float32),
    )
    sides = {"ours": ours(size, base, *start), "torch": torch_peer(size, base, *start)}
    batches = {side: load(*arrays) for side, (_, load) in sides.items()}
    rows, compile_ms = [], {}
    # The second pair shows that gradients agree too; Adam turns a tiny gradient's rounding into a
    # whole step, hence the wider tolerance.
    for name, tolerance in zip(("critic", "generator") * 2, (1e-4, 1e-4, 1e-3, 1e-3), strict=True):
        took, values = {}, {}
        for side, (run, _) in sides.items():
            took[side], values[side] = timed(run, name, batches[side])
        compile_ms.setdefault(name, took["ours"])
        np.testing.assert_allclose(values["ours"], values["torch"], rtol=tolerance)
    for name in ("critic", "generator"):
        times = {side: [] for side in sides}
        for turn in range(rounds):
            for side in sorted(sides, reverse=turn % 2 == 1):
                run = sides[side][0]
                run(name, batches[side])  # let the other side's threads go to sleep
                times[side] += [timed(run, name, batches[side])[0] for _ in range(repeats)]
        middle = {side: statistics.median(t) for side, t in times.items()}
        low = {side: min(t) for side, t in times.items()}
        rows.append(
            {
                "what": f"WGAN-GP {name} step, batch {batch}, base {base}",
                "size": size,
                "precision": "float32",
                "device": jax.devices()[0].device_kind,
                "ours_ms": round(middle["ours"], 2),
                "peer": f"PyTorch {torch.__version__}",
                "peer_ms": round(middle["torch"], 2),
                "ratio": round(middle["torch"] / middle["ours"], 3),
            }
        )
        print(
            f"{size}^3 {name:9} ours {middle['ours']:7.1f} [{low['ours']:.1f}-"
            f"{max(times['ours']):.1f}] torch {middle['torch']:7.1f} [{low['torch']:.1f}-"
            f"{max(times['torch']):.1f}] ms; ratio {rows[-1]['ratio']:.2f}, of minima "
            f"{low['torch'] / low['ours']:.2f}; first call {compile_ms[name] / 1e3:.1f} s",
            flush=True,
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--base", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = []
    for size in args.sizes:
        rows += compare(size, args.base, args.batch, args.rounds, args.repeats)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
