"""Ends in an error that has nothing to do with memory."""

import torch

weight = torch.nn.Linear(1024, 1024, device="cuda")
weight(torch.randn(3, 1024, device="cuda")).sum().backward()
raise ValueError("the learning rate is spelled wrong")
