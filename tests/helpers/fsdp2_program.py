"""
Trains a saved classifier divided by FSDP2 and saves it as an ordinary folder: torchrun fsdp2_program.py MODEL OUT.

Runs on CPUs by gloo, where Accelerate would use DDP; division, saving and loading are the same as on GPUs.
"""

import json
import sys
from pathlib import Path

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForAudioClassification

import modeling_dual_ssast  # noqa: F401  registers the Auto classes

STEPS, BATCH = 4, 8


def batches():
    """Yields the batches of all processes together."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        yield torch.randn(BATCH, 40, 128, generator=generator), torch.randint(3, (BATCH,), generator=generator)


def main(folder: str, output: str):
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = AutoModelForAudioClassification.from_pretrained(folder).train()
    whole = sum(parameter.numel() for parameter in model.parameters())
    for layer in model.dual_ssast.layers:
        fully_shard(layer)
    fully_shard(model)
    own = sum(parameter.to_local().numel() for parameter in model.parameters())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for clips, labels in batches():
        part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        loss = model(clips[part], labels=labels[part]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.distributed.all_reduce(loss := loss.detach())
        losses.append(float(loss) / world)
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        AutoModelForAudioClassification.from_pretrained(folder).save_pretrained(output, state_dict=weights)
        Path(output, "run.json").write_text(json.dumps({"losses": losses, "share": own / whole}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
