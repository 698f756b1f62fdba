"""What both processes of torchrun run in test_examples_loops.py.

They run the example, then look at what it leaves, and write what they see to the file
that is named on the command line.
"""

import json
import runpy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

EXAMPLE = Path(__file__).parents[1] / "examples" / "loops" / "distributed.py"


def from_both(value):
    values = [None, None]
    dist.all_gather_object(values, value)
    return values


def are_equal(*tensors):
    """Whether both processes have the same, to the bit."""
    ours, theirs = from_both([tensor.tolist() for tensor in tensors])
    return ours == theirs


def guards(vae, parallel, x):
    """Whether the guard's weight is the same after a step, and in the next one."""
    after = are_equal(vae.guard.weight)
    parallel(x)
    return after, are_equal(vae.guard.weight)


def pairs(dataset, sampler, teacher):
    """Whether posteriors match their samples, and the samples of this process."""
    belong, seen = True, []
    for (x,), posterior in DataLoader(dataset, batch_size=32, sampler=sampler):
        expected = torch.from_numpy(teacher.predict_proba(x.numpy())).float()
        belong &= torch.allclose(posterior, expected, atol=1e-6)
        seen += x.tolist()
    return belong, seen


class Inside(nn.Module):
    """The loss as part of what DistributedDataParallel wraps."""

    def __init__(self, encoder, loss_fn):
        super().__init__()
        self.encoder, self.loss_fn = encoder, loss_fn

    def forward(self, x, posterior):
        return self.loss_fn(self.encoder(x), posterior)


def gradients(vae, x, posterior):
    """The gradient of a batch, of a share alone, and of both shares in two ways."""
    encoder = nn.Linear(x.shape[1], vae.to_mean.out_features, bias=False)
    dist.broadcast(encoder.weight.data, 0)
    inside = Inside(encoder, vae.loss_fn)
    share = slice(dist.get_rank(), None, 2)

    def gradient(loss):
        encoder.zero_grad()
        loss.backward()
        return encoder.weight.grad.flatten().tolist()

    # A name for each: they average only as long as they are there.
    parallel, parallel_loss = map(DistributedDataParallel, (encoder, inside))
    return {
        "batch": gradient(inside(x, posterior)),
        "share": gradient(inside(x[share], posterior[share])),
        "outside": gradient(vae.loss_fn(parallel(x[share]), posterior[share])),
        "inside": gradient(parallel_loss(x[share], posterior[share])),
    }


def main(path):
    end, dist.destroy_process_group = dist.destroy_process_group, lambda: None
    sys.path.insert(0, str(EXAMPLE.parent))
    left = runpy.run_path(str(EXAMPLE))
    vae, dataset, teacher = left["vae"], left["dataset"], left["teacher"]
    (x,), posterior = next(iter(DataLoader(dataset, batch_size=64)))
    after, in_next = guards(vae, left["parallel"], x)
    belong, seen = pairs(dataset, left["sampler"], teacher)
    results = from_both(
        {
            "same weights": are_equal(*vae.parameters()),
            "same guard after a step": after,
            "same guard in the next": in_next,
            "posteriors belong": belong,
            "seen": seen,
            "gradients": gradients(vae, x, posterior),
        }
    )
    if dist.get_rank() == 0:
        Path(path).write_text(json.dumps(results))
    end()


if __name__ == "__main__":
    main(sys.argv[1])
