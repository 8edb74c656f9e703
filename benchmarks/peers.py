"""The training steps in PyTorch: the networks, losses and metrics of `skullgen.models`.

As carefully as ours: channels last, fused Adam, activations in place, the penalty by the input's
gradient alone, networks that are not updated frozen, a batch for two where the numbers allow it;
bfloat16 by autocast with norms kept in bfloat16 (autocast alone would widen them). Weights are
converted from a State of ours and every draw is handed in, so both sides compute the same numbers.
Left out: running averages of the moments (of batch norm, of the posterior), a few kB.

Legend: B samples, D voxels a side, Z latents; pairs are [B, 2, D, D, D] with channels last.
"""

import contextlib
import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

LAST, EPSILON, aten = torch.channels_last_3d, 1e-5, torch.ops.aten


def tensors(params, device):
    """A flax tree of weights as torch's leaves: kernels [k, k, k, C, O] to [O, C, k, k, k]."""

    def tensor(name, w):
        w = torch.tensor(np.array(w), device=device)
        if name == "kernel" and w.ndim == 5:
            # V-Net's doubling kernels [2, 2, 2, in, out] are stored in the other order.
            doubles = len(w) == 2 and w.shape[3] > w.shape[4]
            w = w.permute(3, 4, 0, 1, 2) if doubles else w.permute(4, 3, 0, 1, 2)
            w = w.contiguous(memory_format=LAST)
        return (w.T.contiguous() if name == "kernel" and w.ndim == 2 else w).requires_grad_()

    return {
        name: tensors(w, device) if isinstance(w, dict) else tensor(name, w)
        for name, w in params.items()
    }


def leaves(tree):
    parts = (leaves(w) if isinstance(w, dict) else [w] for w in tree.values())
    return list(itertools.chain.from_iterable(parts))


def plain(x):
    """Where autocast is off: what ours computes in float32, or norms in what they are given."""
    return torch.autocast(x.device.type, enabled=False)


def norm(x, p, groups):
    with plain(x):
        return F.group_norm(x, groups, p["scale"].to(x.dtype), p["offset"].to(x.dtype), EPSILON)


def batch_norm(x, p, _):
    return F.batch_norm(x, None, None, p["scale"], p["offset"], True, 0.1, EPSILON)


def dense(x, p):
    with plain(x):
        return F.linear(x.float(), p["kernel"], p["bias"])


def down(p, x, groups):
    for i in range(sum(name.startswith("Down") for name in p)):
        x = F.conv3d(x, p[f"Down_{i}"]["kernel"], stride=2, padding=1)
        x = F.leaky_relu(norm(x, p[f"Norm_{i}"], groups), 0.2, inplace=True)
    return x


def critic(p, x):
    return dense(down(p, x, 1).permute(0, 2, 3, 4, 1).flatten(1), p["Dense_0"])[:, 0]


def encoder(p, x, groups):
    x = down(p, x, groups).float().mean((2, 3, 4))
    return dense(x, p["mean"]), dense(x, p["log_variance"])


def generator(p, z, normed, groups=1):
    """Z [B, Z] -> logits float32 [B, 2, D, D, D]."""
    stem, last = p["Same_0"]["kernel"], sum(name.startswith("Up") for name in p) - 1
    x = F.linear(z, p["Dense_0"]["kernel"], p["Dense_0"]["bias"])
    side = round((x.shape[1] / stem.shape[1]) ** (1 / 3))
    x = x.view(len(z), side, side, side, -1).permute(0, 4, 1, 2, 3)
    x = F.relu_(normed(F.conv3d(x, stem, padding="same"), p["Norm_0"], groups))
    for i in range(last):
        x = F.conv_transpose3d(x, p[f"Up_{i}"]["kernel"], stride=2, padding=1)
        x = F.relu_(normed(x, p[f"Norm_{i + 1}"], groups))
    kernel = p[f"Up_{last}"]["kernel"]
    return F.conv_transpose3d(x, kernel, p["bias"], stride=2, padding=1).float()


def vnet(p, skulls, config):
    """Skulls [B, 1, D, D, D] -> logits float32 [B, D, D, D]."""
    units = (p[f"Unit_{i}"] for i in itertools.count())

    def unit(operation, x, add=None, **options):
        u = next(units)
        x = norm(operation(x, u["kernel"], **options), u["Norm_0"], config.groups)
        x = x if add is None else x + add
        return F.prelu(x, u["slope"].to(x.dtype))

    def stage(x, add, count):
        for left in reversed(range(count)):
            x = unit(F.conv3d, x, None if left else add, padding=config.kernel // 2)
        return x

    x, skips = skulls, []
    for count in config.down:
        x = unit(F.conv3d, x, stride=2) if skips else x
        x = stage(x, x, count)
        skips.append(x)
    for count, skip in zip(config.up, skips[-2::-1], strict=True):
        x = unit(F.conv_transpose3d, x, stride=2)
        x = stage(torch.cat([x, skip], 1), x, count)
    return dense(x.permute(0, 2, 3, 4, 1), p["head"])[..., 0]


def kl(mean, log_variance):
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)


