"""Keeps all that it makes, until there is no room."""

import torch

kept = []
while True:
    kept.append(torch.zeros(1 << 28, device="cuda"))
