"""A plain training loop on an applied model: MobileTL on the last five blocks of MobileNetV3-Small.

The images here are random; put your own data set in their place.
"""

import argparse

import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import mobilenet_v3_small

import costmodel

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--resolution", type=int, default=224)
parser.add_argument("--out", default="finetuned.pt")
options = parser.parse_args()

model = mobilenet_v3_small(num_classes=10)  # load your pre-trained weights here
costmodel.apply(model, "mobiletl", blocks=5, resolution=options.resolution)
model.train()

images = torch.randn(64, 3, options.resolution, options.resolution)
loader = DataLoader(TensorDataset(images, torch.randint(10, (64,))), batch_size=8, shuffle=True)
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9)

step = 0
while step < options.steps:
    for batch, labels in loader:
        loss = torch.nn.functional.cross_entropy(model(batch), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        print(f"step {step}: loss {loss.item():.3f}")
        if step == options.steps:
            break

torch.save(costmodel.restore(model).state_dict(), options.out)