def occupancy(probability):
    skull, defect = probability.detach().mean((0, 2, 3, 4))
    return {"occupancy_skull": skull, "occupancy_defect": defect}


class Peer:
    """A method's train step: `step(pairs [batches, B, 2, D, D, D] bool, *draws) -> metrics`.

    method: `wgan_gp`, `vae`, `introvae`, `vnet`. config: as our `make` takes it. state: ours, whose
    weights are copied. `parts` are the functions that `compile` may compile.
    """

    def __init__(self, method, config, state, device):
        self.config, self.device = config, device
        self.nets = {role: tensors(net.params, device) for role, net in state.nets.items()}
        self.step = {"wgan_gp": wgan_gp, "vae": vae, "introvae": introvae, "vnet": segment}[method]
        self.step, self.parts = self.step(self)
        rate = config.vae_learning_rate if method == "vae" else config.learning_rate
        betas = (config.b1, config.b2) if method == "wgan_gp" else (0.9, 0.999)
        self.adam = {
            role: torch.optim.Adam(leaves(net), rate, betas, fused=True)
            for role, net in self.nets.items()
        }

    def compile(self):
        """Lets torch.compile have every part; it refuses double backward, so not the penalty."""
        self.parts.update({name: torch.compile(part) for name, part in self.parts.items()})

    def cast(self):
        bfloat16 = self.config.precision == "bfloat16"
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=bfloat16)

    @contextlib.contextmanager
    def frozen(self, role):
        for w in leaves(self.nets[role]):
            w.requires_grad_(False)
        yield
        for w in leaves(self.nets[role]):
            w.requires_grad_()

    def update(self, role, loss):
        loss.backward()
        gradients = [w.grad for w in leaves(self.nets[role])]
        size = torch.nn.utils.get_total_norm(gradients)
        self.adam[role].step()
        self.adam[role].zero_grad()
        return {f"{role}_update_norm": size}


def wgan_gp(self):
    """One batch, Z [6, B, Z] and u [5, B] a critic update; then one of the generator."""

    def generate(z):
        with self.cast():
            return torch.sigmoid(generator(self.nets["generator"], z, batch_norm))

    def score(x):
        with self.cast():
            return critic(self.nets["critic"], x)

    parts = {"generate": generate, "score": score}

    def critic_update(real, z, u):
        real = real.float()
        with torch.no_grad():
            fake = parts["generate"](z)
        fakes, reals = parts["score"](torch.cat([fake, real])).view(2, -1).mean(1)
        x_hat = torch.lerp(real, fake, u.view(-1, 1, 1, 1, 1)).requires_grad_()
        (slope,) = torch.autograd.grad(score(x_hat).sum(), x_hat, create_graph=True)
        length = (slope.float().square().sum((1, 2, 3, 4)) + 1e-12).sqrt()
        penalty = (length - 1).square().mean()
        size = self.update("critic", self.config.penalty * penalty - (reals - fakes))
        metrics = {"critic_distance": reals - fakes, "penalty": penalty, **size}
        return {**metrics, "gradient_norm": length.mean()}

    def step(pairs, z, u):
        metrics = [critic_update(*x) for x in zip(pairs, z[:-1], u, strict=True)]
        largest = torch.stack([m["critic_update_norm"] for m in metrics]).max()
        with self.frozen("critic"):
            fake = parts["generate"](z[-1])
            loss = -parts["score"](fake).mean()
            size = self.update("generator", loss)
        more = {"generator_loss": loss, **occupancy(fake), **size}
        return {**metrics[-1], "critic_update_norm": largest, **more}

    return step, parts


def vae(self):
    """Noise [B, Z]; the paper's weights of 1 for both channels."""
    net, groups = self.nets["vae"], self.config.groups

    def loss(pairs, noise):
        with self.cast():
            mean, log_variance = encoder(net["encoder"], pairs, groups)
            z = mean + (0.5 * log_variance).exp() * noise
            logits = generator(net["decoder"], z, norm, groups)
        error = F.binary_cross_entropy_with_logits(logits, pairs, reduction="sum") / len(pairs)
        divergence = kl(mean, log_variance).mean()
        metrics = {"reconstruction": error, "kl": divergence, **occupancy(logits.sigmoid())}
        return error + self.config.kl_weight * divergence, metrics

    parts = {"loss": loss}

    def step(pairs, noise):
        value, metrics = parts["loss"](pairs[0].float(), noise)
        return {**metrics, **self.update("vae", value)}

    return step, parts


