"""A vision model with convolutions and batch norms, in half precision with a gradient scaler."""

import torch
from transformers import ConvNextV2Config, ConvNextV2ForImageClassification, ResNetConfig, ResNetForImageClassification

for model in (
    ResNetForImageClassification(ResNetConfig(num_labels=1000)),
    ConvNextV2ForImageClassification(ConvNextV2Config(num_labels=1000)),
):
    model.cuda().train()
    optimizer = torch.optim.AdamW(model.parameters())
    scaler = torch.amp.GradScaler()
    for _ in range(3):
        with torch.autocast("cuda", dtype=torch.float16):
            pixels = torch.randn(16, 3, 224, 224, device="cuda")
            loss = model(pixel_values=pixels, labels=torch.zeros(16, dtype=torch.long, device="cuda")).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
