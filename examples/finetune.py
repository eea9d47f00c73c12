"""From a question to a trained network in forty lines: recommend, apply with the schedule, train, save.

The images here are random; put your own data set in their place. `planner train` does the same from a folder of images,
goes on after a kill, and keeps the best epoch.
"""

import argparse
from itertools import chain, islice, repeat

import torch
from torch.utils.data import DataLoader, TensorDataset

import costmodel
import planner

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--resolution", type=int, default=224)
parser.add_argument("--ram", type=int, default=64_000_000, help="Bytes for a step.")
parser.add_argument("--out", default="finetuned.pt")
options = parser.parse_args()

answer = planner.recommend("torchvision:mobilenet_v3_small", options.ram, resolution=options.resolution, classes=10)
plan, schedule = answer.plan, answer.plan.schedule
print(f"{plan.way.label} {schedule.label(plan.batch)}: {plan.peak_bytes / 1e6:.1f} MB")

model = costmodel.build(plan.model, plan.classes)  # load your pre-trained weights here
plan.apply(model).train()
optimizer = costmodel.make_optimizer(plan.optimizer, model, learning_rate=0.01)
if schedule.inplace_update:
    costmodel.update_in_place(model, optimizer)

images = torch.randn(64, 3, options.resolution, options.resolution)
loader = DataLoader(TensorDataset(images, torch.randint(10, (64,))), plan.batch, shuffle=True, drop_last=True)
epochs = chain.from_iterable(repeat(loader))
for step, batch in enumerate(islice(epochs, options.steps), 1):
    total, at_once = 0.0, schedule.images_per_pass(plan.batch)
    for part, labels in zip(*(each.split(at_once) for each in batch), strict=True):
        loss = torch.nn.functional.cross_entropy(model(part), labels) * len(part) / plan.batch
        loss.backward()
        total += loss.item()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    print(f"step {step}: loss {total:.3f}")

torch.save(costmodel.restore(model).state_dict(), options.out)
