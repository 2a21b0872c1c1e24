"""Llama-3.2-3B with torchtune's modules, as its README measures it: ``torchtune_3b.py [in_backward]``."""

import sys

import torch
from torchtune import training
from torchtune.models.llama3_2 import llama3_2_3b
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.modules.loss import CEWithChunkedOutputLoss

BATCH, LENGTH = 2, 4096
in_backward = sys.argv[1:] == ["in_backward"]
with training.set_default_dtype(torch.bfloat16), torch.device("cuda"):
    model = llama3_2_3b().train()
loss_of = CEWithChunkedOutputLoss()
model.set_num_output_chunks(loss_of.num_output_chunks)
training.set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
if in_backward:
    each = {parameter: torch.optim.AdamW([parameter], lr=2e-5, fused=True) for parameter in model.parameters()}
    training.register_optim_in_bwd_hooks(model=model, optim_dict=each)
else:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)
training.compile_model(model)
training.compile_loss(loss_of)
for _ in range(3):
    tokens = torch.randint(0, 1000, (BATCH, LENGTH), device="cuda")
    ignored = torch.full((BATCH, 1), -100, device="cuda", dtype=torch.long)
    labels = torch.hstack((tokens[..., 1:], ignored))
    mask = torch.tril(torch.ones(LENGTH, LENGTH, dtype=torch.bool, device="cuda"))[None].expand(BATCH, LENGTH, LENGTH)
    output = model(tokens=tokens, mask=mask, input_pos=torch.arange(LENGTH, device="cuda").expand(BATCH, LENGTH))
    loss = loss_of(output, labels)
    del output
    loss.backward()
    if not in_backward:
        optimizer.step()
        optimizer.zero_grad()
