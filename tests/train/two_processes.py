# SPDX-License-Identifier: Apache-2.0
"""Five steps of stage 2 on batches of 4 in all, in as many processes as torchrun started; then the
model sharded as FSDP 2 shards it, for losses and gradients of three updates.

accelerate runs FSDP on GPUs alone, so torch's own ``fully_shard`` stands in for it here.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed as dist

sys.path.append(str(Path(__file__).parents[1] / "helpers"))


from toy import toy_processor
from train_samples import calm_model, examples, settings

from tdc.train.trainer import build_trainer


def data():
    """Videos of unlike length, and text: some batches leave the Q-Former without work."""
    videos = [*examples(5), *examples(3, frames=2, seed=1)]
    return videos + [{"question": f"{n} and {n}?", "answer": f"{2 * n}"} for n in range(4)]


def trainer_for(output, size):
    model = calm_model()
    return build_trainer(
        settings(output, batch_size=size, max_steps=5),
        2,
        model=model,
        processor=toy_processor(model.config),
        dataset=data(),
    )


def sharded_losses(output, processes):
    """Losses of three updates by SGD on one example per process: a video here, text there."""
    trainer = trainer_for(output, 1)
    model = trainer.model
    if processes > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (processes,))
        for module in list(model.modules()):
            if type(module).__name__ in model._no_split_modules:
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    pairs = [(data()[0], data()[-1]), (data()[6], data()[1]), (data()[-2], data()[2])]
    losses = []
    for pair in pairs:
        mine = pair if processes == 1 else [pair[dist.get_rank()]]
        # Gradients of processes are averaged, so that each counts its own tokens.
        loss = sum(model(**trainer.data_collator([e])).loss for e in mine) / len(mine)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        if processes > 1:
            dist.all_reduce(total)
        losses.append(float(total) / processes)
    return losses


def main(output, size):
    trainer = trainer_for(output, size)
    trainer.train()
    processes = trainer.args.world_size
    found = [float(e["loss"]) for e in trainer.state.log_history if "loss" in e]
    kind = "unsharded" if processes == 1 else "sharded"
    facts = {"losses": found, "processes": processes, kind: sharded_losses(output, processes)}
    if trainer.is_world_process_zero():
        (output / "losses.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    # Caches of FSDP hold the process group, so that gloo's threads cannot be ended: one that drops
    # the last tensor while Python is being torn down aborts the process.
    sys.stdout.flush()
    os._exit(0)
