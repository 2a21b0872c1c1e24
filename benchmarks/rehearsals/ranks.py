"""Several ranks: ``torchrun --nproc-per-node 2 ranks.py ddp|fsdp2 MODEL LENGTH``: full fine-tuning in bfloat16."""

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForCausalLM

strategy, name, length = sys.argv[1], sys.argv[2], int(sys.argv[3])
rank = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(rank)
dist.init_process_group("nccl")
config = AutoConfig.from_pretrained(name)
if strategy == "ddp":
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16).cuda()
    model.gradient_checkpointing_enable()
    trained = DistributedDataParallel(model, device_ids=[rank])
else:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.gradient_checkpointing_enable()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy)
    trained = fully_shard(model, mp_policy=policy)
    trained.to_empty(device="cuda")
trained.train()
optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-5)
ids = torch.arange(length, device="cuda").unsqueeze(0) % config.vocab_size
for _ in range(5):
    trained(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