def introvae(self):
    """Noise and prior [B, Z]; the encoder's update, then the decoder's on new outputs."""
    c = self.config

    def encode(x):
        return encoder(self.nets["encoder"], x, c.groups)

    def decode(z):
        return generator(self.nets["decoder"], z, norm, c.groups)

    def error(made, pairs):
        return F.mse_loss(made, pairs, reduction="sum") / (len(pairs) * pairs.shape[-1])

    def encoder_loss(pairs, noise, prior):
        with self.cast():
            mean, log_variance = encode(pairs)
            made = decode(mean + (0.5 * log_variance).exp() * noise)
            fakes = torch.cat([made.detach(), decode(prior)])
            fake = kl(*encode(fakes)).view(2, -1)
        real, distance = kl(mean, log_variance), error(made, pairs)
        hinge = (c.margin - fake).relu().sum(0)
        metrics = {"reconstruction": distance, "kl_real": real.mean()}
        metrics |= {"kl_reconstruction": fake[0].mean(), "kl_prior": fake[1].mean()}
        loss = (real + c.alpha * hinge).mean() + c.beta * distance
        return loss, {**metrics, **occupancy(made.clamp(0, 1))}

    def decoder_loss(pairs, noise, prior):
        with self.cast():
            with torch.no_grad():
                mean, log_variance = encode(pairs)
                z = mean + (0.5 * log_variance).exp() * noise
            fakes = decode(torch.cat([z, prior]))
            fake = kl(*encode(fakes)).view(2, -1)
        distance = error(fakes[: len(pairs)], pairs)
        return c.alpha * fake.sum(0).mean() + c.beta * distance

    parts = {"encoder": encoder_loss, "decoder": decoder_loss}

    def step(pairs, noise, prior):
        data = pairs[0].float(), noise, prior
        with self.frozen("decoder"):
            loss, metrics = parts["encoder"](*data)
            metrics |= self.update("encoder", loss)
        with self.frozen("encoder"):
            return metrics | self.update("decoder", parts["decoder"](*data))

    return step, parts


def segment(self):
    """V-Net's soft Dice of the defect, from the skull."""

    def loss(pairs):
        with self.cast():
            logits = vnet(self.nets["vnet"], pairs[:, :1].float(), self.config)
        made, target, axes = logits.sigmoid(), pairs[:, 1].float(), (1, 2, 3)
        sizes = target.sum(axes)
        value = (1 - 2 * (made * target).sum(axes) / (made.sum(axes) + sizes + 1)).mean()
        hard = logits.detach() >= 0
        dice = 2 * (hard & pairs[:, 1]).sum(axes) / (hard.sum(axes) + sizes).clamp_min(1)
        return value, {"loss": value, "dice": dice.mean()}

    parts = {"loss": loss}

    def step(pairs):
        value, metrics = parts["loss"](pairs[0])
        return {**metrics, **self.update("vnet", value)}

    return step, parts


class Counter(TorchDispatchMode):
    """Counts what every convolution, matrix product and fused Adam under it must at least do.

    flops: two for each product of a weight and a voxel (or of a gradient with either), none for
    padding or dilation. bytes: operands read once, results written once, in their own dtype;
    Adam reads weight, gradient and two moments and writes three, in float32.
    """

    def __init__(self):
        super().__init__()
        self.flops, self.bytes = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is aten.convolution.default:
            self._add(convolution(args[0], args[1], out, *args[3:7]), args, out)
        elif func is aten.convolution_backward.default:
            gradient, x, w = args[:3]
            both = sum(args[10][:2])
            self._add(both * convolution(x, w, gradient, *args[4:8]), args, out)
        elif func in (aten.mm.default, aten.bmm.default, aten.addmm.default):
            self._add(args[-2].numel() * args[-1].shape[-1], args, out)
        elif func is aten._fused_adam_.default:
            self.bytes += 7 * sum(w.numel() * w.element_size() for w in args[0])
        return out

    def _add(self, products, args, out):
        moved = [*args, *(out if isinstance(out, tuple) else [out])]
        moved = [x for x in moved if isinstance(x, torch.Tensor)]
        self.flops += 2 * products
        self.bytes += sum(x.numel() * x.element_size() for x in moved)


def convolution(x, w, out, stride, padding, dilation, transposed):
    """Products in a convolution: of each output's taps those that meet a voxel, not padding."""
    if transposed:
        x, out = out, x  # of the convolution that it transposes
    axes = zip(x.shape[2:], w.shape[2:], out.shape[2:], strict=True)
    settings = (s if len(s) == 3 else [*s] * 3 for s in (stride, padding, dilation))
    taps = math.prod(
        sum(0 <= o * s - p + t * d < n for o in range(m) for t in range(k))
        for (n, k, m), s, p, d in zip(axes, *settings, strict=True)
    )
    return taps * len(x) * w.shape[0] * w.shape[1]
