"""A training step under ``torch.compile``: a small transformer, in a plain loop."""

import torch
from torch import nn

layer = nn.TransformerEncoderLayer(512, 8, 2048, batch_first=True, norm_first=True, device="cuda", dtype=torch.bfloat16)
model = nn.TransformerEncoder(layer, 4)
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
step = torch.compile(lambda batch: model(batch).float().pow(2).mean())
for _ in range(5):
    step(torch.randn(8, 1024, 512, device="cuda", dtype=torch.bfloat16)).backward()
    optimizer.step()
    optimizer.zero_grad()
